"""A round that was planned and never run, as a report: what draws and prints rounds draws and prints plans."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edgesplit.runtime.report import ClientReport, RoundReport
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.simulate import SimulatedRound


def planned_report(plan: Plan, simulated: SimulatedRound, costs: Costs, names: Sequence[str]) -> RoundReport:
    """The report of a round that takes exactly as long as it was simulated to.

    Args:
        plan: The plan.
        simulated: The round, simulated under it.
        costs: The costs that it was planned with; bytes, local steps and samples come from them.
        names: Names of the clients, in the order of the plan.
    """
    clients, costs = [], costs.with_batch(plan.batches) if plan.batches else costs
    for k, name in enumerate(names):
        cut, steps, batch = costs[plan.cuts[k]], costs.steps[k], costs.batch[k]
        if k in plan.left_out or not steps:
            continue
        clients.append(
            ClientReport(
                client=k,
                name=name,
                cut=cut.name,
                share=plan.shares[k],
                uplink=plan.uplink[k],
                downlink=plan.downlink[k],
                steps=steps,
                samples=steps * batch,
                batch=batch if plan.batches else None,
                seconds=dict(simulated.seconds[k]),
                idle=simulated.idle(k),
                bytes_up=round(steps * (batch * cut.smashed + cut.step_up) + cut.weights),
                bytes_down=round(steps * (batch * cut.gradient + cut.step_down) + cut.weights),
                round_time=simulated.ends[k],
                predicted=float("nan"),  # it is the prediction
            )
        )
    return RoundReport(
        index=0,
        epoch=0,
        policy=plan.policy,
        clients=tuple(clients),
        seconds=simulated.round_time,
        predicted=float("nan"),
        server_seconds=simulated.server_seconds,
        aggregation_seconds=simulated.aggregation,
        spans=simulated.timeline(clients[0].client),
    )
