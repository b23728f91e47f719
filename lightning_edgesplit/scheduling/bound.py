"""How short a round can be at best, whatever the order in which links and server are used."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_edgesplit.scheduling.costs import END
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.links import bytes_per_second
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.work import Work


def lower_bound(model: LatencyModel, plan: Plan) -> float:
    """Seconds that no order of links and server goes below, with this plan's cuts, batches and micro-batches.

    The longest of: each client if it had everything for itself; and for the uplink, the downlink and the server, the
    least time until anybody can begin to use it, all that it has to do at its full rate, and the least time that
    anybody needs after that. The links once with the models and once without, which end a round or begin it. Then the
    aggregation. It holds for server-side models of the clients' own, or in turns.
    """
    model = model.under(plan)
    steps, taking = model.costs.steps, [k for k in range(len(model.clients)) if k not in plan.left_out]
    taking = [k for k in taking if steps[k]]
    up_rate, down_rate = bytes_per_second(model.server.uplink), bytes_per_second(model.server.downlink)
    uplink, downlink, smashed, gradients, server = (_Resource() for _ in range(5))
    longest = 0.0
    for k in taking:
        work, batch = model.work(k, model.names.index(plan.cuts[k]), plan.compression), model.costs.batch[k]
        download = work.download / work.limit_down + work.latency
        upload = work.upload / work.limit_up + work.latency
        if plan.cuts[k] == END:
            whole = steps[k] * (work.forward + work.backward)
            longest = max(longest, download + whole + upload)
            downlink.add(0.0, work.download / down_rate, work.latency + whole + upload)
            uplink.add(download + whole, work.upload / up_rate, work.latency)
            continue
        parts = min(plan.micro_batches[k] if plan.micro_batches else 1, max(1, batch))
        least = (batch // parts) / max(1, batch)  # of a batch, in its smallest part
        up = least * (work.bytes_up - work.step_up) + work.step_up
        down = least * (work.bytes_down - work.step_down) + work.step_down
        # what lies before and behind the use of each resource, for the smallest micro-batch
        forward, sent = download + least * work.forward, up / work.limit_up + work.step_latency
        backward = work.step_latency + least * work.backward + upload
        back = down / work.limit_down + backward
        served = least * work.server
        bytes_up = steps[k] * (work.bytes_up + (parts - 1) * work.step_up)
        bytes_down = steps[k] * (work.bytes_down + (parts - 1) * work.step_down)
        longest = max(longest, download + steps[k] * alone_in_parts(work, parts, batch) + upload)
        smashed.add(forward, bytes_up / up_rate, work.step_latency + served + back)
        uplink.add(forward, (bytes_up + work.upload) / up_rate, work.latency)
        server.add(forward + sent, steps[k] * work.server, back)
        gradients.add(forward + sent + served, bytes_down / down_rate, backward)
        downlink.add(0.0, (bytes_down + work.download) / down_rate, backward)
    busy = max(resource.bound for resource in (uplink, downlink, smashed, gradients, server))
    return max(longest, busy) + model.aggregation(len(taking))


@dataclass
class _Resource:
    """What is used by one at a time, or divided: seconds before it can be used, of use, and after it."""

    before: float = float("inf")
    use: float = 0.0
    after: float = float("inf")

    def add(self, before: float, use: float, after: float) -> None:
        self.before, self.use, self.after = min(self.before, before), self.use + use, min(self.after, after)

    @property
    def bound(self) -> float:
        return self.before + self.use + self.after if self.use else 0.0


def alone_in_parts(work: Work, parts: int, batch: int) -> float:
    """Seconds that a local step in so many micro-batches takes at least, with links and server for itself.

    The micro-batches go through five stages: each stage has all of them to do, before the first of them lie the stages
    before, and behind the last those behind. All forward passes come before the first backward pass.
    """
    if parts == 1:
        return work.alone
    up = (work.bytes_up - work.step_up) / work.limit_up, work.step_up / work.limit_up
    down = (work.bytes_down - work.step_down) / work.limit_down, work.step_down / work.limit_down
    stages = [(work.forward, 0.0), up, (work.server, 0.0), down, (work.backward, 0.0)]  # of a batch, of every message
    least = (batch // parts) / batch
    small = [least * whole + fixed for whole, fixed in stages]
    all_of_it = [whole + parts * fixed for whole, fixed in stages]
    chains = (sum(small[:i]) + all_of_it[i] + sum(small[i + 1 :]) for i in range(len(stages)))
    return max(max(chains) + 2 * work.step_latency, work.forward + work.backward)
