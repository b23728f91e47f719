"""The server's side of links that are scheduled: who asked, who may, and what waits to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.runtime.arbiter import DOWN, UP, Arbiter, Arbitration
from lightning_edgesplit.runtime.inbox import Letter
from lightning_edgesplit.runtime.seat import Seat
from lightning_edgesplit.runtime.wire import Frame, Kind, size_of
from lightning_edgesplit.scheduling.links import Transfer


class Grants:
    """Hands the links out to the clients of a round, if its plan schedules them.

    Args:
        seats: Of all clients.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = seats
        self._arbiter: Arbiter | None = None
        self._arbitration: Arbitration | None = None

    @property
    def needed(self) -> bool:
        """Whether clients have to ask in this round."""
        return self._arbiter is not None

    def begin(self, arbitration: Arbitration | None) -> None:
        """A round begins with links that are shared like this; None: nobody needs to ask, also after the last one."""
        if self._arbiter is not None:
            self._arbiter.close()
        self._arbitration = arbitration
        self._arbiter = None if arbitration is None else arbitration.open()

    def ask_for(self, client: int, frame: Frame) -> None:
        """A client wants to send, and waits for its grant. Called by the thread that receives from it."""

        def grant(transfer: Transfer) -> None:
            seat.grants.append(transfer)
            with suppress(ClientLostError):  # the thread that receives from it has the same news, and reports it
                seat.link.send(Frame(Kind.GRANT))

        seat, arbiter, arbitration = self._seats[client], self._arbiter, self._arbitration
        if arbiter is not None and arbitration is not None:
            urgency = arbitration.urgency(client, frame.about["phase"], seat.steps_ahead)
            arbiter.ask(client, UP, frame.about["size"], urgency, grant)

    def send(self, client: int, frame: Frame, phase: str) -> bool:
        """Sends a frame when its turn comes; False: it need not wait, so that the caller may send it."""
        if self._arbiter is None or self._arbitration is None:
            return False

        def go(transfer: Transfer) -> None:
            seat.handed_out.append(transfer)
            with suppress(ClientLostError):  # as in a grant
                seat.link.send(frame)

        seat = self._seats[client]
        steps = seat.steps_ahead + (phase == "downlink")
        self._arbiter.ask(client, DOWN, size_of(frame), self._arbitration.urgency(client, phase, steps), go)
        return True

    def most_urgent_first(self, letter: Letter) -> float:
        """Orders arrivals where the server serves first who has the longest way to go."""
        assert self._arbitration is not None
        return -self._arbitration.urgency(letter.link, "server", self._seats[letter.link].steps_ahead)
