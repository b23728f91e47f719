"""What the scripts that measure have in common: pairs that are run in turn, a quiet Trainer, a line of JSON.

Every script prints tables for people and, as its last line, one JSON object: its figures, and beside them ``machine``,
``versions`` and ``command``, so that a number is never without what it was measured on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

PAIRS = 5
"""Pairs of runs by default: the least that a median and a spread say something of."""


def about() -> dict[str, Any]:
    """``machine`` (cores that this process may use, architecture, processor), ``versions`` and ``command``."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "lightning", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    machine = {"cores": len(os.sched_getaffinity(0)), "arch": platform.machine(), "processor": _processor()}
    return {"machine": machine, "versions": versions, "command": _command()}


def _processor() -> str:
    """The processor's name, where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _command() -> str:
    """How this script is started from the repository's root."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {main.name.removesuffix('.__main__')}" if main is not None else Path(sys.argv[0]).name
    return " ".join(["python", name, *sys.argv[1:]])


def publish(figures: Mapping[str, Any], *tables: RenderableType, width: int | None = None) -> None:
    """Prints tables, and the figures as one line of JSON, with what they were measured on.

    Args:
        figures: What was measured, by key; values that JSON knows.
        tables: What rich can print.
        width: Columns of the tables; None: the terminal's.
    """
    if tables:
        Console(width=width).print(*tables, sep="\n")
    print(json.dumps({**figures, **about()}), flush=True)


def interleaved(
    pairs: int, sides: Mapping[str, Callable[[], Any]], note: Callable[[str], None] | None = None
) -> dict[str, list[Any]]:
    """Runs all sides in turn, so many times, so that what else the machine does hits each of them.

    Every other time they are run in the opposite order: a machine that gets slower from run to run is then no
    advantage to who comes first.

    Args:
        pairs: How often each side is run.
        sides: What to run, by name.
        note: Is told what is about to be run; None: standard error.

    Returns:
        What the sides returned, by name, one entry for each time.

    Raises:
        ValueError: If `pairs` is not positive.
    """
    if pairs < 1:
        raise ValueError(f"pairs={pairs} must be at least 1.")
    say = note or (lambda text: print(text, file=sys.stderr, flush=True))
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(pairs):
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            say(f"{number + 1} of {pairs}: {name}")
            results[name].append(sides[name]())
    return results


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One ratio for each pair."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Iterable[float]) -> list[float]:
    """The least and the largest."""
    values = list(values)
    return [min(values), max(values)]


def cell(values: Sequence[float], form: str = ".3f") -> str:
    """A median with its spread, for a table."""
    least, most = spread(values)
    return f"{statistics.median(values):{form}} ({least:{form}} to {most:{form}})"


def quiet(threads: int | None = None) -> None:
    """Silences warnings and Lightning's log; sets torch's threads.

    Args:
        threads: Of torch in this process; None: as they are.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def quiet_trainer(**options: Any) -> Any:
    """Lightning's Trainer on the CPU, without logger, checkpoints, progress bar and summary."""
    import lightning as L

    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(**{"accelerator": "cpu", **silent, "enable_model_summary": False, **options})
