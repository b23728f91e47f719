"""The server's half of the round: arrivals in, gradients out, whole models aggregated."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import TreeSpec

from lightning_edgesplit.errors import ClientFailedError, ClientLostError
from lightning_edgesplit.runtime.aggregation import weighted_mean
from lightning_edgesplit.runtime.wire import Frame, Kind, Link
from lightning_edgesplit.splitting import END, Cut
from lightning_edgesplit.splitting.batch import unflatten
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import ServerSide


class Seat:
    """What the server keeps of one client: its link, its cut, its server-side model and optimizer state."""

    def __init__(self, link: Link, cut: Cut, module: nn.Module) -> None:
        self.link, self.cut = link, cut
        self.state: dict[Any, Any] = defaultdict(dict)
        self.model: dict[str, Tensor] = {}
        self.samples = 0
        self.side = None if cut.name == END else ServerSide(module, cut.path)


class Server:
    """Serves the clients' steps with one server-side model per client, and aggregates (SplitFed-V1, EdgeSplit).

    Args:
        module: The LightningModule that the Trainer trains.
        optimizer: Its optimizer.
        links: One per client.
        cuts: One per client.
        sample: Leaves and structure of a sample batch.
        heartbeat: Seconds between two signs of life.

    Attributes:
        sides: The module's tensors; between steps they hold the last aggregate.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        links: Sequence[Link],
        cuts: Sequence[Cut],
        sample: tuple[list[Any], TreeSpec],
        heartbeat: float,
    ) -> None:
        self.module, self.optimizer, self.sample = module, optimizer, sample
        self.sides = Sides(module)
        self.seats = [Seat(link, cut, module) for link, cut in zip(links, cuts, strict=True)]
        self._inbox: queue.SimpleQueue[tuple[int, Frame | Exception]] = queue.SimpleQueue()
        self._held: list[tuple[int, Frame]] = []
        self._ahead = 0
        self._threads = [
            threading.Thread(target=self._receive, args=(k,), name=f"client {k}", daemon=True)
            for k in range(len(self.seats))
        ]
        for thread in self._threads:
            thread.start()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, args=(heartbeat,), name="signs of life", daemon=True).start()

    def _beat(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            for seat in self.seats:
                try:
                    seat.link.send(Frame(Kind.ALIVE))
                except ClientLostError:
                    return  # the thread that receives from this client has the same news, and reports it

    def close(self) -> None:
        """Ends the signs of life; the clients give up, or are ended by their launcher."""
        self._ended.set()

    def _receive(self, client: int) -> None:
        try:
            while True:
                frame = self.seats[client].link.receive()
                self._inbox.put((client, frame))
                if frame.kind in (Kind.GOODBYE, Kind.FAILED):
                    return
        except Exception as error:  # told to the thread that waits for this client
            self._inbox.put((client, error))

    def _next(self, *kinds: Kind) -> tuple[int, Frame]:
        """The next frame of one of these kinds; others are held back in their order."""
        for at, (client, frame) in enumerate(self._held):
            if frame.kind in kinds:
                del self._held[at]
                return client, frame
        while True:
            client, got = self._inbox.get()
            if isinstance(got, Exception):
                raise got
            if got.kind is Kind.FAILED:
                raise ClientFailedError(f"client {client} failed: {got.about['error']}\n{got.about['traceback']}")
            if got.kind in kinds:
                return client, got
            self._held.append((client, got))

    def start_round(self, steps: Sequence[int], new_epoch: bool) -> None:
        """Hands every client the aggregate of its side, and tells it how many local steps to take."""
        self._ahead = sum(steps)
        for seat, count in zip(self.seats, steps, strict=True):
            seat.model = {n: self.sides.real(n).detach().clone() for n in self.sides.names if n not in seat.cut.client}
            weights = [self.sides.real(name).detach() for name in seat.cut.client]
            about = {"cut": seat.cut.to_json(), "steps": count, "new_epoch": new_epoch}
            seat.samples = 0
            seat.link.send(Frame(Kind.ROUND, weights, about))

    def arrival(self) -> tuple[int, Frame]:
        """The next smashed data, in the order in which they come."""
        return self._next(Kind.SMASHED)

    def batch_of(self, client: int, frame: Frame) -> Any:
        """The user's batch as the server has it: labels and the like real, private leaves on the meta device."""
        cut, (leaves, spec) = self.seats[client].cut, self.sample
        sent = iter(frame.tensors[1:])
        batch = []
        for number, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor) or cut.name == END:
                batch.append(leaf)
            elif number in cut.sent:
                batch.append(next(sent))
            else:
                batch.append(torch.empty(frame.about["shapes"][number], dtype=leaf.dtype, device="meta"))
        return unflatten(batch, spec)

    @contextmanager
    def installed(self, client: int) -> Iterator[None]:
        """The client's server-side model and optimizer state are the module's while this is open. Nothing is copied."""
        seat, mine = self.seats[client], self.optimizer.state
        aggregate = {name: self.sides.real(name) for name in self.sides.buffers}
        aggregate |= {name: self.sides.parameters[name].data for name in seat.model if name in self.sides.parameters}
        for name, tensor in seat.model.items():
            self.sides.set(name, tensor)
        self.sides.place(set(seat.cut.client) - set(seat.cut.both))
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
    def stepping(self, client: int, frame: Frame, batch: Any) -> Iterator[None]:
        """While this is open, ``training_step`` begins at the client's cut."""
        seat = self.seats[client]
        assert seat.side is not None
        own_generator = torch.get_rng_state()

        def send(gradient: Tensor) -> None:
            state = [after[0]] if seat.cut.random else []
            seat.link.send(Frame(Kind.GRADIENT, [gradient, *state], {"groups": self.hyper_parameters()}))

        after: list[Tensor] = []

        def at_cut() -> None:
            if seat.cut.random:
                torch.set_rng_state(frame.tensors[-1])

        with seat.side.receiving(batch, frame.tensors[0], send, at_cut):
            yield
        after.append(torch.get_rng_state())
        if seat.cut.random:
            torch.set_rng_state(own_generator)

    def acknowledge(self, client: int) -> None:
        """Lets a client that ran the whole step itself go on."""
        self.seats[client].link.send(Frame(Kind.GRADIENT, (), {"groups": self.hyper_parameters()}))

    def hyper_parameters(self) -> list[dict[str, Any]]:
        """Numbers of the optimizer's groups (rate, momentum, …); clients step with the same."""
        plain = (bool, int, float, tuple, type(None))
        return [{k: v for k, v in g.items() if isinstance(v, plain)} for g in self.optimizer.param_groups]

    def served(self, client: int, samples: int) -> bool:
        """Counts an arrival that is done; True if it was the round's last."""
        self.seats[client].samples += samples
        self._ahead -= 1
        return not self._ahead

    @property
    def in_mid_round(self) -> bool:
        """Whether some, but not all arrivals of the round have been served."""
        return self._ahead > 0 and any(seat.samples for seat in self.seats)

    def aggregate(self) -> None:
        """Ends a round: waits for the clients' sides, and lets the module hold the weighted mean of whole models."""
        self._mean_of(Kind.UPLOAD, list(range(len(self.seats))))

    def snapshot(self) -> None:
        """Lets the module hold the mean of the models as they are in mid-round; the clients are not disturbed."""
        for seat in self.seats:
            seat.link.send(Frame(Kind.SNAPSHOT))
        self._mean_of(Kind.SNAPSHOT, list(range(len(self.seats))))

    def _mean_of(self, kind: Kind, clients: list[int]) -> None:
        uploads: dict[int, dict[str, Tensor]] = {}
        while len(uploads) < len(clients):
            client, frame = self._next(kind)
            uploads[client] = dict(zip(self.seats[client].cut.client, frame.tensors, strict=True))
        samples = [seat.samples for seat in self.seats]
        if not any(samples):
            return
        with torch.no_grad():
            for name in self.sides.names:
                whole = [uploads[k].get(name, self.seats[k].model.get(name)) for k in clients]
                self.sides.set(name, weighted_mean([x for x in whole if x is not None], samples))

    def stop(self) -> None:
        """An orderly end: says stop, and waits for every client's goodbye.

        Raises:
            ClientFailedError: If a client failed instead.
        """
        for seat in self.seats:
            seat.link.send(Frame(Kind.STOP))
        for _ in self.seats:
            self._next(Kind.GOODBYE)
        self.close()
        for thread in self._threads:
            thread.join()
