"""One round in virtual time: when each client computes, sends, waits and is served.

The formula of `latency` gives every client 1/N of the server all the time; here the server serves one arrival at a
time, at its full speed, in the order of arrival or in a fixed one, and who comes late waits. This is what a round is
expected to be like, so it is what reports call *predicted*.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass

from lightning_edgesplit.scheduling.costs import END
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan


@dataclass(frozen=True)
class Bar:
    """A stretch of simulated time: who (`client`), where (`on_server`), what (`phase`), from `start` to `end` (s)."""

    client: int
    on_server: bool
    phase: str
    start: float
    end: float


@dataclass(frozen=True)
class SimulatedRound:
    """What a round is expected to be like.

    Attributes:
        ends: When the server has each client's side of the model, seconds since the round began.
        seconds: Seconds by phase, one dict per client.
        server_seconds: Seconds in which the server computes.
        bars: All stretches of time, in no particular order.
    """

    ends: tuple[float, ...]
    seconds: tuple[dict[str, float], ...]
    server_seconds: float
    bars: tuple[Bar, ...]

    @property
    def round_time(self) -> float:
        """Seconds until the slowest client is done."""
        return max(self.ends)


def simulate(model: LatencyModel, plan: Plan, in_order: bool = False) -> SimulatedRound:
    """Simulates a round by discrete events, with static rates.

    Args:
        model: The latency model that the plan was made with.
        plan: Cuts and shares.
        in_order: Whether the server serves clients 0..N−1 within each local step, instead of as they come.

    Returns:
        The round; the same input always gives the same round, since ties go to the lower number.
    """
    numbers = {name: number for number, name in enumerate(model.names)}
    pairs = zip(plan.cuts, plan.shares, strict=True)
    times = [model.times(k, numbers[cut], share) for k, (cut, share) in enumerate(pairs)]
    steps, bars, ends = model.costs.steps, list[Bar](), [0.0] * len(times)
    arrivals: list[tuple[float, int, int, float]] = []  # what decides, client, local step, when; the least comes first

    def spend(client: int, phase: str, start: float, seconds: float) -> float:
        bars.append(Bar(client, False, phase, start, start + seconds))
        return start + seconds

    def go_on(client: int, step: int, now: float) -> None:
        """From the start of a local step to its arrival at the server; after the last step, the upload."""
        t = times[client]
        while step < steps[client]:
            now = spend(client, "forward", now, t.forward)
            if plan.cuts[client] != END:
                now = spend(client, "uplink", now, t.uplink)
                heapq.heappush(arrivals, (float(step) if in_order else now, client, step, now))
                return
            now = spend(client, "backward", now, t.backward)
            step += 1
        ends[client] = spend(client, "upload", now, t.upload)

    for client, t in enumerate(times):
        go_on(client, 0, spend(client, "download", 0.0, t.download))
    free = busy = 0.0
    while arrivals:  # of every client that has one ahead, the next is in here
        _, client, step, came = heapq.heappop(arrivals)
        begun = max(free, came)
        if begun > came:
            spend(client, "wait", came, begun - came)
        free = spend(client, "server", begun, times[client].server)
        bars.append(Bar(client, True, "server", begun, free))
        busy += times[client].server
        now = spend(client, "downlink", free, times[client].downlink)
        go_on(client, step + 1, spend(client, "backward", now, times[client].backward))

    seconds: list[dict[str, float]] = [defaultdict(float) for _ in times]
    for bar in bars:
        if not bar.on_server:
            seconds[bar.client][bar.phase] += bar.end - bar.start
    return SimulatedRound(tuple(ends), tuple(dict(own) for own in seconds), busy, tuple(bars))
