"""A process that is one client after the other: one link, one module, and of the absent clients nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_edgesplit.runtime import states
from lightning_edgesplit.runtime.client import Client
from lightning_edgesplit.runtime.inbox import Letter
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.partition import ClientLoaders, leave_out
from lightning_edgesplit.runtime.supply import Supply
from lightning_edgesplit.runtime.wire import Frame, Kind


class Carrier(Client):
    """Plays clients, one for a whole round at a time.

    The server says before each round which client this is to be, and where that client was in its data and its random
    streams; when the round is over, the carrier hands that back (``LEAVE``), with the optimizer's state if it is kept.
    So any carrier can play any client, whoever is free takes the next, and what a client is does not depend on where
    it is played.

    Args:
        loaders: Give each client its batches.
        greets: The clients whose data this carrier describes to the server.
        begin_as: Gives this process the random streams with which a client begins.
        structures_first: Whether `structures` is to be called before the first round: later the module is not whole.
        dealt: As `Supply` has it.
        **options: As `Client` has them.
    """

    def __init__(
        self,
        module: Any,
        optimizer: Any,
        loaders: ClientLoaders,
        link: Link,
        heartbeat: float,
        greets: Sequence[int],
        begin_as: Callable[[int], None],
        structures_first: bool,
        dealt: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(module, optimizer, Supply(()), link, heartbeat, **options)
        self._loaders, self._greets, self._begin_as, self._deals = loaders, greets, begin_as, dealt
        if structures_first:
            self._structures = self._find_structures()

    def _greeting(self) -> dict[str, Any]:
        return {"clients": [[client, self._loaders.extent(client)] for client in self._greets]}

    def _restore(self, order: Frame) -> None:
        """Becomes another client, where that one was when it left."""
        client, position = order.about["client"], order.about["position"]
        self.cut = None
        self.optimizer.state.clear()
        self._begin_as(client)
        self.supply = Supply(self._loaders.of(client), self._deals, leave_out, self.supply.ahead)
        if position is None:
            self._loaders.rewind(client)
        else:
            self.supply.restore(position, order.tensors)

    def _round(self, order: Letter) -> None:
        super()._round(order)
        about, tensors = self.supply.position()
        state: list[Any] = []
        if not order.frame.about["fresh_state"]:
            state, own = states.pack(states.read(self.optimizer.state, self.sides.parameters, self._own))
            tensors = [*own, *tensors]
        self.link.send(Frame(Kind.LEAVE, tensors, {"position": about, "state": state}))
