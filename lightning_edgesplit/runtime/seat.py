"""What the server keeps of one client: its orders for a round, its model behind the cut, and when it was served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.throttle import Emulation
from lightning_edgesplit.runtime.trained import Trained
from lightning_edgesplit.runtime.wire import Link
from lightning_edgesplit.splitting import Cut
from lightning_edgesplit.splitting.step import ServerSide


@dataclass(frozen=True)
class Orders:
    """What one client is told at the start of a round.

    Attributes:
        cut: Its cut in this round.
        steps: Local steps to take.
        emulation: How fast to be; None: as fast as it can.
        server_seconds: Emulated seconds per sample of the server's part; None: not emulated.
    """

    cut: Cut
    steps: int
    emulation: Emulation | None = None
    server_seconds: float | None = None


@dataclass
class Service:
    """When an arrival was served, monotonic clock, seconds: arrived, begun, gradient sent, done."""

    arrived: float
    begun: float
    sent: float = 0.0
    done: float = 0.0


class Seat:
    """What the server keeps of one client: link and orders, its server-side model and optimizer state, its times."""

    def __init__(self, name: str, link: Link) -> None:
        self.name, self.link = name, link
        self.orders: Orders | None = None
        self.model: dict[str, Tensor] = {}
        self.state: dict[Any, Any] = defaultdict(dict)
        self.gradients: dict[str, Tensor] = {}  # accumulated, or waiting for the client's norm
        self.tied: dict[str, Tensor] = {}
        self.owes_step = False
        self.outputs: list[list[Any]] = []
        self._sides: dict[str, ServerSide] = {}
        self.left = 0
        self.epoch: int | None = None
        self.handover = False
        self.groups: list[dict[str, Any]] = []
        self.trained: Trained | None = None  # as the client was told last
        self.services: list[Service] = []
        self.bytes_before = (0, 0)

    @property
    def active(self) -> bool:
        """Whether it takes part in this round."""
        return self.orders is not None and self.orders.steps > 0

    @property
    def cut(self) -> Cut:
        """Its cut in this round."""
        assert self.orders is not None
        return self.orders.cut

    def forget_sides(self) -> None:
        """The cuts were proven anew, since something else is trained."""
        self._sides = {}

    def move_state(
        self, before: Iterable[str], parameters: dict[str, nn.Parameter], fresh: states.State | None
    ) -> states.State:
        """The optimizer state that goes to the client with the round; what the server needs stays here.

        Args:
            before: Names of what was the client's side in its last round.
            parameters: The module's, by name.
            fresh: The state of a whole model to begin with; None: go on with what there is.
        """
        own = set(self.cut.client)
        if fresh is None:
            old = set(before)
            self.handover = any(name in parameters for name in old - own)
            moved = states.read(self.state, parameters, [name for name in self.cut.client if name not in old])
            for name in moved:
                del self.state[parameters[name]]
            return moved
        fresh = states.copy(fresh)
        self.state = defaultdict(dict, {parameters[name]: s for name, s in fresh.items() if name not in own})
        return {name: entries for name, entries in fresh.items() if name in own}

    def server_side(self, module: nn.Module) -> ServerSide:
        """What runs the step behind its cut."""
        assert self.cut.border is not None
        if self.cut.name not in self._sides:
            self._sides[self.cut.name] = ServerSide(module, self.cut.border)
        return self._sides[self.cut.name]
