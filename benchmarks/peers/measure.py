"""Runs systems in turn, each in a process of its own, checks that they did the same work, and forms ratios."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peers.work import Work

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4
"""Largest difference of two systems' weights after a round that counts as rounding."""
TIME_LIMIT = 1800.0
"""Seconds after which a run counts as hung."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "EDGESPLIT_CACHE": "",  # ours finds its cuts anew in every run: a first round is a first round
    "PYTHONWARNINGS": "ignore",
}


class MissingError(Exception):
    """A peer that is not installed, or does not run here; the message says why."""


@dataclass(frozen=True)
class System:
    """A module of `systems/`, and the options of its `play`."""

    module: str
    options: Mapping[str, Any]
    clients: int | None = None  # other than those of the work


@dataclass(frozen=True)
class Run:
    """One process of a system.

    Attributes:
        first: Seconds from the start of the process to the end of the first round, imports included.
        steady: Median of the seconds of all later rounds.
        work: Samples and steps of every round.
        loss: Mean loss of the first round, where the system says it.
        weights: After the first round, where the system says them.
    """

    first: float
    steady: float
    work: tuple[tuple[int, int], ...]
    loss: float | None
    weights: dict[str, Tensor]


def require(module: str, install: str) -> None:
    """Makes sure that a peer is installed.

    Raises:
        MissingError: If not.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingError(f"{module} is not installed: {install}")


def run(system: System, work: Work) -> Run:
    """Starts a system's process and waits for it.

    Raises:
        RuntimeError: If it fails, with the end of what it printed, or takes longer than `TIME_LIMIT`.
    """
    work = replace(work, clients=system.clients or work.clients)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.peers.child", system.module, folder]
        command += [json.dumps(asdict(work)), json.dumps(dict(system.options))]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{system.module} had not ended after {TIME_LIMIT:.0f} s") from error
        if done.returncode:
            end = (done.stderr or done.stdout)[-3000:]
            raise RuntimeError(f"{system.module} ended with status {done.returncode}:\n{end}")
        rounds = json.loads((Path(folder) / "rounds.json").read_text())
        weights = torch.load(Path(folder) / "weights.pt", weights_only=True)
    return Run(
        first=rounds[0]["ended"] - began,
        steady=statistics.median(later["ended"] - later["began"] for later in rounds[1:]),
        work=tuple((one["samples"], one["steps"]) for one in rounds),
        loss=rounds[0]["loss"],
        weights=weights,
    )


def with_one_thread(system: System, work: Work) -> Run:
    """An untimed run, to compare what comes out of it.

    One step of ResNet-18 on one thread and on two differs by 1e-3 in the loss of the next batch, for rounding alone.
    """
    print(f"check: {system.module}", file=sys.stderr)
    system = replace(system, options={**system.options, "threads": 1})
    done = run(system, replace(work, rounds=2))
    check_same_work({system.module: done}, replace(work, rounds=2))
    return done


def check_same_work(runs: Mapping[str, Run], work: Work) -> None:
    """Makes sure that every system has trained on what it should.

    Raises:
        RuntimeError: If one has not.
    """
    asked = ((work.samples, work.steps),) * work.rounds
    for name, one in runs.items():
        if one.work != asked:
            raise RuntimeError(f"{name} did (samples, steps) {one.work} in its rounds, where {asked} were asked for")


def interleaved(systems: Mapping[str, System], work: Work, pairs: int) -> dict[str, list[Run]]:
    """All systems in turn, every other time in the opposite order, so that what else the machine does hits all.

    Raises:
        RuntimeError: If a run fails, or has not done the work.
    """
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    for pair in range(pairs):
        for name in list(systems) if pair % 2 == 0 else list(systems)[::-1]:
            print(f"pair {pair}: {name}", file=sys.stderr)
            runs[name].append(run(systems[name], work))
        check_same_work({name: done[-1] for name, done in runs.items()}, work)
    return runs


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest absolute difference of the weights and running statistics of two models.

    Raises:
        ValueError: If they do not have the same entries.
    """
    if a.keys() != b.keys():
        raise ValueError(f"two models with other entries: {sorted(a.keys() ^ b.keys())}")
    floating = [name for name in a if a[name].is_floating_point() and b[name].is_floating_point()]
    return max((a[name].double() - b[name].double()).abs().max().item() for name in floating)


def check_same_weights(whose: str, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], work: Work) -> float:
    """Makes sure that two systems have come to the same weights, and that these are not the ones they began with.

    Returns:
        The largest difference.

    Raises:
        RuntimeError: If they have not.
    """
    apart, moved = difference(theirs, ours), difference(theirs, work.model().state_dict())
    print(
        f"weights after one round, {whose} and ours: largest difference {apart:.2g} (from the first ones: {moved:.2g})"
    )
    if not apart <= CLOSE:
        raise RuntimeError(f"{whose} weights and ours differ by {apart:.2g} after one round, more than {CLOSE}")
    if not moved > 10 * CLOSE:
        raise RuntimeError(f"{whose} weights have moved by {moved:.2g} in a round: too little to tell anything")
    return apart


def figures(theirs: list[Run], ours: list[Run], suffix: str = "") -> dict[str, Any]:
    """The peer's seconds over ours: medians of the pairs' ratios, and these. Above 1: ours is faster."""
    made: dict[str, Any] = {}
    for field, name in (("steady", "steady"), ("first", "first_round")):
        ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(theirs, ours, strict=True)]
        made[name + suffix] = statistics.median(ratios)
        made[f"{name}{suffix}_pairs"] = ratios
    return made


def seconds(runs: Mapping[str, list[Run]]) -> dict[str, Any]:
    return {
        name: {"steady": [one.steady for one in done], "first_round": [one.first for one in done]}
        for name, done in runs.items()
    }


def rows(runs: Mapping[str, list[Run]]) -> list[tuple[str, float, float]]:
    """Name, median seconds of a steady round and of the first one, for a table."""
    return [
        (name, statistics.median(one.steady for one in done), statistics.median(one.first for one in done))
        for name, done in runs.items()
    ]


def missing(error: Exception) -> dict[str, Any]:
    """What the JSON says of a peer that does not run here."""
    return {"steady": None, "first_round": None, "reason": str(error)}


def versions(*packages: str) -> dict[str, str]:
    names = ("torch", "lightning", *packages)
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def limit_cores(cores: int) -> None:
    """Keeps this process, and with it all that it starts, to so many cores.

    Raises:
        ValueError: If the machine has fewer.
    """
    own = sorted(os.sched_getaffinity(0))
    if len(own) < cores:
        raise ValueError(f"--cores {cores}: this process may use {len(own)}.")
    os.sched_setaffinity(0, own[:cores])


def parser(about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--samples", type=int, default=1024, help="of all clients together, per round")
    made.add_argument("--rounds", type=int, default=4, help="of each run, with the first")
    made.add_argument("--pairs", type=int, default=5, help="how often each system is run")
    made.add_argument("--clients", type=int, default=4)
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--cores", type=int, default=2, help="of each system, with all its processes")
    return made


def work_of(options: argparse.Namespace) -> Work:
    """The work that was asked for; keeps this process to its cores.

    Raises:
        ValueError: If it cannot be done.
    """
    if options.pairs < 1:
        raise ValueError(f"--pairs {options.pairs} must be at least 1.")
    work = Work(options.clients, options.samples, options.batch, options.rounds, options.cores)
    limit_cores(work.cores)
    return work


def about(work: Work, runs: Mapping[str, list[Run]], *packages: str) -> dict[str, Any]:
    """What stands beside the figures of a comparison: seconds and rows of its runs, the work, and what it ran on."""
    return {
        "seconds": seconds(runs),
        "rows": rows(runs),
        "work": asdict(work),
        "versions": versions(*packages),
        "machine": platform.machine(),
        "argv": sys.argv,
    }


def table(title: str, done: Mapping[str, list[tuple[str, float, float]]]) -> None:
    """Prints the seconds of all systems of each comparison."""
    made = Table(title=title)
    for column in ("comparison", "system"):
        made.add_column(column)
    for column in ("round, s", "first round, s"):
        made.add_column(column, justify="right")
    for comparison, lines in done.items():
        for name, steady, first in lines:
            made.add_row(comparison, name, f"{steady:.2f}", f"{first:.2f}")
        made.add_section()
    Console().print(made)


def main(name: str, docstring: str | None, compare: Callable[[Work, int], dict[str, Any]]) -> None:
    """One comparison as a command: a table, and its figures as the last line.

    Where the peer cannot be run, the line has null and a reason, and the command ends with status 1.
    """
    options = parser(docstring)
    given = options.parse_args()
    try:
        work = work_of(given)
    except ValueError as error:
        options.error(str(error))
    try:
        result = compare(work, given.pairs)
    except MissingError as error:
        print(error, file=sys.stderr)
        print(json.dumps({**missing(error), **about(work)}))
        sys.exit(1)
    table(f"{work.samples} samples a round in batches of {work.batch}, {work.cores} cores", {name: result.pop("rows")})
    print(json.dumps(result))
