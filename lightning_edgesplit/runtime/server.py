"""The server's half of the round: arrivals in, gradients out, whole models aggregated."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from lightning_edgesplit.errors import ClientFailedError, ClientLostError
from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.aggregation import weighted_mean
from lightning_edgesplit.runtime.inbox import Inbox, Letter
from lightning_edgesplit.runtime.seat import Halfway, Orders, Seat, Service
from lightning_edgesplit.runtime.wire import Frame, Kind, Link
from lightning_edgesplit.splitting import END, Cut
from lightning_edgesplit.splitting.batch import Withheld, step_arguments
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import Passed, handed_back
from lightning_edgesplit.splitting.tree import Structure


class Server:
    """Serves the clients' steps with one server-side model per client, and aggregates (SplitFed-V1, EdgeSplit).

    Args:
        module: The LightningModule that the Trainer trains.
        optimizer: Its optimizer.
        links: One per client.
        names: One per client.
        sample: Leaves and structure of a sample batch.
        heartbeat: Seconds between two signs of life.
        optimizer_state: What becomes of the optimizer's state at the end of a round: ``"keep"`` leaves it with its
            client and moves it with its parameter, ``"average"`` averages it with the weights, ``"reset"`` forgets it.
        in_order: Serve clients in the order of their numbers within each local step, instead of as they come.
        take_step: Takes one step of the optimizer with the gradients that are there, hooks and clipping included.
        paced: Whether hyper-parameters change within a round, so that every client waits for the next ones.
        rules: What clients are told with every round: ``accumulate``, ``clip``.
        context: Opened around a forward pass between two cuts (mixed precision).

    Attributes:
        sides: The module's tensors; between steps they hold the last aggregate.
        greetings: What every client said of its data: ``batches``, ``samples``, ``batch``.
        uploads: The clients' last letters of the round that `aggregate` ended.
        began: When the round began, monotonic clock, seconds.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        links: Sequence[Link],
        names: Sequence[str],
        sample: tuple[list[Any], Structure],
        heartbeat: float,
        optimizer_state: str = "keep",
        in_order: bool = False,
        paced: bool = False,
        take_step: Callable[[], None] = lambda: None,
        rules: Mapping[str, Any] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.module, self.optimizer, self.sample = module, optimizer, sample
        self.optimizer_state, self.in_order, self.paced = optimizer_state, in_order, paced
        self.context = context
        self.take_step, self.rules = take_step, rules or {"accumulate": 1, "clip": None}
        self.sides = Sides(module)
        self.seats = [Seat(name, link) for name, link in zip(names, links, strict=True)]
        self.inbox = Inbox(links, names)
        self.uploads: list[Letter] = []
        self.began = 0.0
        self._turns: Iterator[int] = iter(())
        self._mean_state: states.State = {}
        self._norm = 0, 0.0
        self._answer: tuple[list[Tensor], list[Tensor]] | None = None
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, args=(heartbeat,), name="signs of life", daemon=True)
        self._pulse.start()
        try:
            self.greetings = [self.inbox.next(Kind.HELLO, link=k).frame.about for k in range(len(self.seats))]
        except BaseException:
            self._ended.set()
            raise

    def _beat(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            for seat in self.seats:
                try:
                    seat.link.send(Frame(Kind.ALIVE))
                except ClientLostError:
                    return  # the thread that receives from this client has the same news, and reports it

    def abandon(self) -> None:
        """Ends the signs of life after a failure, and lets clients that still listen end as well."""
        self._ended.set()
        for seat in self.seats:
            with suppress(ClientLostError):  # the run ends for another reason, which is already on its way to the user
                seat.link.send(Frame(Kind.STOP))

    def join(self, timeout: float) -> None:
        """Waits for the threads of a server that was stopped or abandoned.

        Python must not end while one is inside gloo: that aborts the process.
        """
        self._pulse.join(timeout)
        self.inbox.join(timeout)

    def _send(self, client: int, frame: Frame) -> None:
        try:
            self.seats[client].link.send(frame)
        except ClientLostError as error:
            raise self.inbox.explain(client, error) from error

    # ---- a round -----------------------------------------------------------------------------------------------------

    def start_round(self, orders: Sequence[Orders], **about: Any) -> None:
        """Hands every client the aggregate of its side, its cut and its local steps.

        Args:
            orders: One per client.
            about: More for every client: ``epoch``, ``global_step``.
        """
        self.began = time.monotonic()
        for client, (seat, order) in enumerate(zip(self.seats, orders, strict=True)):
            seat.left, seat.services = order.steps, []
            if not order.steps:
                seat.orders = None if seat.orders is None else replace(seat.orders, steps=0)
                continue
            before, seat.orders, seat.returned = seat.orders, order, []
            client_side = set(order.cut.client)
            seat.model = {n: self.sides.real(n).detach().clone() for n in self.sides.names if n not in client_side}
            seat.bytes_before = seat.link.sent, seat.link.received
            moved = self._move_state(seat, before.cut if before is not None else None)
            state, tensors = states.pack(moved)
            seat.groups = self.hyper_parameters()
            emulation = order.emulation.to_json() if order.emulation is not None else None
            new_epoch, seat.epoch = seat.epoch != about["epoch"], about["epoch"]
            more = {
                "new_epoch": new_epoch, "stream": len(self.seats) == 1,
                "cut": order.cut.to_json(), "steps": order.steps, "emulation": emulation, "state": state,
                "fresh_state": self.optimizer_state != "keep", "upload_state": self.optimizer_state == "average",
                "paced": self.paced, "groups": seat.groups, "batches": self.greetings[client]["batches"], **self.rules,
            }  # fmt: skip
            weights = [self.sides.real(name).detach() for name in order.cut.client]
            # one client and the server share one random stream, as everything does in a plain run
            stream = [torch.get_rng_state()] if len(self.seats) == 1 else []
            self._send(client, Frame(Kind.ROUND, [*weights, *tensors, *stream], {**about, **more}))
        steps = max(order.steps for order in orders)
        self._turns = iter([k for step in range(steps) for k, order in enumerate(orders) if step < order.steps])

    def _move_state(self, seat: Seat, before: Cut | None) -> states.State:
        """The optimizer state that goes to the client with the round; what stays is in the seat."""
        parameters = self.sides.parameters
        if self.optimizer_state == "keep":
            old = set(before.client) if before is not None else set()
            seat.handover = any(n in parameters for n in old - set(seat.cut.client))
            gained = [name for name in seat.cut.client if name not in old]
            moved = states.read(seat.state, parameters, gained)
            for name in moved:
                del seat.state[parameters[name]]
            return moved
        seat.state = defaultdict(dict)
        moved = {}
        for name, entries in self._mean_state.items():
            own = {key: v.clone() if isinstance(v, Tensor) else v for key, v in entries.items()}
            if name in seat.cut.client:
                moved[name] = own
            else:
                seat.state[parameters[name]] = own
        return moved

    def arrival(self) -> tuple[int, Frame]:
        """The next smashed data: in the order in which they come, or of the client whose turn it is.

        Of steps that go back to their clients it is what comes again; their first half is served here, whoever's turn
        it is, so that nobody waits for a client that computes its last layers.
        """
        turn = next(self._turns) if self.in_order else None
        if turn is not None and self.seats[turn].owes_step:
            self._finish(self.inbox.next(Kind.NORM, link=turn))
        while True:
            letter = self.inbox.next(Kind.SMASHED, Kind.LOSS, Kind.NORM, link=turn, anywhere=(Kind.THROUGH,))
            if letter.frame.kind is Kind.NORM:
                self._finish(letter)
            elif letter.frame.kind is Kind.THROUGH:
                self._pass_through(letter)
            else:
                break
        seat = self.seats[letter.link]
        self._take_handover(letter.link)
        seat.left -= 1
        if letter.frame.about["index"] % self.rules["accumulate"] == 0:
            seat.gradients = {}
        first = seat.halfway.service if seat.halfway is not None else None
        seat.services.append(Service(letter.arrived, begun=time.monotonic(), first=first))
        return letter.link, letter.frame

    def _pass_through(self, letter: Letter) -> None:
        """Runs the layers between a client's two cuts, and sends it what they give."""
        client, frame, seat = letter.link, letter.frame, self.seats[letter.link]
        back = seat.cut.back
        assert back is not None
        service = Service(letter.arrived, begun=time.monotonic())
        batch = self.batch_of(client, frame)
        buffers = {name: seat.model[name].clone() for name in self.sides.buffers if name in seat.model}
        logged: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with (
            self.installed(client),
            saved_tensors_hooks(lambda tensor: tensor.data, lambda tensor: tensor),
            self.stepping(client, frame, lambda *args, **kwargs: logged.append((args, kwargs))) as passed,
            torch.enable_grad(),
            self.context(),
        ):
            self.module.training_step(*step_arguments(self.module, batch, frame.about["index"]))  # type: ignore[operator]
        seat.halfway = Halfway(service, batch, passed, buffers, logged)
        tensors = [tensor.detach() for tensor in passed.tensors]
        about: dict[str, Any] = {"notes": passed.notes} if back.reads else {}
        if seat.cut.random:
            assert seat.generator is not None
            tensors.append(seat.generator)
        if passed.outputs != seat.returned:
            about["outputs"] = seat.returned = passed.outputs
        self._stretch(seat, service, frame, forward=True)
        service.sent = time.monotonic()
        self._send(client, Frame(Kind.BACK, tensors, about))
        service.done = time.monotonic()

    @staticmethod
    def _stretch(seat: Seat, service: Service, frame: Frame, forward: bool) -> None:
        """Waits until the emulated server would be done."""
        if seat.orders is not None and seat.orders.server_seconds is not None:
            share = seat.orders.server_forward if forward else 1 - seat.orders.server_forward
            seconds = share * seat.orders.server_seconds * frame.about["samples"]
            time.sleep(max(0.0, service.begun + seconds - time.monotonic()))

    def loss_of(self, client: int, frame: Frame) -> Tensor:
        """The loss that a client computed itself, as a tensor whose backward pass is the server's part of the step."""
        seat = self.seats[client]
        if seat.cut.back is None:
            return torch.tensor(frame.about["loss"], requires_grad=True)
        assert seat.halfway is not None
        return handed_back(frame.about["loss"], frame.tensors, seat.cut.back, seat.halfway.passed.tensors)

    def owe_step(self, client: int) -> None:
        """Puts the step behind the cut off until the client's norm comes; now, where rates change with every step."""
        self.seats[client].owes_step = True
        if self.paced:
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
        self._send(client, Frame(Kind.CLIP, about={"factor": factor}))

    def _take_handover(self, client: int) -> None:
        """The optimizer state of what has moved to the server's side; the client sends it before anything else."""
        seat = self.seats[client]
        if seat.handover:
            frame = self.inbox.next(Kind.HANDOVER, link=client).frame
            for name, entries in states.unpack(frame.about["state"], frame.tensors).items():
                seat.state[self.sides.parameters[name]] = entries
            seat.handover = False

    @property
    def clients_ahead(self) -> bool:
        """Whether a client has local steps ahead, so that it computes or will as soon as it has its gradient."""
        return any(seat.left for seat in self.seats)

    def batch_of(self, client: int, frame: Frame) -> Any:
        """The user's batch as the server has it: labels and the like real, private leaves on the meta device.

        Raises:
            ClientFailedError: If the client's batches are not built like the sample batch.
        """
        cut, (leaves, spec) = self.seats[client].cut, self.sample
        if cut.name == END:
            return spec.build(leaves)
        if frame.kind is Kind.LOSS:
            halfway = self.seats[client].halfway
            assert halfway is not None
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
            self._stretch(seat, seat.services[-1], frame, forward=False)
            state = [seat.generator] if random and seat.cut.back is None and seat.generator is not None else []
            if seat.cut.tied:
                self._answer = gradients, state  # until the gradients of tied weights are complete
            else:
                self._send_gradients(client, gradients, state)

        def log_behind_the_cut(*args: Any, **kwargs: Any) -> None:
            if server_side.cut_was_reached:
                log(*args, **kwargs)

        def at_cut() -> None:
            if random:
                torch.set_rng_state(frame.tensors[-1])

        seat.outputs = frame.about.get("outputs", seat.outputs)
        assert seat.cut.border is not None
        crossing = frame.tensors[: len(seat.cut.border.tensors)]
        notes = frame.about.get("notes", ())
        self.module.__dict__["log"] = log_behind_the_cut
        try:
            with server_side.receiving(crossing, seat.outputs, notes, send, at_cut) as passed:
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

    def _send_gradients(self, client: int, gradients: list[Tensor], state: list[Tensor]) -> None:
        self.seats[client].services[-1].sent = time.monotonic()
        self._send(client, Frame(Kind.GRADIENT, [*gradients, *state], self._news(self.seats[client])))

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
            self._send(client, Frame(Kind.GRADIENT, (), self._news(self.seats[client])))

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
        service = self.seats[client].services[-1]
        service.done = time.monotonic()
        service.sent = service.sent or service.done
        self.seats[client].halfway, self.seats[client].tied = None, {}
        return not any(seat.left for seat in self.seats)

    @property
    def in_mid_round(self) -> bool:
        """Whether some, but not all arrivals of the round have been served."""
        return any(seat.left for seat in self.seats) and any(seat.services for seat in self.seats)

    # ---- whole models ------------------------------------------------------------------------------------------------

    def aggregate(self) -> None:
        """Ends a round: waits for the clients' sides, and lets the module hold the weighted mean of whole models."""
        self._settle()
        self.uploads = self._letters(Kind.UPLOAD)
        if len(self.seats) == 1:
            torch.set_rng_state(self.uploads[0].frame.tensors[-2])
        self._take_mean(self.uploads)
        if self.optimizer_state == "average":
            self._mean_state = self._mean_of_states(self.uploads)

    def snapshot(self) -> None:
        """Lets the module hold the mean of the models as they are in mid-round; the clients are not disturbed."""
        self._take_mean(self._snapshots(weights=True, state=False))

    def gather_optimizer_state(self) -> None:
        """Lets the Trainer's optimizer hold the weighted mean of the clients' states, as a checkpoint wants it."""
        letters = self._snapshots(weights=False, state=True)
        mean = self._mean_of_states(letters)
        self.optimizer.state = defaultdict(dict, {self.sides.parameters[name]: own for name, own in mean.items()})

    def _settle(self) -> None:
        """Takes the steps that wait for a client's norm."""
        for client, seat in enumerate(self.seats):
            if seat.owes_step:
                self._finish(self.inbox.next(Kind.NORM, link=client))

    def _snapshots(self, weights: bool, state: bool) -> list[Letter]:
        self._settle()
        for client in self._active():
            self._send(client, Frame(Kind.SNAPSHOT, about={"weights": weights, "state": state, "position": False}))
        return self._letters(Kind.SNAPSHOT)

    def positions(self) -> list[dict[str, Any]]:
        """What every client needs to go on later as if nothing had happened: optimizer state, data, random streams.

        Exact between two rounds; in mid-round it is where the clients are.
        """
        self._settle()
        order = {"weights": False, "state": True, "position": True}
        for client in range(len(self.seats)):
            self._take_handover(client)
            self._send(client, Frame(Kind.SNAPSHOT, about=order))
        letters = sorted((self.inbox.next(Kind.SNAPSHOT) for _ in self.seats), key=lambda letter: letter.link)
        positions = []
        for seat, letter in zip(self.seats, letters, strict=True):
            about, rest = letter.frame.about, iter(letter.frame.tensors)
            own = states.unpack(about["state"], rest)
            behind = states.read(seat.state, self.sides.parameters, self.sides.parameters)
            copied = {
                name: {key: v.clone() if isinstance(v, Tensor) else v for key, v in entries.items()}
                for name, entries in {**behind, **own}.items()
            }
            positions.append({"name": seat.name, "state": copied, "position": about["position"], "tensors": list(rest)})
        if len(positions) == 1 and not self.in_mid_round:
            positions[0]["tensors"][0] = torch.get_rng_state()
        return positions

    def restore(self, positions: Sequence[dict[str, Any]] | None, epoch: int | None) -> None:
        """Goes on where `positions` were noted.

        Args:
            positions: What `positions` returned; None: every client takes the optimizer's state, with data from their
                beginning.
            epoch: The epoch that is under way; None: the next round begins one.
        """
        whole = states.read(self.optimizer.state, self.sides.parameters, self.sides.parameters)
        if self.optimizer_state == "average":
            self._mean_state = whole
        for client, seat in enumerate(self.seats):
            own = whole if positions is None else positions[client]["state"]
            seat.state = defaultdict(dict)
            for name, entries in own.items():
                seat.state[self.sides.parameters[name]] = {
                    key: v.clone() if isinstance(v, Tensor) else v for key, v in entries.items()
                }
            if positions is not None:
                seat.epoch = epoch
                if len(self.seats) == 1:
                    torch.set_rng_state(positions[0]["tensors"][0])
                about = positions[client]["position"]
                self._send(client, Frame(Kind.RESTORE, positions[client]["tensors"], about))

    def _active(self) -> list[int]:
        return [client for client, seat in enumerate(self.seats) if seat.active]

    def _letters(self, kind: Kind) -> list[Letter]:
        """One letter of that kind from every client that takes part, in the order of their numbers."""
        active = self._active()
        for client in active:
            self._take_handover(client)  # of those that have no local step yet
        letters = [self.inbox.next(kind) for _ in active]
        return sorted(letters, key=lambda letter: letter.link)

    def _take_mean(self, letters: Sequence[Letter]) -> None:
        samples = [letter.frame.about["samples"] for letter in letters]
        if not any(samples):
            return
        models = [
            # of the client's tensors more may follow than its weights
            {**seat.model, **seat.buffers_before, **dict(zip(seat.cut.client, letter.frame.tensors, strict=False))}
            for letter in letters
            for seat in (self.seats[letter.link],)
        ]
        with torch.no_grad():
            for name in self.sides.names:
                self.sides.set(name, weighted_mean([model[name] for model in models], samples))

    def _mean_of_states(self, letters: Sequence[Letter]) -> states.State:
        whole: list[states.State] = []
        for letter in letters:
            seat, about = self.seats[letter.link], letter.frame.about
            tensors = letter.frame.tensors[len(seat.cut.client) if letter.frame.kind is Kind.UPLOAD else 0 :]
            own = states.read(seat.state, self.sides.parameters, self.sides.parameters)
            whole.append({**own, **states.unpack(about["state"], tensors)})
        return states.weighted_mean_of_states(whole, [letter.frame.about["samples"] for letter in letters])

    def stop(self) -> None:
        """An orderly end: says stop, and waits for every client's goodbye.

        Raises:
            ClientFailedError: If a client failed instead.
        """
        for client in range(len(self.seats)):
            self._send(client, Frame(Kind.STOP))
        for _ in self.seats:
            self.inbox.next(Kind.GOODBYE)
        self._ended.set()
        self.join(timeout=5)
