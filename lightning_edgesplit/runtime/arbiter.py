"""Grants on the wall clock: the server decides who may use the shared links when, by the plan's disciplines."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from lightning_edgesplit.scheduling.links import SharedLink, Transfer
from lightning_edgesplit.scheduling.work import Work

UP, DOWN = 0, 1
"""Ways: towards the server, and from it."""

Done = Callable[[Transfer], None]


@dataclass(frozen=True)
class Arbitration:
    """How the links of a round are shared, where the server decides who uses them when.

    Attributes:
        disciplines: One of `lightning_edgesplit.scheduling.plan.DISCIPLINES` for each way, uplink first.
        capacities: Bytes/s of all clients together, each way.
        limits: Bytes/s of each client, at most, each way.
        latencies: One-way delay of each client's messages, seconds.
        works: What each client has to do, which says how urgent its messages are; None: it takes no part.
    """

    disciplines: tuple[str, str]
    capacities: tuple[float, float]
    limits: tuple[tuple[float, ...], tuple[float, ...]]
    latencies: tuple[float, ...]
    works: tuple[Work | None, ...]

    def open(self) -> Arbiter:
        """An arbiter for a round; close it."""
        ways = zip(self.disciplines, self.capacities, self.limits, strict=True)
        return Arbiter([SharedLink(*way) for way in ways], self.latencies)

    def urgency(self, client: int, phase: str, steps: int) -> float:
        """Seconds that the client would need to the end of its round, had it everything for itself.

        Args:
            client: Which one.
            phase: What it is about to do: ``"download"``, ``"uplink"``, ``"server"``, ``"downlink"`` or ``"upload"``.
            steps: Local steps that it has ahead, the present one included.
        """
        work = self.works[client]
        assert work is not None
        if phase == "upload":
            return work.tail(0)
        if phase == "download":
            return work.tail(steps) + work.download_alone
        done = {"uplink": work.forward, "server": work.until_server, "downlink": work.until_server + work.server}
        return work.tail(steps, done[phase])


class Arbiter:
    """The same shared links as in the simulated round (`SharedLink`), in real time.

    A client asks before it sends (one message up, the grant one message down, about half a millisecond on loopback);
    what the server sends waits here as well. A grant comes when the last byte would be through on the emulated link, so
    that the frame itself, which goes at this machine's speed, follows at once. The fluid model is moved to the exact
    ends of transfers: a thread that wakes up late delays one grant, not all that come after.

    Args:
        links: Both directions, uplink first.
        latencies: One-way delay of each client's messages, seconds.
        clock: Monotonic seconds.

    Attributes:
        late: Seconds by which grants came later than they were due, one entry per grant.
    """

    def __init__(
        self, links: Sequence[SharedLink], latencies: Sequence[float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._links, self._latencies, self._clock = links, latencies, clock
        self._changed = threading.Condition()
        self._then: dict[Transfer, Done] = {}
        self._due: list[tuple[float, int, Transfer, Done]] = []
        self._counter = count()
        self._ended = False
        self.late: list[float] = []
        self._thread = threading.Thread(target=self._run, name="arbiter of the links", daemon=True)
        self._thread.start()

    def ask(self, client: int, way: int, size: int, urgency: float, done: Done) -> None:
        """A client, or the server for it, has a frame to send.

        Args:
            client: Whose link.
            way: `UP` or `DOWN`.
            size: Bytes of the frame.
            urgency: Seconds that the client would need from here to the end of its round, alone.
            done: Called in the arbiter's thread when the frame would be there, latency included; must not raise.
        """
        with self._changed:
            now = self._clock()
            self._move(now)
            self._then[self._links[way].add(client, size, urgency, now)] = done
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread; what was not granted yet never is."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _move(self, now: float) -> None:
        """Lets the links go on until now, from end to end."""
        for link in self._links:
            while (end := link.next_end) <= now:
                for transfer in link.ended(end):
                    done = self._then.pop(transfer)
                    at = end + self._latencies[transfer.client]
                    heapq.heappush(self._due, (at, next(self._counter), transfer, done))

    def _run(self) -> None:
        while True:
            with self._changed:
                now = self._clock()
                self._move(now)
                ready = []
                while self._due and self._due[0][0] <= now:
                    at, _, transfer, done = heapq.heappop(self._due)
                    self.late.append(now - at)
                    ready.append((transfer, done))
                if self._ended:
                    return
                if not ready:
                    nexts = [link.next_end for link in self._links] + [at for at, *_ in self._due[:1]]
                    wait = min(nexts) - now
                    self._changed.wait(None if wait == float("inf") else max(0.0, wait))
            for transfer, done in ready:
                done(transfer)
