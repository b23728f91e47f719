"""How links, speed and availability of clients change over time, read from a CSV file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os import PathLike, fspath

from lightning_edgesplit.scheduling.profiles import ClientProfile
from lightning_edgesplit.scheduling.table import Row, read

_COLUMNS = ("uplink", "downlink", "slowdown", "available")


@dataclass(frozen=True)
class Conditions:
    """What holds for a client at some time.

    Attributes:
        uplink: The client's own rate towards the server, bit/s; None: the profile's.
        downlink: The client's own rate from the server, bit/s; None: the profile's.
        slowdown: How many times slower it computes than its profile says.
        available: Whether it can take part.
    """

    uplink: float | None = None
    downlink: float | None = None
    slowdown: float = 1.0
    available: bool = True

    def of(self, profile: ClientProfile) -> ClientProfile:
        """The profile under these conditions; `available` has no place in it."""
        faster = profile.flops is not None
        return replace(
            profile,
            uplink=profile.uplink if self.uplink is None else self.uplink,
            downlink=profile.downlink if self.downlink is None else self.downlink,
            flops=None if profile.flops is None else profile.flops / self.slowdown,
            slowdown=profile.slowdown if faster or self.slowdown == 1 else (profile.slowdown or 1.0) * self.slowdown,
        )


@dataclass(frozen=True)
class Trace:
    """Conditions of clients over time: each holds until the client's next change, the last for ever.

    Attributes:
        clients: Names of the clients that may be asked for.
        seconds: Times of each client's changes, increasing, the first at 0. A client without an entry never changes.
        conditions: What holds from each of these times on.

    Raises:
        ValueError: If times and conditions do not go together, times do not increase from 0, or a client is unknown.
    """

    clients: tuple[str, ...]
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    conditions: Mapping[str, tuple[Conditions, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.seconds) != set(self.conditions):
            raise ValueError(f"seconds has the clients {sorted(self.seconds)}, conditions {sorted(self.conditions)}.")
        for client, times in self.seconds.items():
            if client not in self.clients:
                raise ValueError(f"the trace has a client {client!r}, which is none of {', '.join(self.clients)}.")
            if len(times) != len(self.conditions[client]):
                raise ValueError(f"{client!r} has {len(times)} times and {len(self.conditions[client])} conditions.")
            if not times or times[0] != 0 or not all(a < b for a, b in pairwise(times)):
                raise ValueError(f"times {times} of {client!r} must begin at 0 and increase.")

    def at(self, client: str, seconds: float) -> Conditions:
        """What holds for a client at a time, in seconds since the start; from the very second of a change on.

        Raises:
            ValueError: If the client is unknown, or the time negative or no number.
        """
        if client not in self.clients:
            raise ValueError(f"client={client!r} is not in the trace. It has {', '.join(self.clients)}.")
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds} must be >= 0: a trace begins at 0.")
        if client not in self.seconds:
            return Conditions()
        return self.conditions[client][bisect_right(self.seconds[client], seconds) - 1]

    def next_change(self, client: str, seconds: float) -> float:
        """The first time after `seconds` at which the client's conditions change; infinite if there is none.

        Raises:
            ValueError: If the client is unknown, or the time negative or no number.
        """
        self.at(client, seconds)
        times = self.seconds.get(client, ())
        place = bisect_right(times, seconds)
        return times[place] if place < len(times) else float("inf")

    @classmethod
    def load(cls, path: str | PathLike[str], clients: Sequence[str]) -> Trace:
        """Reads a CSV file with the columns ``seconds``, ``client`` and those that change.

        ``uplink`` and ``downlink`` are in bit/s and positive (a link that is down is ``available`` 0), ``slowdown`` is
        a factor on the profile's compute times, ``available`` is 0 or 1. A column that is left out leaves the profile
        as it is; a cell may not be empty. Lines of several clients may be mixed.

        Args:
            path: The file.
            clients: Names of all clients; those without a line never change.

        Raises:
            ValueError: If the file is wrong: a gap (an empty cell, a client whose first line is later than second 0), a
                time that does not increase or comes twice, a value that is NaN, negative or no number, an unknown
                client or column; with line and column.
            FileNotFoundError: If there is no such file.
        """
        rows = read(path, ("seconds", "client"), _COLUMNS)
        if not any(column in rows[0] for column in _COLUMNS):
            raise ValueError(f"{fspath(path)}, line 1, column 'uplink': nothing changes: add one of {_COLUMNS}.")
        seconds: dict[str, list[float]] = {}
        conditions: dict[str, list[Conditions]] = {}
        for row in rows:
            client = row.text("client")
            if client not in clients:
                raise row.wrong("client", f"{client!r} is unknown. Known: {', '.join(clients)}.")
            now, before = row.number("seconds"), seconds.setdefault(client, [])
            if not before and now > 0:
                raise row.wrong("seconds", f"{client!r} begins at {now:g}: say what holds from 0 on.")
            if before and now == before[-1]:
                raise row.wrong("seconds", f"{now:g} of {client!r} comes twice: keep one line.")
            if before and now < before[-1]:
                raise row.wrong("seconds", f"{now:g} of {client!r} comes after {before[-1]:g}: sort the lines.")
            before.append(now)
            conditions.setdefault(client, []).append(_conditions(row))
        return cls(
            tuple(clients),
            {client: tuple(times) for client, times in seconds.items()},
            {client: tuple(states) for client, states in conditions.items()},
        )


def _conditions(row: Row) -> Conditions:
    available = True
    if "available" in row:
        text = row.text("available")
        if text not in ("0", "1"):
            raise row.wrong("available", f"{text!r} must be 0 or 1.")
        available = text == "1"
    return Conditions(
        uplink=row.number("uplink", above=True) if "uplink" in row else None,
        downlink=row.number("downlink", above=True) if "downlink" in row else None,
        slowdown=row.number("slowdown", above=True) if "slowdown" in row else 1.0,
        available=available,
    )
