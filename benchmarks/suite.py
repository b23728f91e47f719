"""Every policy on every scenario of configs/suite/: the simulated round, by one and the same simulation.

python -m benchmarks.suite                      # all 48 scenarios
python -m benchmarks.suite --only vgg11_bn      # those with a word in their names
python -m benchmarks.suite --figure suite.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Column, Table

from lightning_edgesplit.scheduling import (
    POLICIES,
    ClientProfile,
    Costs,
    InfeasibleError,
    Joint,
    LatencyModel,
    Policy,
    ServerProfile,
    catalogue,
    load_clients,
    simulate,
)
from lightning_edgesplit.scheduling.bound import lower_bound

FOLDER = Path(__file__).parents[1] / "configs" / "suite"
RELAXED = "joint+"
"""Joint with all that it may do: not the same update, for 8-bit smashed data and batch statistics of micro-batches."""


@dataclass(frozen=True)
class Scenario:
    """One combination of the grid."""

    name: str
    costs: Costs
    clients: list[ClientProfile]
    server: ServerProfile


def scenarios(only: str = "") -> list[Scenario]:
    """All combinations of configs/suite/grid.yaml, those with `only` in their names."""
    grid = OmegaConf.to_container(OmegaConf.load(FOLDER / "grid.yaml"))
    made = []
    for model, fleet, device, link in itertools.product(
        grid["models"], grid["fleets"], grid["servers"], map(float, grid["links"])
    ):
        name = f"{model} {fleet} {device} {link / 1e6:.0f} Mbit/s"
        if only not in name:
            continue
        clients, _ = load_clients(FOLDER / "fleets" / f"{fleet}.yaml")
        costs = Costs.load(FOLDER / "costs" / f"{model}.json")
        costs = replace(costs, batch=(grid["batch"],) * len(clients), steps=(grid["steps"],) * len(clients))
        server = ServerProfile(flops=catalogue.device(device).flops, uplink=link, downlink=link)
        made.append(Scenario(name, costs, clients, server))
    return made


def policies() -> dict[str, Policy]:
    """Every policy there is, and joint with all that it may do."""
    made: dict[str, Policy] = {name: policy() for name, policy in POLICIES.items()}
    return {**made, RELAXED: Joint(micro_batches=(1, 2, 4, 8), compression="int8")}


@dataclass(frozen=True)
class Result:
    """Seconds of the simulated round, least seconds for the plan's cuts, and seconds of the processor for planning."""

    round_time: float
    bound: float
    planning: float


def measure(scenario: Scenario, policy: Policy) -> Result | None:
    """What a policy comes to in a scenario; None where it has no plan."""
    begin = time.process_time()
    try:
        plan = policy.plan(scenario.costs, scenario.clients, scenario.server)
        planning = time.process_time() - begin
        model = LatencyModel(scenario.costs, scenario.clients, scenario.server)
        return Result(simulate(model, plan).round_time, lower_bound(model, plan), planning)
    except InfeasibleError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenarios with this in their names")
    parser.add_argument("--figure", type=Path, help="file for a picture (png, pdf, svg)")
    options = parser.parse_args()
    chosen = scenarios(options.only)
    if not chosen:
        parser.error(f"--only {options.only!r} leaves no scenario.")
    names = list(policies())
    ratios = "joint over edgesplit", "joint over its bound"
    title = f"seconds of a round; {RELAXED}: with int8 and micro-batches, not the same update"
    table = Table(Column("scenario", no_wrap=True), *names, *ratios, title=title)
    rows: list[dict[str, Result | None]] = []
    for scenario in chosen:
        print(scenario.name, file=sys.stderr)
        row = {name: measure(scenario, policy) for name, policy in policies().items()}
        rows.append(row)
        cells = ["–" if result is None else f"{result.round_time:.3g}" for result in row.values()]
        table.add_row(scenario.name, *cells, f"{speed_up(row, 'joint'):.2f}", f"{over_bound(row, 'joint'):.2f}")
    table.add_section()
    medians = ["–" if (middle := median(rows, name)) is None else f"{middle:.2f}" for name in names]
    table.add_row("median speed-up over edgesplit", *medians, medians[names.index("joint")], "")
    Console(width=90 + 12 * len(names)).print(table)
    if options.figure is not None:
        draw(chosen, rows, names, options.figure)
    speed_ups = [speed_up(row, "joint") for row in rows]
    numbers = {
        "joint_over_edgesplit_median": statistics.median(speed_ups),
        "joint_over_edgesplit_min": min(speed_ups),
        "joint_int8_median": statistics.median(speed_up(row, RELAXED) for row in rows),
        "joint_over_bound_median": statistics.median(over_bound(row, "joint") for row in rows),
        "joint_planning_seconds": {
            str(size): max(r["joint"].planning for s, r in zip(chosen, rows, strict=True) if len(s.clients) == size)
            for size in sorted({len(s.clients) for s in chosen})
        },
        "scenarios": len(rows),
    }
    versions = {"numpy": np.__version__, "python": platform.python_version()}
    about = {"machine": platform.machine(), "versions": versions, "command": sys.argv}
    print(json.dumps({**numbers, **about}))


def speed_up(row: dict[str, Result | None], policy: str) -> float:
    """EdgeSplit's simulated round over the policy's."""
    ours, theirs = row[policy], row["edgesplit"]
    assert ours is not None
    assert theirs is not None
    return theirs.round_time / ours.round_time


def over_bound(row: dict[str, Result | None], policy: str) -> float:
    ours = row[policy]
    assert ours is not None
    return ours.round_time / ours.bound


def median(rows: list[dict[str, Result | None]], policy: str) -> float | None:
    """Median of the policy's speed-ups over EdgeSplit, where it has a plan."""
    there = [speed_up(row, policy) for row in rows if row[policy] is not None]
    return statistics.median(there) if there else None


def draw(chosen: list[Scenario], rows: list[dict[str, Result | None]], names: list[str], file: Path) -> None:
    """A dot for every scenario and policy: how many times shorter than EdgeSplit's its round is."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    for place, name in enumerate(reversed(names)):
        there = sorted(speed_up(row, name) for row in rows if row[name] is not None)
        if there:
            axes.plot(there, [place] * len(there), "o", alpha=0.4, markersize=5, color="tab:blue")
            axes.plot([statistics.median(there)], [place], "|", markersize=16, color="black")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=list(reversed(names)))
    axes.set_xlabel(f"speed-up of the simulated round over edgesplit's, {len(chosen)} scenarios; bar: median")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
