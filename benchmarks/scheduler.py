"""How fast the policy `exact` plans, from 10 to 1,000,000 clients with 20 cuts, and how far it is from the optimum.

- solve: from arrays of the latency model in memory (`RoundTerms`, `both` included; 20 cuts × clients, float64) to each
  client's cut and share. np.sort: the uplink's seconds of the same cuts × clients, sorted as one array. Both in turn.
- terms: from profile objects to these arrays. plan: `Exact().plan`, from profile objects to a `Plan`; up to 100,000.
- worst gap: how much later than the optimum the slowest client is done, relative, over 200 random instances of 2 to 4
  clients and 3 to 5 cuts. The optimum is from brute force: all combinations of cuts, shares by bisection.

    python -m benchmarks.scheduler [--clients 10 100000] [--figure FILE]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.common import publish
from lightning_edgesplit.scheduling import ClientProfile, Costs, CutCost, Exact, LatencyModel, ServerProfile
from lightning_edgesplit.scheduling.policies.bisection import solve

CUTS = 20
SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
Problem = tuple[Costs, list[ClientProfile], ServerProfile]


def problem(seed: int, clients: int, cuts: int) -> Problem:
    """A random one: the deeper a cut, the more work and weights on the client; half of the clients have limits."""
    rng = np.random.default_rng(seed)
    work, weights = np.sort(rng.uniform(1e6, 5e8, cuts)), np.sort(rng.uniform(1e4, 4e7, cuts))
    made = [
        CutCost(
            f"layer{i}", work[i], 2 * work[i], 3 * (work[-1] - work[i]) + 1e6, smashed=rng.uniform(1e3, 3e5),
            gradient=rng.uniform(1e3, 3e5), weights=weights[i], step_up=500.0, step_down=400.0,
            memory_fixed=3 * weights[i], memory_per_sample=rng.uniform(1e4, 1e6),
        )
        for i in range(cuts - 1)
    ]  # fmt: skip
    end = CutCost("end", work[-1], 2 * work[-1], 0.0, 0.0, 0.0, weights[-1], memory_fixed=3 * weights[-1])
    batch, steps = rng.choice([8, 16, 32], clients), rng.integers(1, 20, clients)
    costs = Costs((*made, end), tuple(batch.tolist()), tuple(steps.tolist()))
    least = min(cut.memory_fixed + 32 * cut.memory_per_sample for cut in made)
    columns = (
        10 ** rng.uniform(10, 12, clients),
        np.where(rng.random(clients) < 0.5, least * 10 ** rng.uniform(0, 1, clients), np.nan),
        np.where(rng.random(clients) < 0.5, 10 ** rng.uniform(6.5, 8.5, clients), np.nan),
        np.where(rng.random(clients) < 0.5, 10 ** rng.uniform(6.5, 8.5, clients), np.nan),
        rng.choice([0.0, 0.02], clients),
    )
    profiles = [
        ClientProfile(
            f"client-{k}", flops, None, *(None if limit != limit else limit for limit in (memory, up, down)), latency
        )
        for k, (flops, memory, up, down, latency) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]
    link = 10 ** rng.uniform(5.8, 6.2)  # of each client, on average
    return costs, profiles, ServerProfile(flops=1e11 * clients, uplink=link * clients, downlink=link * clients)


def brute_force(costs: Costs, clients: list[ClientProfile], server: ServerProfile) -> float:
    """Seconds of the slowest client at the optimum: all combinations of cuts at once, [combinations, clients]."""
    numbers = []  # per client and cut that fits: fixed, up, own up, down, own down, seconds
    for client, batch, steps in zip(clients, costs.batch, costs.steps, strict=True):
        rows = []
        for cut in costs.cuts:
            if client.memory is not None and cut.memory_fixed + batch * cut.memory_per_sample > client.memory:
                continue
            fixed = steps * batch * (cut.client_forward + cut.client_backward) / client.flops + 2 * client.latency
            if cut.name != "end":
                fixed += steps * (batch * cut.server * len(clients) / server.flops + 2 * client.latency)
            up = 8 * (steps * (batch * cut.smashed + cut.step_up) + cut.weights)
            down = 8 * (steps * (batch * cut.gradient + cut.step_down) + cut.weights)
            own_up, own_down = up / (client.uplink or np.inf), down / (client.downlink or np.inf)
            rows.append((fixed, up / server.uplink, own_up, down / server.downlink, own_down))
        numbers.append(rows)
    fixed, up, own_up, down, own_down = np.moveaxis(np.array(list(itertools.product(*numbers))), -1, 0)

    def seconds(share: np.ndarray) -> np.ndarray:
        return fixed + np.maximum(up / share, own_up) + np.maximum(down / share, own_down)

    def shares(target: np.ndarray) -> np.ndarray:
        low, high = np.full(fixed.shape, -40.0), np.zeros(fixed.shape)  # powers of two
        for _ in range(50):
            middle = (low + high) / 2
            enough = seconds(np.exp2(middle)) <= target[:, None]
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(seconds(np.ones(fixed.shape)) <= target[:, None], np.exp2(high), np.inf)

    low, high = seconds(np.ones(fixed.shape)).max(axis=1), seconds(np.full(fixed.shape, 1 / len(clients))).max(axis=1)
    for _ in range(45):
        middle = (low + high) / 2
        enough = shares(middle).sum(axis=1) <= 1
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return float(high.min())


def worst_gap(instances: int) -> float:
    gaps = []
    for seed in range(instances):
        made = problem(seed, clients=2 + seed % 3, cuts=3 + seed // 3 % 3)
        gaps.append(Exact().plan(*made).round_time / brute_force(*made) - 1)
    return max(gaps, key=abs)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(clients: int, repetitions: int) -> dict[str, float | None]:
    """Seconds; medians and the best of solve and np.sort in turn."""
    costs, profiles, server = problem(0, clients, CUTS)
    model = LatencyModel(costs, profiles, server)
    made = seconds(lambda: model.terms.both)
    terms, pairs = model.terms, []
    solve(terms)
    for _ in range(repetitions):
        pairs.append((seconds(lambda: solve(terms)), seconds(lambda: np.sort(terms.up, axis=None))))
    solving, sorting = zip(*pairs, strict=True)
    plan = seconds(lambda: Exact().plan(costs, profiles, server)) if clients <= 100_000 else None
    return {
        "clients": clients, "terms": made, "solve": statistics.median(solving), "solve_best": min(solving),
        "sort": statistics.median(sorting), "sort_best": min(sorting),
        "ratio": statistics.median(a / b for a, b in pairs), "plan": plan,
    }  # fmt: skip


def figure(rows: list[dict[str, float | None]], path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "scheduler"}):
        drawing = Figure(figsize=(6, 4), layout="constrained")
        axes = FigureCanvasAgg(drawing).figure.add_subplot()
        for key, label in (
            ("solve", "exact: arrays to cuts and shares"),
            ("sort", "np.sort of cuts × clients numbers"),
        ):
            axes.loglog([row["clients"] for row in rows], [row[key] for row in rows], "o-", label=label)
        planned = [row for row in rows if row["plan"] is not None]
        axes.loglog(
            [row["clients"] for row in planned], [row["plan"] for row in planned], "s--", label="profiles to plan"
        )
        axes.set(xlabel="clients", ylabel="seconds", title=f"{CUTS} cuts, {os.cpu_count()} cores")
        axes.grid(alpha=0.3)
        axes.legend()
        drawing.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=SIZES, help="numbers of clients")
    parser.add_argument("--repetitions", type=int, default=9, help="of which the median counts")
    parser.add_argument("--instances", type=int, default=200, help="that brute force solves too")
    parser.add_argument("--figure", type=Path, help="file for a picture, .png or .svg")
    options = parser.parse_args()
    table = Table(title=f"exact, {CUTS} cuts, {os.cpu_count()} cores; milliseconds: median (best)")
    for column in ("clients", "solve", "np.sort", "solve / sort", "terms", "plan"):
        table.add_column(column, justify="right")
    rows = []
    for clients in options.clients:
        row = measure(clients, options.repetitions)
        rows.append(row)
        table.add_row(
            f"{clients:,}", f"{1e3 * row['solve']:.1f} ({1e3 * row['solve_best']:.1f})",
            f"{1e3 * row['sort']:.2f} ({1e3 * row['sort_best']:.2f})", f"{row['ratio']:.2f}",
            f"{1e3 * row['terms']:.0f}", "" if row["plan"] is None else f"{1e3 * row['plan']:.0f}",
        )  # fmt: skip
    gap = worst_gap(options.instances)
    if options.figure:
        figure(rows, options.figure)
    largest = next((row for row in rows if row["clients"] == 100_000), None)
    values = {
        "seconds_100k": largest and largest["solve"],
        "over_numpy_sort": largest and largest["ratio"],
        "worst_gap": gap,
        "rows": rows,
    }
    publish(values, table, f"worst gap to brute force over {options.instances} instances: {gap:.1e}")


if __name__ == "__main__":
    main()
