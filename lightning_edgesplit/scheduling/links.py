"""One direction of the link that all clients share: transfers under way, and how much of it each has.

A fluid model: at any moment every transfer has a rate, and rates change only when one begins or ends or a client's own
link changes. Both clocks use it: the simulated round asks when the next transfer ends and jumps there, the arbiter on
the wall clock waits until then.

Disciplines, all under the clients' own rates r_k:

    static         φ_k·B for client k, whether the others send or not (EdgeSplit, arXiv:2403.15815)
    fair           max-min fair among those that send (what TCP approximates)
    longest_first  in the order of urgency, each as much as is left (ours)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

INFINITE = float("inf")
BITS = 8  # per byte


def bytes_per_second(rate: float | None) -> float:
    """A rate in bit/s as bytes/s; infinite where there is no limit."""
    return INFINITE if rate is None else rate / BITS


@dataclass(eq=False, slots=True)
class Transfer:
    """Bytes of one client that are on their way, or wait for it.

    Attributes:
        client: Whose.
        left: Bytes to go at the moment `since`.
        urgency: Seconds that the client would need from here to the end of its round, had it everything for itself.
        asked: When it was ready to be sent, seconds.
        begun: When its first byte went; None: it waits.
        since: When `rate` last changed.
        rate: Bytes/s since then.
        end: When its last byte is through, if no rate changes before.
    """

    client: int
    left: float
    urgency: float
    asked: float
    begun: float | None = None
    since: float = 0.0
    rate: float = 0.0
    end: float = field(default=INFINITE)


class SharedLink:
    """One direction of the shared link.

    Args:
        discipline: One of `lightning_edgesplit.scheduling.plan.DISCIPLINES`.
        capacity: Bytes/s in all; infinite: not limited.
        limits: Bytes/s of each client, at most: its share where shares are static, else its own link.

    Raises:
        ValueError: If the discipline is unknown.
    """

    def __init__(self, discipline: str, capacity: float, limits: Sequence[float]) -> None:
        shares_out = {"static": self._static, "fair": self._fair, "longest_first": self._longest_first}
        if discipline not in shares_out:
            raise ValueError(f"discipline={discipline!r} is unknown: use one of {', '.join(shares_out)}.")
        self._discipline, self._capacity, self._limits = discipline, capacity, list(limits)
        self._share_out = shares_out[discipline]
        # those under way, one per client (its others wait for it), in the order in which they get their rates
        self._line: list[tuple[float, int, Transfer]] = []
        self._keys: dict[int, float] = {}
        self._reach = 0  # so many at the front of the line may have a rate, or be through
        self._next_end = INFINITE
        self._waiting: dict[int, deque[Transfer]] = {}

    def add(self, client: int, size: float, urgency: float, now: float) -> Transfer:
        """A client has `size` bytes to send; they follow what it has under way already."""
        transfer = Transfer(client, size, urgency, asked=now)
        if client in self._keys:
            self._waiting.setdefault(client, deque()).append(transfer)
        else:
            self._begin(transfer, now)
            self._share_out(now)
        return transfer

    def limit(self, client: int, limit: float, now: float) -> None:
        """The client's own limit changes to so many bytes/s; 0: its link is down."""
        self._limits[client] = limit
        if client in self._keys:
            self._begin(self._leave(client), now)  # its place may be another
            self._share_out(now)

    @property
    def next_end(self) -> float:
        """When the next transfer ends, seconds; infinite if none does."""
        return self._next_end

    def ended(self, now: float) -> list[Transfer]:
        """Takes out the transfers that have ended by now, in the order of their clients."""
        if self._next_end > now:
            return []
        done = [entry[2] for entry in self._line[: self._reach] if entry[2].end <= now]
        done.sort(key=lambda transfer: transfer.client)
        for transfer in done:
            self._leave(transfer.client)
            if self._waiting.get(transfer.client):
                self._begin(self._waiting[transfer.client].popleft(), now)
        self._share_out(now)
        return done

    def _begin(self, transfer: Transfer, now: float) -> None:
        """Puts a transfer into the line; its rate comes with `_share_out`."""
        client = transfer.client
        if transfer.left <= 0 and transfer.begun is None:
            transfer.begun = transfer.end = now
        if transfer.end <= now:
            key = -INFINITE  # through already: to the front, where it is taken out and needs no rate
        else:
            key = {"static": 0.0, "fair": self._limits[client]}.get(self._discipline, -transfer.urgency)
        self._keys[client] = key
        place = bisect_left(self._line, (key, client))  # no client is there twice: transfers are never compared
        self._line.insert(place, (key, client, transfer))
        if place < self._reach:
            self._reach += 1

    def _leave(self, client: int) -> Transfer:
        place = bisect_left(self._line, (self._keys.pop(client), client))
        if place < self._reach:
            self._reach -= 1
        return self._line.pop(place)[2]

    def _static(self, now: float) -> None:
        self._reach, self._next_end = len(self._line), INFINITE
        for _, client, transfer in self._line:
            self._next_end = min(self._next_end, _give(transfer, self._limits[client], now))

    def _fair(self, now: float) -> None:
        """Who is limited most comes first in the line, and leaves what it cannot use to the others."""
        left, after, soonest = self._capacity, len(self._line), INFINITE
        self._reach = after
        for limit, _, transfer in self._line:
            part = left / after
            after -= 1
            if transfer.end > now:  # else through already: it needs nothing
                part = limit if limit < part else part
                _give(transfer, part, now)
                left -= part if left < INFINITE else 0.0
            if transfer.end < soonest:
                soonest = transfer.end
        self._next_end = soonest

    def _longest_first(self, now: float) -> None:
        """Who is most urgent comes first in the line; behind the reach nobody has had a rate, and nobody gets one."""
        left, reach, soonest, limits = self._capacity, 0, INFINITE, self._limits
        for place, (_, client, transfer) in enumerate(self._line):
            if left <= 0 and place >= self._reach:
                break
            if transfer.end > now:
                rate = limits[client]
                if rate > left:
                    rate = left
                _give(transfer, rate, now)
                left -= rate if left < INFINITE else 0.0
            if transfer.end < INFINITE:
                reach = place + 1
                if transfer.end < soonest:
                    soonest = transfer.end
        self._reach, self._next_end = reach, soonest


def _give(transfer: Transfer, rate: float, now: float) -> float:
    """Gives a transfer a rate from now on; returns when it ends with it.

    What has ended by now stays ended, though it was not taken out yet: by a rounding error some of it might be left,
    which would then wait for whoever comes first now.
    """
    if transfer.end > now and rate != transfer.rate:
        if transfer.begun is None:
            transfer.begun = now
        elif transfer.rate > 0:
            transfer.left = max(0.0, transfer.left - transfer.rate * (now - transfer.since))
        transfer.since, transfer.rate = now, rate
        transfer.end = now + transfer.left / rate if rate > 0 else INFINITE
    return transfer.end
