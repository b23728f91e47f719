"""What a comparison shows on the terminal: the plans, how far the runs are, and what failed. Plain text in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from lightning_edgesplit.comparing.planned import Planned
from lightning_edgesplit.comparing.runner import Progress
from lightning_edgesplit.monitoring.units import seconds

_EVERY = 30.0
"""Seconds between lines where there is no terminal."""


def plans_table(planned: Sequence[Planned]) -> Table:
    """The first round of every system in every scenario."""
    table = Table(
        title=Text("first round, as planned", style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
        header_style="", padding=(0, 1), pad_edge=False, show_edge=False,
    )  # fmt: skip
    for header in ("scenario", "system", "cuts"):
        table.add_column(header, overflow="fold")
    table.add_column("round", justify="right", no_wrap=True)
    for one in planned:
        table.add_row(
            Text(one.scenario.name), Text(one.system.label), Text(_cuts(one)), seconds(one.expected.round_time)
        )
    return table


def _cuts(one: Planned) -> str:
    counts: dict[str, int] = {}
    for client, cut in enumerate(one.plan.cuts):
        if client not in one.plan.left_out:
            counts[cut] = counts.get(cut, 0) + 1
    cuts = ", ".join(cut if count == 1 else f"{count}× {cut}" for cut, count in counts.items())
    return f"{cuts}; batches {', '.join(map(str, one.plan.batches))}" if one.plan.batches else cuts


def plan_entry(one: Planned) -> dict[str, Any]:
    """The same for programs."""
    return {
        "scenario": one.scenario.name,
        "system": one.system.label,
        "clients": [profile.name for profile in one.scenario.profiles],
        "cuts": list(one.plan.cuts),
        "shares": list(one.plan.shares),
        "batches": list(one.plan.batches),
        "round_seconds": one.expected.round_time,
        "client_seconds": list(one.expected.ends),
    }


@contextmanager
def progress_shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left on a terminal, a line now and then in a pipe."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Bar(*columns, console=console) as bar:
            task = bar.add_task("runs", total=None, left="")

            def show(progress: Progress) -> None:
                done = progress.kept + progress.done + sum(progress.running.values())
                bar.update(task, total=progress.runs, completed=int(done), left=_left(progress))

            yield show
        return
    last = [float("-inf"), -1.0]

    def tell(progress: Progress) -> None:
        now, done = time.monotonic(), progress.kept + progress.done
        if done != last[1] or now - last[0] >= _EVERY:
            last[:] = [now, done]
            kept = f", {progress.kept} of them from before" if progress.kept else ""
            left = _left(progress)
            console.print(f"{done} of {progress.runs} runs done{kept}{', ' if left else ''}{left}", highlight=False)

    yield tell


def _left(progress: Progress) -> str:
    left = progress.seconds_left
    if left is None or progress.kept + progress.done == progress.runs:
        return ""
    minutes, rest = divmod(round(left), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"about {text} left"
