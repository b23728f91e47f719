"""One round in virtual time: when each client computes, sends, waits and is served.

The formula of `latency` gives every client 1/N of the server all the time and a link of its own; here the server serves
one arrival at a time (unless the plan divides its speed), links are shared under the plan's disciplines, and who comes
late waits. This is what a round is expected to be like, what policies score their candidates with, and what the virtual
clock shows.

The queue is our own: (time, kind, counter) on a heap, so that ties are settled and runs repeat to the last digit. SimPy
was considered; its resources have no rates that change when others come and go, which is all that matters on a link.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from lightning_edgesplit.scheduling.costs import END
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.links import INFINITE, SharedLink, Transfer, bytes_per_second
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.trace import Conditions, Trace
from lightning_edgesplit.scheduling.work import Work

_HAPPENS, _DECIDES = 0, 1
"""Kinds of events: at one moment, all that happens comes before the server decides whom to serve."""


@dataclass(frozen=True)
class Span:
    """A stretch of time of a round, simulated or measured: one bar of its timeline.

    Attributes:
        client: Number of the client that it belongs to.
        on_server: True for work on the server (phases "server" and "aggregation").
        phase: One of `lightning_edgesplit.runtime.report.PHASES`.
        start: Seconds since the round began.
        end: Seconds since the round began.
    """

    client: int
    on_server: bool
    phase: str
    start: float
    end: float


@dataclass(frozen=True)
class SimulatedRound:
    """What a round is expected to be like.

    Attributes:
        ends: When the server has each client's side of the model, seconds since the round began; 0 for those that take
            no part.
        seconds: Seconds by phase, one dict per client.
        server_seconds: Seconds in which the server computes steps.
        aggregation: Seconds of the aggregation, after the last client's end.
        bars: All stretches of time, in no particular order.
    """

    ends: tuple[float, ...]
    seconds: tuple[dict[str, float], ...]
    server_seconds: float
    aggregation: float
    bars: tuple[Span, ...]

    @property
    def round_time(self) -> float:
        """Seconds until the slowest client is done and the models are aggregated."""
        return max(self.ends) + self.aggregation

    def timeline(self, first: int) -> tuple[Span, ...]:
        """All stretches of time, then the aggregation, which counts as the client's with the number `first`."""
        return (*self.bars, Span(first, True, "aggregation", max(self.ends), self.round_time))

    def idle(self, client: int) -> float:
        """Seconds of the round in which a client neither computes nor sends nor receives."""
        busy = sorted(
            (bar.start, bar.end)
            for bar in self.bars
            if bar.client == client and not bar.on_server and bar.phase not in WAITING
        )
        idle, now = 0.0, 0.0
        for start, end in busy:
            idle, now = idle + max(0.0, start - now), max(now, end)
        return idle + max(0.0, self.round_time - now)


WAITING = ("grant", "wait", "server")
"""Phases in which a client waits: for the link, in the server's queue, and for the server's part."""


@dataclass
class _Part:
    """A micro-batch of one client's local step on its way."""

    client: int
    step: int
    index: int
    samples: int
    came: float = 0.0


@dataclass
class _Client:
    """Where one client is in its round."""

    number: int
    work: Work
    split: bool
    samples: list[int]
    step: int = 0
    free: float = 0.0  # when its processor is
    forwards: int = 0  # forward passes done in this step
    backwards: int = 0
    arrived: set[int] = field(default_factory=set)  # micro-batches whose gradients are here


def simulate(model: LatencyModel, plan: Plan, trace: Trace | None = None, start: float = 0.0) -> SimulatedRound:
    """Simulates a round by discrete events.

    Args:
        model: The latency model that the plan was made with.
        plan: Cuts, links and order.
        trace: How links, speed and availability change; a client that is not available pauses until it is again.
        start: When the round begins in the trace, seconds.

    Returns:
        The round; the same input always gives the same round, to the last digit.

    Raises:
        InfeasibleError: If the trace never lets a client go on, or no client takes part.
    """
    return _Round(model, plan, trace, start).run()


def simulated_seconds(model: LatencyModel, plan: Plan, works: Sequence[Work] | None = None) -> float:
    """`simulate(model, plan).round_time` to the last digit, without a record of who did what when: for searches.

    Args:
        model: The latency model.
        plan: Cuts, links and order.
        works: What each client has to do at its cut, where it is known already (`LatencyModel.work`).
    """
    return _Round(model, plan, None, 0.0, works, record=False).run().round_time


class _Round:
    """The events of one round."""

    def __init__(
        self,
        model: LatencyModel,
        plan: Plan,
        trace: Trace | None,
        start: float,
        works: Sequence[Work] | None = None,
        record: bool = True,
    ) -> None:
        model = model.under(plan)
        self.plan, self._trace, self._record = plan, trace, record
        self._names = [profile.name for profile in model.clients]
        self._steps = model.costs.steps
        taking = [k for k in range(len(self._names)) if k not in plan.left_out and self._steps[k]]
        if not taking:
            raise InfeasibleError("no client takes part in the round: give one a local step, or another policy.")
        numbers = {name: number for number, name in enumerate(model.names)}
        self._changes = {} if trace is None else {k: _changes(trace, self._names[k], start) for k in taking}
        self._clients: dict[int, _Client] = {}
        for k in taking:
            work = works[k] if works is not None else model.work(k, numbers[plan.cuts[k]], plan.compression)
            parts = plan.micro_batches[k] if plan.micro_batches else 1
            samples = _divide(model.costs.batch[k], parts if plan.cuts[k] != END else 1)
            self._clients[k] = _Client(k, work, plan.cuts[k] != END, samples)
        self._open = set(taking)
        # nothing is averaged where clients take turns, and only their sides where the server's is one
        averaged = [] if plan.server_model == "sequential" else taking
        one = plan.server_model in ("shared", "splitfed-v2")  # of which nothing is averaged
        size = max(model.costs.cuts[numbers[plan.cuts[k]]].in_full for k in taking) if one else None
        self._aggregation = model.aggregation(len(averaged), size)
        self._capacities = bytes_per_second(model.server.uplink), bytes_per_second(model.server.downlink)
        self._own = (
            [bytes_per_second(p.uplink) for p in model.clients],
            [bytes_per_second(p.downlink) for p in model.clients],
        )
        self._links = [
            SharedLink(discipline, self._capacities[way], [self._limit(k, way, 0.0) for k in range(len(self._names))])
            for way, discipline in enumerate(plan.disciplines)
        ]
        self._then: dict[Transfer, tuple[str, float, Callable[[float], None]]] = {}
        self._heap: list[tuple[float, int, int, Callable[[float], None]]] = []
        self._counter = count()
        self._wake: list[float] = [INFINITE, INFINITE]
        self._queue: list[tuple[tuple[float, ...], _Part]] = []  # arrivals; the least is served next
        self._server_free = 0.0
        self._own_free: dict[int, float] = defaultdict(float)
        self._ranks = {k: rank for rank, k in enumerate(plan.turns)}
        self._turns = self._order_of_turns()
        self._together: dict[int, list[_Part]] = defaultdict(list)  # arrivals of a local step, at a shared server model
        self._bars: list[Span] = []
        self._ends = [0.0] * len(self._names)
        self._busy = 0.0

    # ---- the queue ---------------------------------------------------------------------------------------------------

    def run(self) -> SimulatedRound:
        first = list(self._clients) if self.plan.server_model != "sequential" else list(self._clients)[:1]
        for k in first:
            self._download(self._clients[k], 0.0)
        if self._trace is not None:
            for k in self._clients:
                self._follow(k, 0.0)
        while self._open:
            if not self._heap:
                self._never()
            now, _, _, action = heapq.heappop(self._heap)
            action(now)
        seconds: list[dict[str, float]] = [defaultdict(float) for _ in self._names]
        for bar in self._bars:
            if not bar.on_server:
                seconds[bar.client][bar.phase] += bar.end - bar.start
        return SimulatedRound(
            tuple(self._ends), tuple(dict(own) for own in seconds), self._busy, self._aggregation, tuple(self._bars)
        )

    def _at(self, time: float, action: Callable[[float], None], kind: int = _HAPPENS) -> None:
        if time < INFINITE:
            heapq.heappush(self._heap, (time, kind, next(self._counter), action))

    def _never(self) -> None:
        names = ", ".join(self._names[k] for k in sorted(self._open))
        raise InfeasibleError(
            f"the round of {names} never ends: by the trace they stay unavailable, or a rate is 0. Let the trace bring"
            " them back, or leave them out."
        )

    def _bar(self, client: int, phase: str, start: float, end: float, on_server: bool = False) -> None:
        if self._record and (end > start or on_server):
            self._bars.append(Span(client, on_server, phase, start, end))

    # ---- the clients' own links and speeds over time -----------------------------------------------------------------

    def _conditions(self, client: int, now: float) -> tuple[Conditions, float]:
        """What the trace says of a client now, and when that changes."""
        times, conditions = self._changes[client]
        place = bisect_right(times, now)
        return conditions[place - 1], times[place] if place < len(times) else INFINITE

    def _limit(self, client: int, way: int, now: float) -> float:
        """Bytes/s that a client gets at most: its own link's, and its share where shares are static."""
        own, available = self._own[way][client], True
        if client in self._changes:
            conditions, _ = self._conditions(client, now)
            changed = conditions.uplink if way == 0 else conditions.downlink
            own, available = own if changed is None else bytes_per_second(changed), conditions.available
        if self.plan.disciplines[way] == "static":
            share = self.plan.shares[client]
            capacity = self._capacities[way]
            own = min(own, share * capacity if capacity < INFINITE else INFINITE)
        if way == 0 and self.plan.channel_rates:
            own = min(own, bytes_per_second(self.plan.channel_rates[client]))
        return own if available else 0.0

    def _follow(self, client: int, now: float) -> None:
        """Lets the client's links change when the trace says so."""
        _, change = self._conditions(client, now)

        def changed(then: float) -> None:
            if client in self._open:
                for way, link in enumerate(self._links):
                    link.limit(client, self._limit(client, way, then), then)
                    self._look_at(way)
                self._follow(client, then)

        self._at(change, changed)

    def _compute(self, client: _Client, phase: str, now: float, seconds: float) -> float:
        """Seconds of work on the client's processor, which begin when it is free; returns when they are done."""
        begin = max(now, client.free)
        end = begin + seconds if self._trace is None else self._stretch(client.number, begin, seconds)
        client.free = end
        if end < INFINITE:
            self._bar(client.number, phase, begin, end)
        return end

    def _stretch(self, client: int, begin: float, seconds: float) -> float:
        """When work that takes so many seconds by the profile is done, with the speeds of the trace."""
        now, left = begin, seconds
        while True:
            conditions, change = self._conditions(client, now)
            end = now + left * conditions.slowdown if conditions.available else INFINITE
            if end <= change or change == INFINITE:
                return end
            if conditions.available:
                left -= (change - now) / conditions.slowdown
            now = change

    # ---- transfers ---------------------------------------------------------------------------------------------------

    def _send(
        self, client: _Client, way: int, phase: str, size: float, urgency: float, latency: float, now: float,
        then: Callable[[float], None],
    ) -> None:  # fmt: skip
        """Sends `size` bytes up (`way` 0) or down (1); `then` is called when they have arrived."""
        transfer = self._links[way].add(client.number, size, urgency, now)
        self._then[transfer] = phase, latency, then
        self._look_at(way)

    def _look_at(self, way: int) -> None:
        """Looks at the link again when its next transfer ends."""
        end = self._links[way].next_end
        if end < INFINITE and end != self._wake[way]:
            self._wake[way] = end
            self._at(end, lambda now: self._link_moves(way, now))

    def _link_moves(self, way: int, now: float) -> None:
        if self._wake[way] == now:
            self._wake[way] = INFINITE
        for transfer in self._links[way].ended(now):
            phase, latency, then = self._then.pop(transfer)
            begun = transfer.asked if transfer.begun is None else transfer.begun
            self._bar(transfer.client, "grant", transfer.asked, begun)
            self._bar(transfer.client, phase, begun, now + latency)
            self._at(now + latency, then)
        self._look_at(way)

    # ---- a client's round --------------------------------------------------------------------------------------------

    def _tail(self, client: _Client, done: float) -> float:
        """Seconds to the round's end of a client that had everything for itself, so many of this step being over."""
        return client.work.tail(self._steps[client.number] - client.step, done)

    def _download(self, client: _Client, now: float) -> None:
        urgency = self._tail(client, 0.0) + client.work.download_alone
        size = client.work.download
        self._send(client, 1, "download", size, urgency, client.work.latency, now, lambda t: self._step(client, t))

    def _step(self, client: _Client, now: float) -> None:
        """The start of a local step; after the last one, the upload."""
        if client.step == self._steps[client.number]:
            urgency = client.work.upload_alone
            size = client.work.upload
            self._send(client, 0, "upload", size, urgency, client.work.latency, now, lambda t: self._end(client, t))
            return
        client.forwards = client.backwards = 0
        client.arrived = set()
        whole = sum(client.samples)
        for index, samples in enumerate(client.samples):
            now = self._compute(client, "forward", now, client.work.forward * samples / whole)
            part = _Part(client.number, client.step, index, samples)
            self._at(now, lambda t, part=part: self._forward_done(client, part, t))  # type: ignore[misc]

    def _forward_done(self, client: _Client, part: _Part, now: float) -> None:
        client.forwards += 1
        if not client.split:
            self._backward(client, part, now)
            return
        work, fraction = client.work, part.samples / sum(client.samples)
        size = fraction * (work.bytes_up - work.step_up) + work.step_up
        urgency = self._tail(client, work.forward)
        self._send(client, 0, "uplink", size, urgency, work.step_latency, now, lambda t: self._arrive(part, t))
        self._go_on(client, now)  # a gradient may have been waiting for the processor

    def _gradient(self, client: _Client, part: _Part, now: float) -> None:
        client.arrived.add(part.index)
        self._go_on(client, now)

    def _go_on(self, client: _Client, now: float) -> None:
        """Backward passes in the order of the micro-batches, once all forward passes are done."""
        while client.forwards == len(client.samples) and client.backwards in client.arrived:
            index = client.backwards
            client.backwards += 1
            self._backward(client, _Part(client.number, client.step, index, client.samples[index]), now)

    def _backward(self, client: _Client, part: _Part, now: float) -> None:
        seconds = client.work.backward * part.samples / sum(client.samples)
        end = self._compute(client, "backward", now, seconds)
        if part.index + 1 == len(client.samples):

            def next_step(then: float) -> None:
                client.step += 1
                self._step(client, then)

            self._at(end, next_step)

    def _end(self, client: _Client, now: float) -> None:
        self._ends[client.number] = now
        self._open.discard(client.number)
        if self.plan.server_model == "sequential":
            later = [k for k in self._clients if k > client.number]
            if later:
                self._download(self._clients[later[0]], now)

    # ---- the server --------------------------------------------------------------------------------------------------

    def _order_of_turns(self) -> list[tuple[float, ...]]:
        """Where the server serves in a fixed order: the keys of all arrivals, the last first."""
        if self.plan.server_model != "splitfed-v2" and (
            self.plan.order != "in_order" or self.plan.server_model != "per_client"
        ):
            return []  # clients that take turns, or all together, have an order of their own
        turns = [
            self._turn(step, k, index)
            for k, client in self._clients.items()
            if client.split
            for step in range(self._steps[k])
            for index in range(len(client.samples))
        ]
        return sorted(turns, reverse=True)

    def _turn(self, step: int, client: int, index: int) -> tuple[float, ...]:
        """What a fixed order of service is sorted by: steps of all clients in turn, or all of one client's steps."""
        if self.plan.server_model == "splitfed-v2":
            return self._ranks.get(client, client), step, index
        return step, client, index

    def _arrive(self, part: _Part, now: float) -> None:
        part.came = now
        client = self._clients[part.client]
        if self.plan.server_model == "shared":
            self._gather(part, now)
            return
        if self.plan.server_shares and self.plan.server_model != "splitfed-v2":  # one model takes one step at a time
            own = client.work.server * part.samples / sum(client.samples) / self.plan.server_shares[part.client]
            begin = max(now, self._own_free[part.client])
            self._own_free[part.client] = begin + own
            self._serve(part, begin, begin + own)
            return
        key: tuple[float, ...] = now, part.client, part.index
        if self._turns:
            key = self._turn(part.step, part.client, part.index)
        elif self.plan.order == "longest_first":
            key = -self._tail(client, client.work.until_server), *key
        heapq.heappush(self._queue, (key, part))
        self._at(max(now, self._server_free), self._decide, _DECIDES)

    def _decide(self, now: float) -> None:
        """The server takes the next arrival, if it is free and there is one whose turn it is."""
        if now < self._server_free or not self._queue:
            return
        if self._turns:
            if self._queue[0][0] != self._turns[-1]:
                return
            self._turns.pop()
        _, part = heapq.heappop(self._queue)
        client = self._clients[part.client]
        self._server_free = now + client.work.server * part.samples / sum(client.samples)
        self._serve(part, now, self._server_free)
        self._at(self._server_free, self._decide, _DECIDES)

    def _serve(self, part: _Part, begin: float, end: float) -> None:
        """The server's part of a step, from `begin` to `end`; then its gradient goes down."""
        client = self._clients[part.client]
        work, fraction = client.work, part.samples / sum(client.samples)
        self._bar(part.client, "wait", part.came, begin)
        self._bar(part.client, "server", begin, end)
        self._bar(part.client, "server", begin, end, on_server=True)
        self._busy += end - begin
        size = fraction * (work.bytes_down - work.step_down) + work.step_down
        urgency = self._tail(client, work.until_server + work.server)
        latency = work.step_latency

        def answer(now: float) -> None:
            self._send(client, 1, "downlink", size, urgency, latency, now, lambda t: self._gradient(client, part, t))

        self._at(end, answer)

    def _gather(self, part: _Part, now: float) -> None:
        """A server-side model that all clients share steps once all have arrived that take this local step.

        EPSL (arXiv:2303.15991, as recalled; see `policies.epsl`): forward over all C·b samples, backward over
        m + C·(b − m), where m = ⌈φ·b⌉; the gradients of the m aggregated samples go to all at once.
        """
        arrived = self._together[part.step]
        arrived.append(part)
        expected = [c for k, c in self._clients.items() if c.split and self._steps[k] > part.step]
        if len(arrived) < sum(len(client.samples) for client in expected):
            return
        forward = sum(client.work.server_forward for client in expected)
        backward = sum(client.work.server - client.work.server_forward for client in expected)
        kept = 1 - self.plan.aggregated * (1 - 1 / len(expected))
        begin = max(now, self._server_free)
        end = begin + forward + kept * backward
        self._server_free, self._busy = end, self._busy + end - begin
        for part_ in sorted(arrived, key=lambda p: (p.client, p.index)):
            self._bar(part_.client, "wait", part_.came, begin)
            self._bar(part_.client, "server", begin, end)
        self._bar(part.client, "server", begin, end, on_server=True)
        everyone = [(self._clients[p.client], p) for p in sorted(arrived, key=lambda p: (p.client, p.index))]
        common = self.plan.aggregated * max(
            (client.work.bytes_down / self._broadcast_rate(client, end) for client, _ in everyone), default=0.0
        )

        def answer(now: float) -> None:
            for client, own in everyone:
                fraction = own.samples / sum(client.samples) * (1 - self.plan.aggregated)
                size = fraction * (client.work.bytes_down - client.work.step_down) + client.work.step_down

                def arrived_(then: float, client: _Client = client, own: _Part = own) -> None:
                    self._gradient(client, own, then)

                self._bar(client.number, "downlink", end, now)
                self._send(client, 1, "downlink", size, 0.0, client.work.step_latency, now, arrived_)

        self._at(end + common, answer)

    def _broadcast_rate(self, client: _Client, now: float) -> float:
        """Bytes/s at which a client hears what is sent to all at once over the whole link."""
        return min(self._capacities[1], self._own[1][client.number])


def _changes(trace: Trace, client: str, start: float) -> tuple[list[float], tuple[Conditions, ...]]:
    """Times of a client's changes in seconds since the round began, and what holds from each on.

    Taken from the trace once: where a time is turned into the trace's and back at every look, it may come out a digit
    before the change, which is then never past.
    """
    trace.at(client, start)  # refuses a client that the trace does not know
    if client not in trace.seconds:
        return [-INFINITE], (Conditions(),)
    return [time - start for time in trace.seconds[client]], trace.conditions[client]


def _divide(batch: int, parts: int) -> list[int]:
    """Samples of each micro-batch, as `torch.tensor_split` divides a batch."""
    parts = min(parts, max(1, batch))
    return [batch // parts + (index < batch % parts) for index in range(parts)]
