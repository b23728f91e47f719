"""How good the model is over emulated time and over rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lightning_edgesplit.comparing.config import Target
from lightning_edgesplit.comparing.figures.look import bare, legend_below, line_of, new, time_unit
from lightning_edgesplit.comparing.results import Result

SPREAD = 8.0
"""From this ratio of the systems' durations on, time has a logarithmic axis: else the fastest is a stroke."""


def curve_figure(systems: Sequence[tuple[str, Sequence[Result]]], target: Target, over: str) -> Figure:
    """The metric after each validation: mean over seeds, the band one standard deviation.

    Args:
        systems: Label and results of each; those without results are left out.
        target: The metric, and lines at its goals.
        over: ``"time"`` or ``"rounds"``.
    """
    figure, (axes,) = new(2.5)
    key = "elapsed" if over == "time" else "rounds"
    share = target.mode == "max" and "acc" in target.metric
    scale = 100.0 if share else 1.0
    ends = [own[0].record["curve"][-1][key] for _, own in systems if own]
    factor, unit = time_unit(max(ends)) if over == "time" else (1.0, "")
    handles = []
    for number, (label, own) in enumerate(systems):
        points = min((len(result.record["curve"]) for result in own), default=0)
        if not points:
            continue
        x = np.array([[p[key] / factor for p in result.record["curve"][:points]] for result in own]).mean(axis=0)
        raw = [[p["metrics"].get(target.metric) for p in result.record["curve"][:points]] for result in own]
        y = scale * np.array([[np.nan if value is None else value for value in line] for line in raw])
        mean, spread = y.mean(axis=0), y.std(axis=0, ddof=1) if len(own) > 1 else np.zeros(points)
        look = line_of(number)
        every = max(1, points // 6)
        axes.plot(x, mean, **look, markersize=3.2, markevery=(number % every, every))
        axes.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.2, linewidth=0)
        handles.append(Line2D([], [], **look, markersize=3.5, label=label))
    for goal in target.values:
        axes.axhline(scale * goal, color="#555555", linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=0)
    if over == "time" and max(ends) > SPREAD * min(ends):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(f"emulated time ({unit})" if over == "time" else "rounds")
    axes.set_ylabel(f"{_words(target.metric)} (%)" if share else _words(target.metric))
    bare(axes)
    legend_below(figure, handles, 3 if all(len(label) < 14 for label, _ in systems) else 2)
    return figure


def _words(metric: str) -> str:
    return {"val_accuracy": "test accuracy", "val_acc": "test accuracy"}.get(metric, metric.replace("_", " "))
