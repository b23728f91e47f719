"""What the server keeps of one client: its orders for a round, its model behind the cut, and when it was served."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.throttle import Emulation
from lightning_edgesplit.runtime.trained import Trained
from lightning_edgesplit.scheduling.links import Transfer
from lightning_edgesplit.splitting import Cut
from lightning_edgesplit.splitting.step import Passed, ServerSide


@dataclass(frozen=True)
class Orders:
    """What one client is told at the start of a round.

    Attributes:
        cut: Its cut in this round.
        parts: For each local step, the micro-batches that its batch is divided into, all of them under way at once.
        compression: How smashed data and gradients go over the links.
        emulation: How fast to be; None: as fast as it can.
        server_seconds: Emulated seconds per sample of the server's part; None: not emulated.
        server_forward: The fraction of them before the step goes back to the client (`Cut.back`).
        samples: Samples of each local step, to be dealt anew; empty: the loader's own batches.
        ends: Whether that is the end of its data in this epoch, where they are dealt anew.
    """

    cut: Cut
    parts: tuple[int, ...]
    compression: str = "none"
    emulation: Emulation | None = None
    server_seconds: float | None = None
    server_forward: float = 0.0
    samples: tuple[int, ...] = ()
    ends: bool = False

    @property
    def steps(self) -> int:
        """Local steps to take."""
        return len(self.parts)


@dataclass
class Service:
    """When an arrival was served, monotonic clock, seconds: arrived, begun, answer sent, done.

    Where a step comes twice, since the client runs the last layers, `first` says when it was here before; `last` is
    false for a micro-batch after which more of the same batch come.
    """

    arrived: float
    begun: float
    sent: float = 0.0
    done: float = 0.0
    first: Service | None = None
    last: bool = True

    @property
    def visits(self) -> list[Service]:
        """This, and the one before it if there was one, in their order."""
        return [self] if self.first is None else [self.first, self]


@dataclass
class Halfway:
    """What the server keeps of a step that went back to the client, until it comes again.

    Attributes:
        service: When it was here.
        batch: The batch as the server has it.
        passed: What went to the client, attached to the graph.
        buffers: The seat's buffers as they were before the step, by name.
        logged: Arguments of the calls of ``self.log`` between the cuts.
    """

    service: Service
    batch: Any
    passed: Passed
    buffers: dict[str, Tensor]
    logged: list[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass
class Behind:
    """A server-side model: its tensors by name, the optimizer's state, and gradients that wait for their step.

    Attributes:
        begins_as: What the model is a copy of as soon as somebody asks for it; None: it has been made.
    """

    begins_as: dict[str, Tensor] | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    state: dict[Any, Any] = field(default_factory=lambda: defaultdict(dict))
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def model(self) -> dict[str, Tensor]:
        """The tensors by name."""
        if self.begins_as is not None:
            self.model = {name: tensor.clone() for name, tensor in self.begins_as.items()}
        return self.own

    @model.setter
    def model(self, model: dict[str, Tensor]) -> None:
        self.own, self.begins_as = model, None


class Seat:
    """What the server keeps of one client: link and orders, its server-side model and optimizer state, its times."""

    def __init__(self, name: str, link: Link, shared: Behind | None = None) -> None:
        self.name, self.link = name, link
        self.orders: Orders | None = None
        self.behind, self._shares = shared or Behind(), shared is not None
        self._restored: states.State = {}
        self.tied: dict[str, Tensor] = {}
        self.owes_step = False
        self.outputs: list[list[Any]] = []
        self.returned: Sequence[Sequence[Any]] = []
        self.generator: Tensor | None = None
        self.halfway: Halfway | None = None
        self._sides: dict[str, ServerSide] = {}
        self.ahead: deque[int] = deque()  # arrivals that are to come, of each local step that is not complete
        self.epoch: int | None = None
        self.handover = False
        self.groups: list[dict[str, Any]] = []
        self.trained: Trained | None = None  # as the client was told last
        self.services: list[Service] = []
        self.lost = self.norm = 0.0  # of compressed gradients, squared
        self.grants: list[Transfer] = []  # of what it has sent in this round, in that order
        self.handed_out: list[Transfer] = []  # of what was sent to it
        self.began = 0.0  # when its round began, monotonic clock, seconds
        self.bytes_before = (0, 0)
        self.bytes_after: tuple[int, int] | None = None  # where the link has gone over to another client
        self.resting: dict[str, Tensor] = {}  # what it began the round with of frozen parameters and buffers
        self.holds: tuple[str, ...] = ()  # names of what its process has the optimizer state of

    @property
    def model(self) -> dict[str, Tensor]:
        """Parameters and buffers of its server-side model; where that is one for all clients, of that."""
        return self.behind.model

    @model.setter
    def model(self, model: dict[str, Tensor]) -> None:
        self.behind.model = model

    @property
    def state(self) -> dict[Any, Any]:
        """The optimizer's state of it, as torch keeps it."""
        return self.behind.state

    @state.setter
    def state(self, state: dict[Any, Any]) -> None:
        self.behind.state = state

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients that are accumulated, or wait for the client's norm."""
        return self.behind.gradients

    @gradients.setter
    def gradients(self, gradients: dict[str, Tensor]) -> None:
        self.behind.gradients = gradients

    def restore(
        self, state: states.State, parameters: dict[str, nn.Parameter], own: Collection[str] | None = None
    ) -> None:
        """Takes a whole model's optimizer state, of which the client gets its side with the next round.

        Args:
            state: The state.
            parameters: The module's, by name.
            own: Names of what the client itself had, of one server-side model for all clients; None: not known.
        """
        if not self._shares:
            self.state = defaultdict(dict, {parameters[name]: entries for name, entries in state.items()})
            return
        # what lies between the cuts of two clients is trained by the one itself, and on the server for the other
        self.state.update({parameters[n]: entries for n, entries in state.items() if own is None or n not in own})
        self._restored = states.copy(state if own is None else {n: state[n] for n in own if n in state})

    @property
    def active(self) -> bool:
        """Whether it takes part in this round."""
        return self.orders is not None and self.orders.steps > 0

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that it was sent and bytes that it sent in this round."""
        sent, received = self.bytes_after or (self.link.sent, self.link.received)
        return sent - self.bytes_before[0], received - self.bytes_before[1]

    @property
    def steps_ahead(self) -> int:
        """Local steps of which not all smashed data have arrived yet."""
        return len(self.ahead)

    def count_arrival(self) -> None:
        """One of the arrivals that were to come is here."""
        self.ahead[0] -= 1
        if not self.ahead[0]:
            self.ahead.popleft()

    @property
    def cut(self) -> Cut:
        """Its cut in this round."""
        assert self.orders is not None
        return self.orders.cut

    def forget_sides(self) -> None:
        """The cuts were proven anew, since something else is trained."""
        self._sides = {}

    def move_state(
        self,
        before: Iterable[str],
        parameters: dict[str, nn.Parameter],
        fresh: states.State | None,
        front: Collection[str] | None = None,
    ) -> states.State:
        """The optimizer state that goes to the client with the round; what the server needs stays here.

        Args:
            before: Names of what was the client's side in its last round.
            parameters: The module's, by name.
            fresh: The state of a whole model to begin with; None: go on with what there is.
            front: Names of what no server-side model has; None: of the client's side.
        """
        own = set(self.cut.client)
        front = own if front is None else set(front)
        if fresh is None and self._shares:  # what was restored is each client's own; the cut does not move
            for name in front & parameters.keys():
                self.state.pop(parameters[name], None)
            moved, self._restored = {n: s for n, s in self._restored.items() if n in own}, {}
            return moved
        if fresh is None:
            old = set(before)
            self.handover = any(name in parameters for name in old - own)
            moved = states.read(self.state, parameters, [name for name in self.cut.client if name not in old])
            for name in moved:
                del self.state[parameters[name]]
            return moved
        fresh = states.copy(fresh)  # the client's part is on its way before the server's optimizer changes its own
        self.state = defaultdict(dict, {parameters[name]: s for name, s in fresh.items() if name not in front})
        return {name: entries for name, entries in fresh.items() if name in own}

    @property
    def buffers_before(self) -> dict[str, Tensor]:
        """Buffers as they were before a step that is under way here and at the client: of that step nothing is seen."""
        return {} if self.halfway is None else self.halfway.buffers

    def server_side(self, module: nn.Module) -> ServerSide:
        """What runs the step behind its cut."""
        if self.cut.name not in self._sides:
            self._sides[self.cut.name] = ServerSide(module, self.cut)
        return self._sides[self.cut.name]
