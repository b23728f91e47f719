"""The server's half of the round: arrivals in, gradients out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.errors import ClientFailedError, ClientLostError
from lightning_edgesplit.runtime import states, trained
from lightning_edgesplit.runtime.arbiter import Arbitration
from lightning_edgesplit.runtime.compression import compressed, restored
from lightning_edgesplit.runtime.exchange import Digests, Held, resting
from lightning_edgesplit.runtime.grants import Grants
from lightning_edgesplit.runtime.inbox import Inbox, Letter
from lightning_edgesplit.runtime.joint import Joint, join, join_by_depth
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.seat import Behind, Orders, Seat, Service
from lightning_edgesplit.runtime.second_cut import pass_through, stretch
from lightning_edgesplit.runtime.server_models import ServerModel
from lightning_edgesplit.runtime.trained import Trained
from lightning_edgesplit.runtime.weights import Masters
from lightning_edgesplit.runtime.wire import Frame, Kind
from lightning_edgesplit.splitting import END
from lightning_edgesplit.splitting.batch import Withheld
from lightning_edgesplit.splitting.mixing import Mixture
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import Passed
from lightning_edgesplit.splitting.tree import Structure


@dataclass(frozen=True)
class Start:
    """What all clients of a round begin with.

    Attributes:
        aggregate: The whole model, by name.
        fresh_state: The optimizer state of whole models; None: each client goes on with its own.
        trained: What is trained.
        about: More that every client is told.
        digests: Of the aggregate's tensors.
        masters: Those tensors, as they are sent.
    """

    aggregate: Mapping[str, Tensor]
    fresh_state: states.State | None
    trained: Trained
    about: Mapping[str, Any]
    digests: Digests
    masters: Masters


class Server:
    """Serves the clients' steps with one server-side model per client, or with one for all.

    Args:
        module: The LightningModule that the Trainer trains.
        optimizer: Its optimizer.
        links: One per client.
        names: One per client.
        sample: Leaves and structure of a sample batch.
        heartbeat: Seconds between two signs of life.
        in_order: Serve clients in the order of their numbers within each local step, instead of as they come.
        take_step: Takes one step of the optimizer with the gradients that are there, hooks and clipping included.
        paced: Whether hyper-parameters change within a round, so that every client waits for the next ones.
        context: Opened around a forward pass between two cuts (mixed precision).
        kind: Which server-side models there are, and who is served when.
        weight_compression: How trained weights travel at the ends of rounds, see `runtime.weights`.

    Attributes:
        sides: The module's tensors; between steps they hold the last aggregate.
        greetings: What every client said of its data: ``batches``, ``samples``, ``batch``, ``last``.
        began: When the round began, monotonic clock, seconds.
        taking_part: The seats of the clients that take part in the round.
    """

    streams_uploads = False

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        links: Sequence[Link],
        names: Sequence[str],
        sample: tuple[list[Any], Structure],
        heartbeat: float,
        in_order: bool = False,
        paced: bool = False,
        take_step: Callable[[], None] = lambda: None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        kind: ServerModel = ServerModel(),  # noqa: B008  # frozen
        weight_compression: str = "none",
    ) -> None:
        self.module, self.optimizer, self.sample = module, optimizer, sample
        self.in_order, self.paced = in_order, paced
        self.take_step, self.context = take_step, context
        self.rules: dict[str, Any] = {}
        self.sides = Sides(module)
        self.kind = kind
        self.links = list(links)
        self._held = [Held() for _ in self.links]
        self._weight_compression = weight_compression
        self._masters: Masters | None = None  # where clients begin with less
        self.seats = self._take_seats(names)
        self.grants = Grants(self.seats)
        self.inbox = self._open_inbox(names)
        self.began = 0.0
        self.taking_part: list[Seat] = []
        self._turns: Iterator[int] | None = None
        self._first: Callable[[Letter], float] | None = None
        self._joint: Joint | None = None
        self._mixture: Mixture | None = None
        self._norm = 0, 0.0
        self._answer: tuple[list[Tensor], list[Tensor]] | None = None
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, args=(heartbeat,), name="signs of life", daemon=True)
        self._pulse.start()
        try:
            self.greetings = self._hear_greetings()
        except BaseException:
            self._ended.set()
            raise

    def _take_seats(self, names: Sequence[str]) -> list[Seat]:
        shared = Behind() if self.kind.one else None
        return [Seat(name, link, shared) for name, link in zip(names, self.links, strict=True)]

    def _open_inbox(self, names: Sequence[str]) -> Inbox:
        return Inbox(self.links, names, {Kind.ASK: self.grants.ask_for})

    def _hear_greetings(self) -> list[dict[str, Any]]:
        return [self.inbox.next(Kind.HELLO, link=k).frame.about for k in range(len(self.links))]

    def _beat(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            for link in self.links:
                try:
                    link.send(Frame(Kind.ALIVE))
                except ClientLostError:
                    return  # the thread that receives from this client has the same news, and reports it

    def abandon(self) -> None:
        """Ends the signs of life after a failure, and lets clients that still listen end as well."""
        self._ended.set()
        self.grants.begin(None)
        for link in self.links:
            with suppress(ClientLostError):  # the run ends for another reason, which is already on its way to the user
                link.send(Frame(Kind.STOP))

    def join(self, timeout: float) -> None:
        """Ends the links of a server that was stopped or abandoned, and waits for its threads."""
        for link in self.links:
            link.close()
        self._pulse.join(timeout)
        self.inbox.join(timeout)

    def send(self, client: int, frame: Frame, wait: bool = True) -> None:
        """Sends a frame to a client; `wait` is as in `Link.send`.

        Raises:
            ClientFailedError: If the client said why it is gone.
            ClientLostError: If it is gone.
        """
        self._send(self._link_of(client), frame, wait)

    def _send(self, link: int, frame: Frame, wait: bool = True) -> None:
        try:
            self.links[link].send(frame, wait=wait)
        except ClientLostError as error:
            raise self.inbox.explain(link, error) from error

    def _link_of(self, client: int) -> int:
        return client

    def hand_out(self, client: int, frame: Frame, phase: str = "downlink", wait: bool = True) -> None:
        """Sends what takes time on an emulated link: at once, or when it is its turn on a link that is scheduled."""
        if not self.grants.send(client, frame, phase):
            self.send(client, frame, wait)

    # ---- a round -----------------------------------------------------------------------------------------------------

    def start_round(
        self,
        orders: Sequence[Orders],
        rules: Mapping[str, Any],
        fresh_state: states.State | None = None,
        arbitration: Arbitration | None = None,
        longest_first: bool = False,
        turns: Sequence[int] = (),
        mixture: Mixture | None = None,
        **about: Any,
    ) -> None:
        """Hands every client the aggregate of its side, its cut, its local steps, and what is trained if that changed.

        Of frozen parameters and constant buffers only what it does not have already is sent.

        Args:
            orders: One per client.
            rules: How steps are taken: ``accumulate`` batches for each, gradients that ``clip`` limits.
            fresh_state: The optimizer state of whole models with which all begin; None: each goes on with its own.
            arbitration: How the links are shared, where the server decides who uses them when; None: it does not.
            longest_first: Whether who has the longest way to go is served first, where no order is fixed.
            turns: Clients in the order in which they are served, each with all of its local steps; empty: none.
            mixture: The cuts of all clients, where they differ and one step is a local step of all.
            about: More for every client: ``epoch``, ``global_step``, ``upload_state``.
        """
        self.grants.begin(arbitration)
        self._first = self.grants.most_urgent_first if longest_first and arbitration is not None else None
        self.began, self.rules, self._mixture = time.monotonic(), dict(rules), mixture
        for seat, order in zip(self.seats, orders, strict=True):
            seat.services, seat.began, seat.grants, seat.handed_out = [], self.began, [], []
            seat.lost = seat.norm = 0.0
            if order.steps:
                if self.kind.one and seat.orders is not None and seat.cut.name != order.cut.name:
                    raise ValueError(
                        f'server_model="{self.kind.name}" keeps its cuts, and the plan moves that of {seat.name} from'
                        f" {seat.cut.name!r} to {order.cut.name!r}: name the cuts in `cuts`."
                    )
                seat.orders = order
            elif seat.orders is not None:
                seat.orders = replace(seat.orders, parts=())
            seat.ahead = deque(order.parts)
        clients = [client for client, seat in enumerate(self.seats) if seat.active]
        self.taking_part = [self.seats[client] for client in clients]
        now = trained.read(self.module, self.sides.parameters, self.optimizer)
        aggregate = {name: self.sides.real(name).detach() for name in self.sides.names}
        in_turn = [client for client in turns for _ in range(orders[client].steps)]
        if not in_turn and self.in_order:
            in_turn = self._in_turn(clients)
        self._turns = iter(in_turn) if in_turn else None
        at_rest = resting(self.sides.parameters, self.sides.names)
        masters = Masters(aggregate, set(at_rest), self._weight_compression)
        self._masters = None if self._weight_compression == "none" else masters
        self._start_clients(clients, Start(aggregate, fresh_state, now, about, Digests(aggregate), masters))

    def _in_turn(self, clients: Sequence[int]) -> list[int]:
        """Whose arrivals are served in which order, where the order is fixed: each in each local step."""
        ahead = {client: self.seats[client].ahead for client in clients}
        steps = range(max(map(len, ahead.values()), default=0))
        return [k for step in steps for k in clients if step < len(ahead[k]) for _ in range(ahead[k][step])]

    def _start_clients(self, clients: Sequence[int], start: Start) -> None:
        for client in clients:
            self._start_client(client, start)
        for client in self._by_depth(clients)[:1] if self.kind.one else clients:
            self._begin_model(client, start)

    def _by_depth(self, clients: Sequence[int]) -> list[int]:
        """The clients with the shallowest cuts first; one server-side model is what lies behind the first one's."""
        mixture = self._mixture
        return sorted(clients, key=lambda k: 0 if mixture is None else mixture.depth(self.seats[k].cut))

    def _begin_model(self, client: int, start: Start) -> None:
        """Lets a client's server-side model be a copy of the aggregate, made when its first arrival needs it."""
        seat = self.seats[client]
        client_side = set(seat.cut.client)
        seat.behind.begins_as = {name: x for name, x in start.aggregate.items() if name not in client_side}

    def _start_client(self, client: int, start: Start) -> None:
        """Gives a client its orders, its part of the aggregate and of the optimizer's state."""
        seat, about = self.seats[client], start.about
        order = seat.orders
        assert order is not None
        seat.returned, seat.bytes_after = [], None
        seat.bytes_before = seat.link.sent, seat.link.received
        front = None if self._mixture is None else self._mixture.cuts[0].client
        state, tensors = states.pack(seat.move_state(seat.holds, self.sides.parameters, start.fresh_state, front))
        seat.holds = order.cut.client
        news, seat.trained = None if start.trained == seat.trained else start.trained, start.trained
        seat.groups = self.hyper_parameters()
        emulation = order.emulation.to_json() if order.emulation is not None else None
        new_epoch, seat.epoch = seat.epoch != about["epoch"], about["epoch"]
        more = {
            "new_epoch": new_epoch, "stream": len(self.seats) == 1,
            "cut": order.cut.to_json(), "emulation": emulation, "state": state,
            "fresh_state": start.fresh_state is not None, "trained": news,
            "arbited": self.grants.needed, "paced": self.paced, "groups": seat.groups,
            "batches": self.greetings[client]["batches"], "parts": order.parts, "compression": order.compression,
            "samples": order.samples, "ends": order.ends, **self.rules,
        }  # fmt: skip
        if self._weight_compression != "none":
            more["weight_compression"] = self._weight_compression
        own = resting(self.sides.parameters, order.cut.client)
        seat.resting = {name: start.aggregate[name] for name in own}
        more["sent"] = self._held[self._link_of(client)].lacks(order.cut.client, own, start.digests)
        weights = [tensor for name in more["sent"] for tensor in start.masters.sent(name)]
        # one client and the server share one random stream, as everything does in a plain run
        stream = [torch.get_rng_state()] if len(self.seats) == 1 else []
        self.hand_out(client, Frame(Kind.ROUND, [*weights, *tensors, *stream], {**about, **more}), "download")

    def arrival(self) -> tuple[int, Frame]:
        """The next smashed data: in the order in which they come, or of the client whose turn it is.

        Of steps that go back to their clients it is what comes again; their first half is served here, whoever's turn
        it is, so that nobody waits for a client that computes its last layers.
        """
        if self.kind.together:
            return self._arrival_of_all()
        turn = None if self._turns is None else next(self._turns)
        if turn is not None and self.seats[turn].owes_step:
            self._finish(self.inbox.next(Kind.NORM, link=turn))
        while True:
            anywhere = (Kind.THROUGH, Kind.UPLOAD) if self.streams_uploads else (Kind.THROUGH,)
            letter = self.inbox.next(
                Kind.SMASHED, Kind.LOSS, Kind.NORM, link=turn, anywhere=anywhere, first=self._first
            )
            if letter.frame.kind is Kind.NORM:
                self._finish(letter)
            elif letter.frame.kind is Kind.UPLOAD:
                self.take_upload(letter)
            elif letter.frame.kind is Kind.THROUGH:
                pass_through(self, letter)
            else:
                break
        seat = self.seats[letter.link]
        self.take_handover(letter.link)
        seat.count_arrival()
        about = letter.frame.about
        if about["index"] % self.rules["accumulate"] == 0 and about.get("part", 0) == 0:
            seat.gradients = {}
        first = seat.halfway.service if seat.halfway is not None else None
        last = about.get("part", 0) + 1 == about.get("parts", 1)
        seat.services.append(Service(letter.arrived, begun=time.monotonic(), first=first, last=last))
        return letter.link, restored(letter.frame)

    def side_of(self, letter: Letter) -> tuple[dict[str, Tensor], list[Tensor]]:
        """A client's side by name: what it sent, and where it says so, what it was told; and the tensors that follow.

        Where weights travel with fewer bits, it is the aggregate and the change that the client sent.

        What an upload says that it kept is not sent to it with the next round.
        """
        seat, kept = self.seats[letter.link], letter.frame.about.get("kept")
        if kept is not None:
            self._held[self._link_of(letter.link)].keep(kept)
        own = {name: seat.resting[name] for name in kept or ()}
        sent, tensors = [name for name in seat.cut.client if name not in own], letter.frame.tensors
        if self._masters is None:
            return {**own, **dict(zip(sent, tensors, strict=False))}, list(tensors[len(sent) :])
        rest = iter(tensors)
        return {**own, **{name: self._masters.model_of(name, rest) for name in sent}}, list(rest)

    def take_upload(self, letter: Letter) -> None:
        """Takes in what a client sent at its end of the round, where that is done one by one (`streams_uploads`)."""
        raise NotImplementedError

    def _arrival_of_all(self) -> tuple[int, Frame]:
        """The next local step of all clients that have one ahead, as if it were the first one's."""
        clients = [client for client, seat in enumerate(self.seats) if seat.ahead]
        letters = [self.inbox.next(Kind.SMASHED, link=client) for client in clients]
        begun = time.monotonic()
        for letter in letters:
            self.seats[letter.link].count_arrival()
            self.seats[letter.link].services.append(Service(letter.arrived, begun=begun))
        frames = [letter.frame for letter in letters]
        if self._mixture is None:
            self._joint = join(self.seats, clients, frames, self.seats[clients[0]].cut)
        else:
            self._joint = join_by_depth(self.seats, clients, frames, self._mixture)
        return self._joint.clients[0], self._joint.frame

    def forget_cuts(self) -> None:
        """Forgets what was kept of cuts: those of the next round may have the same names and be others."""
        for seat in self.seats:
            seat.forget_sides()

    def settle(self) -> None:
        """Takes the steps that wait for a client's norm."""
        for client, seat in enumerate(self.seats):
            if seat.owes_step:
                self._finish(self.inbox.next(Kind.NORM, link=client))

    def owe_step(self, client: int) -> None:
        """Puts the step behind the cut off until the client's norm comes; now, where rates change with every step."""
        self.seats[client].owes_step = True
        if self.paced or self.kind.one:
            self._finish(self.inbox.next(Kind.NORM, link=client))

    def _finish(self, letter: Letter) -> None:
        """Takes the step behind the cut that waited for the client's norm, with the rates that the client has."""
        seat = self.seats[letter.link]
        seat.owes_step = False
        groups = self.optimizer.param_groups
        now = [dict(group) for group in groups]
        with self.installed(letter.link):
            self.before_backward(letter.link)
            for group, values in zip(groups, seat.groups, strict=True):
                group.update(values)
            self._norm = letter.link, letter.frame.about["square"]
            self.take_step()
            for group, values in zip(groups, now, strict=True):
                group.update(values)
        self.drop_gradients(letter.link)

    def clip_by_norm(self, limit: float) -> None:
        """Scales the gradients of both sides so that their common norm is at most `limit`, as torch does."""
        client, square = self._norm
        gradients = [p.grad for p in self.sides.parameters.values() if p.grad is not None]
        norm = (square + sum(float(g.double().square().sum()) for g in gradients)) ** 0.5
        factor = min(1.0, limit / (norm + 1e-6))
        for gradient in gradients:
            gradient.mul_(factor)
        self.send(client, Frame(Kind.CLIP, about={"factor": factor}))

    def take_handover(self, client: int) -> None:
        """Takes in the optimizer state of what has moved to the server's side; it comes before anything else."""
        seat = self.seats[client]
        if seat.handover:
            frame = self.inbox.next(Kind.HANDOVER, link=client).frame
            for name, entries in states.unpack(frame.about["state"], frame.tensors).items():
                seat.state[self.sides.parameters[name]] = entries
            seat.handover = False

    @property
    def clients_ahead(self) -> bool:
        """Whether a client has local steps ahead, so that it computes or will as soon as it has its gradient."""
        return any(seat.ahead for seat in self.taking_part)

    def batch_of(self, client: int, frame: Frame) -> Any:
        """The user's batch as the server has it: labels and the like real, private leaves on the meta device.

        Raises:
            ClientFailedError: If the client's batches are not built like the sample batch.
        """
        cut, (leaves, spec) = self.seats[client].cut, self.sample
        if cut.name == END:
            return spec.build(leaves)
        halfway = self.seats[client].halfway
        if halfway is not None:
            return halfway.batch
        shapes = frame.about["shapes"]
        fits = len(shapes) == len(leaves) and all(
            isinstance(leaf, Tensor) == (shape is not None) and (shape is None or len(shape) == leaf.ndim)
            for leaf, shape in zip(leaves, shapes, strict=True)
        )
        if not fits:
            raise ClientFailedError(
                f"{self.seats[client].name} has batches of another structure than the server's sample batch: leaves of"
                f" shape {shapes} there. Every client's loader must yield batches built alike."
            )
        assert cut.border is not None
        tensors, plain = iter(frame.tensors[len(cut.border.tensors) :]), iter(frame.about["plain"])
        names, batch = spec.paths(), []
        for number, leaf in enumerate(leaves):
            if number in cut.sent:
                batch.append(next(tensors) if isinstance(leaf, Tensor) else next(plain))
            elif isinstance(leaf, Tensor):
                batch.append(torch.empty(shapes[number], dtype=leaf.dtype, device="meta"))
            else:
                batch.append(None if leaf is None else Withheld(names[number]))
        self.seats[client].tied = {name: next(tensors) for name in cut.tied}
        return spec.build(batch)

    @contextmanager
    def installed(self, client: int) -> Iterator[None]:
        """The client's server-side model and optimizer state are the module's while this is open. Nothing is copied."""
        seat, mine = self.seats[client], self.optimizer.state
        aggregate = {name: self.sides.real(name) for name in self.sides.buffers}
        aggregate |= {name: self.sides.parameters[name].data for name in seat.model if name in self.sides.parameters}
        aggregate |= {name: self.sides.parameters[name].data for name in seat.tied}
        for name, tensor in {**seat.model, **seat.tied}.items():
            self.sides.set(name, tensor)
        self.sides.place(seat.cut.away)
        self.optimizer.state = seat.state  # type: ignore[assignment]
        try:
            yield
        finally:
            self.sides.collect()
            seat.model = {n: self.sides.buffers.get(n, t) for n, t in seat.model.items()}
            seat.state, self.optimizer.state = self.optimizer.state, mine  # type: ignore[assignment]
            for name, tensor in aggregate.items():
                self.sides.set(name, tensor)
            self.sides.place()

    @contextmanager
    def stepping(self, client: int, frame: Frame, log: Callable[..., None]) -> Iterator[Passed]:
        """While this is open, ``training_step`` begins at the client's cut.

        Args:
            client: Whose step it is.
            frame: What it sent.
            log: Gets what is logged behind the cut.

        Yields:
            What goes back to the client at its second cut, once the step was there.
        """
        seat = self.seats[client]
        random, own_generator = seat.cut.random, torch.get_rng_state()
        server_side = seat.server_side(self.module)

        def send(gradients: list[Tensor]) -> None:
            self._stretch(seat, frame)
            state = [seat.generator] if seat.cut.back is None and seat.generator is not None else []
            if seat.cut.tied:
                self._answer = gradients, state  # until the gradients of tied weights are complete
            else:
                self._send_gradients(client, gradients, state)

        def send_newcomers(newcomer: int, tensors: list[Tensor]) -> None:
            self._stretch(seat, frame)
            self._send_to(newcomer, tensors, time.monotonic())

        def log_behind_the_cut(*args: Any, **kwargs: Any) -> None:
            if server_side.cut_was_reached:
                log(*args, **kwargs)

        def at_cut() -> None:
            if random:
                torch.set_rng_state(frame.tensors[-1])

        outputs = frame.about.get("outputs", seat.outputs)
        if self._joint is None:
            seat.outputs = outputs
        assert seat.cut.border is not None
        crossing = frame.tensors[: len(seat.cut.border.tensors)]
        notes = frame.about.get("notes", ())
        entering = [] if self._joint is None else self._joint.entering(send_newcomers)
        self.module.__dict__["log"] = log_behind_the_cut
        try:
            with server_side.receiving(crossing, outputs, notes, send, at_cut, entering) as passed:
                yield passed
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"This was the server's side of {seat.name}'s step.")
            raise
        finally:
            del self.module.__dict__["log"]
        seat.generator = torch.get_rng_state() if random else None
        if random:
            torch.set_rng_state(own_generator)

    @property
    def joint(self) -> Joint | None:
        """The local step of all clients that is being served; None: it is one client's."""
        return self._joint

    @contextmanager
    def keeping_buffers(self) -> Iterator[None]:
        """While this is open, a step may change buffers; afterwards they are what they were. With a model installed."""
        self.sides.collect()
        before = {name: buffer.clone() for name, buffer in self.sides.buffers.items()}
        try:
            yield
        finally:
            self.sides.collect()
            for name, buffer in before.items():
                self.sides.set(name, buffer)

    def _send_gradients(self, client: int, gradients: list[Tensor], state: list[Tensor]) -> None:
        now = time.monotonic()
        own = [(client, [*gradients, *state])] if self._joint is None else self._joint.divided(gradients, state)
        for receiver, tensors in own:
            self._send_to(receiver, tensors, now)

    def _send_to(self, client: int, tensors: Sequence[Tensor], now: float) -> None:
        seat = self.seats[client]
        seat.services[-1].sent = now
        frame = Frame(Kind.GRADIENT, tensors, self._news(seat))
        if seat.orders is not None and seat.orders.compression == "int8" and seat.cut.border is not None:
            frame, lost, norm = compressed(frame, len(seat.cut.border.tensors))
            seat.lost, seat.norm = seat.lost + lost, seat.norm + norm
        self.hand_out(client, frame, wait=False)  # fresh tensors, and the step goes on here

    def _stretch(self, seat: Seat, frame: Frame) -> None:
        """Waits until the emulated server would be done: with each client's part, where the step is one of several."""
        if self._joint is None:
            stretch(seat, seat.services[-1], frame, forward=False)
            return
        seconds = sum(
            (orders.server_seconds or 0.0) * samples
            for client, samples in zip(self._joint.clients, self._joint.samples, strict=True)
            if (orders := self.seats[client].orders) is not None
        )
        time.sleep(max(0.0, seat.services[-1].begun + seconds - time.monotonic()))

    def before_backward(self, client: int) -> None:
        """Gives the module the gradients that this client has accumulated so far."""
        gradients = self.seats[client].gradients
        for name, parameter in self.sides.parameters.items():
            parameter.grad = gradients.get(name)

    def after_backward(self, client: int) -> None:
        """Sends what had to wait for the end of the backward pass: the gradients of tied weights."""
        if self._answer is None:
            return
        gradients, state = self._answer
        self._answer = None
        for name in self.seats[client].cut.tied:
            parameter = self.sides.parameters[name]
            gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            parameter.grad = None
        self._send_gradients(client, gradients, state)

    def keep_gradients(self, client: int) -> None:
        """Puts the module's gradients aside for this client: more are to come, or its norm."""
        parameters = self.sides.parameters.items()
        self.seats[client].gradients = {name: p.grad for name, p in parameters if p.grad is not None}
        for _, parameter in parameters:
            parameter.grad = None

    def drop_gradients(self, client: int) -> None:
        """Forgets this client's gradients: its step is done."""
        self.seats[client].gradients = {}
        for parameter in self.sides.parameters.values():
            parameter.grad = None

    def acknowledge(self, client: int) -> None:
        """Lets a client that ran the whole step itself go on, where it waits for the next hyper-parameters."""
        if self.paced:
            self.send(client, Frame(Kind.GRADIENT, (), self._news(self.seats[client])))

    def _news(self, seat: Seat) -> dict[str, Any]:
        """Hyper-parameters, where they are not those that the client had last."""
        groups = self.hyper_parameters()
        if groups == seat.groups:
            return {}
        seat.groups = groups
        return {"groups": groups}

    def hyper_parameters(self) -> list[dict[str, Any]]:
        """Numbers of the optimizer's groups (rate, momentum, …); clients step with the same."""
        plain = (bool, int, float, tuple, type(None))
        return [{k: v for k, v in g.items() if isinstance(v, plain)} for g in self.optimizer.param_groups]

    def served(self, client: int) -> bool:
        """Notes that an arrival is done; True if it was the round's last."""
        now = time.monotonic()
        for own in [client] if self._joint is None else self._joint.clients:
            service = self.seats[own].services[-1]
            service.done = now
            service.sent = service.sent or now
        self._joint = None
        self.seats[client].halfway, self.seats[client].tied = None, {}
        return not self.clients_ahead

    @property
    def in_mid_round(self) -> bool:
        """Whether some, but not all arrivals of the round have been served."""
        return self.clients_ahead and any(seat.services for seat in self.taking_part)

    def stop(self) -> None:
        """An orderly end: says stop, and waits for every client's goodbye.

        Raises:
            ClientFailedError: If a client failed instead.
        """
        self.grants.begin(None)
        for link in range(len(self.links)):
            self._send(link, Frame(Kind.STOP))
        for _ in self.links:
            self.inbox.next(Kind.GOODBYE)
        self._ended.set()
        self.join(timeout=5)
