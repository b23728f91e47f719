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

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

INFINITE = float("inf")
BITS = 8  # per byte


def bytes_per_second(rate: float | None) -> float:
    """A rate in bit/s as bytes/s; infinite where there is no limit."""
    return INFINITE if rate is None else rate / BITS


@dataclass(eq=False)
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


def _static(transfers: Sequence[Transfer], limits: Sequence[float], capacity: float) -> list[float]:
    return [limits[transfer.client] for transfer in transfers]


def _fair(transfers: Sequence[Transfer], limits: Sequence[float], capacity: float) -> list[float]:
    rates, left = dict[int, float](), capacity
    order = sorted(transfers, key=lambda transfer: (limits[transfer.client], transfer.client))
    for place, transfer in enumerate(order):  # who is limited most leaves what it cannot use to the others
        rate = min(limits[transfer.client], left / (len(order) - place))
        rates[transfer.client] = rate
        left = left - rate if left < INFINITE else left
    return [rates[transfer.client] for transfer in transfers]


def _longest_first(transfers: Sequence[Transfer], limits: Sequence[float], capacity: float) -> list[float]:
    rates, left = dict[int, float](), capacity
    for transfer in sorted(transfers, key=lambda transfer: (-transfer.urgency, transfer.client)):
        rate = min(limits[transfer.client], left)
        rates[transfer.client] = rate
        left = left - rate if left < INFINITE else left
    return [rates[transfer.client] for transfer in transfers]


_RATES: dict[str, Callable[[Sequence[Transfer], Sequence[float], float], list[float]]] = {
    "static": _static,
    "fair": _fair,
    "longest_first": _longest_first,
}


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
        if discipline not in _RATES:
            raise ValueError(f"discipline={discipline!r} is unknown: use one of {', '.join(_RATES)}.")
        self._rates, self._capacity, self._limits = _RATES[discipline], capacity, list(limits)
        self._alone = discipline == "static"  # nobody's rate depends on the others
        self._under_way: dict[int, Transfer] = {}  # one per client: the others of a client wait for it
        self._waiting: dict[int, deque[Transfer]] = {}

    def add(self, client: int, size: float, urgency: float, now: float) -> Transfer:
        """A client has `size` bytes to send; they follow what it has under way already."""
        transfer = Transfer(client, size, urgency, asked=now)
        if client in self._under_way:
            self._waiting.setdefault(client, deque()).append(transfer)
        else:
            self._under_way[client] = transfer
            self._share_out(now, client)
        return transfer

    def limit(self, client: int, limit: float, now: float) -> None:
        """The client's own limit changes to so many bytes/s; 0: its link is down."""
        self._limits[client] = limit
        if client in self._under_way:
            self._share_out(now, client)

    @property
    def next_end(self) -> float:
        """When the next transfer ends, seconds; infinite if none does."""
        return min((transfer.end for transfer in self._under_way.values()), default=INFINITE)

    def ended(self, now: float) -> list[Transfer]:
        """Takes out the transfers that have ended by now, in the order of their clients."""
        done = sorted((t for t in self._under_way.values() if t.end <= now), key=lambda transfer: transfer.client)
        for transfer in done:
            client = transfer.client
            del self._under_way[client]
            if self._waiting.get(client):
                self._under_way[client] = self._waiting[client].popleft()
            if self._alone and client in self._under_way:
                self._share_out(now, client)
        if done and not self._alone:
            self._share_out(now)
        return done

    def _share_out(self, now: float, client: int | None = None) -> None:
        """Gives every transfer its rate; of a client that alone is concerned where shares are static."""
        transfers = [self._under_way[client]] if self._alone and client is not None else list(self._under_way.values())
        for transfer, rate in zip(transfers, self._rates(transfers, self._limits, self._capacity), strict=True):
            if transfer.begun is None and (rate > 0 or transfer.left <= 0):
                transfer.begun = now
            elif rate == transfer.rate:
                continue
            if transfer.rate > 0 and now > transfer.since:
                transfer.left = max(0.0, transfer.left - transfer.rate * (now - transfer.since))
            transfer.since, transfer.rate = now, rate
            transfer.end = now if transfer.left <= 0 else now + transfer.left / rate if rate > 0 else INFINITE
