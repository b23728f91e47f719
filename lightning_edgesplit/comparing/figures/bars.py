"""What a round's time and bytes go into, and how much faster each system is."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lightning_edgesplit.comparing.config import Comparison
from lightning_edgesplit.comparing.figures.look import (
    COLOURS,
    MARKERS,
    bare,
    byte_unit,
    legend_below,
    new,
    time_unit,
)
from lightning_edgesplit.comparing.results import Result, pairs, time_column
from lightning_edgesplit.comparing.table import speed_up
from lightning_edgesplit.monitoring.timeline import COLOURS as PHASE_COLOURS
from lightning_edgesplit.monitoring.units import digits
from lightning_edgesplit.runtime.report import PHASES

_OTHERS = "others"
_LABELS = {
    "download": "model down", "upload": "model up", "forward": "forward", "backward": "backward", "grant": "link taken",
    "uplink": "smashed up", "downlink": "gradient down", "wait": "queue", "server": "server", "head": "last layers",
    "aggregation": "aggregation", _OTHERS: "others' turn",
}  # fmt: skip
_HATCHES = {
    "download": "....", "upload": "....", "forward": "", "backward": "////", "uplink": "", "downlink": "\\\\\\\\",
    "wait": "", "server": "", "head": "xxxx", "aggregation": "", "grant": "----", _OTHERS: "",
}  # fmt: skip


def _phases(result: Result) -> dict[str, float]:
    """Seconds by phase of the slowest client, whose round is the round: mean over the rounds of a run."""
    total: dict[str, float] = {}
    rounds = result.record["rounds"]
    for one in rounds:
        straggler = max(one["clients"], key=lambda client: client["round_time"])
        own = {**(straggler["once"] or straggler["seconds"]), "aggregation": one["aggregation_seconds"]}
        # where clients take turns, the last one's round begins with the others'
        own[_OTHERS] = max(0.0, one["seconds"] - sum(own.values()))
        for phase, seconds in own.items():
            total[phase] = total.get(phase, 0.0) + seconds / len(rounds)
    return total


def phases_figure(systems: Sequence[tuple[str, Sequence[Result]]]) -> Figure:
    """A bar per system: the slowest client's seconds by phase, mean over rounds and seeds."""
    shown = [(label, own) for label, own in systems if own]
    figure, (axes,) = new(1.05 + 0.22 * len(shown))
    bars = []
    for _, own in shown:
        each = [_phases(result) for result in own]
        bars.append({p: sum(one.get(p, 0.0) for one in each) / len(each) for p in (*PHASES, _OTHERS)})
    factor, unit = time_unit(max(sum(bar.values()) for bar in bars))
    longest = max(sum(bar.values()) for bar in bars) / factor
    used = [p for p in (_OTHERS, *PHASES) if any(bar[p] / factor > 0.002 * longest for bar in bars)]
    left = [0.0] * len(bars)
    for phase in used:
        widths = [bar[phase] / factor for bar in bars]
        colour = PHASE_COLOURS.get(phase, "#DDDDDD")
        axes.barh(
            range(len(bars)), widths, 0.68, left, color=colour, hatch=_HATCHES[phase], edgecolor="white", linewidth=0.3
        )
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for row, end in enumerate(left):
        axes.text(end + 0.012 * longest, row, digits(end), va="center", fontsize=6.5)
    axes.set_xlim(0, 1.12 * longest)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel(f"slowest client's round ({unit})")
    bare(axes, "x")
    handles = [
        Patch(facecolor=PHASE_COLOURS.get(p, "#DDDDDD"), hatch=_HATCHES[p], edgecolor="white", label=_LABELS[p])
        for p in used
    ]
    legend_below(figure, handles, 3)
    return figure


def bytes_figure(systems: Sequence[tuple[str, Sequence[Result]]]) -> Figure:
    """What all clients sent and received in a run, mean over seeds."""
    shown = [(label, own) for label, own in systems if own]
    figure, (axes,) = new(0.85 + 0.26 * len(shown))
    mean = {
        way: [sum(result.row[f"bytes_{way}"] for result in own) / len(own) for _, own in shown]
        for way in ("up", "down")
    }
    factor, unit = byte_unit(max(max(values) for values in mean.values()))
    largest = max(max(values) for values in mean.values()) / factor
    looks = (("up", "clients to server", "#D55E00", "", -0.19), ("down", "server to clients", "#56B4E9", "////", 0.19))
    for way, label, colour, hatch, shift in looks:
        values = [value / factor for value in mean[way]]
        places = [row + shift for row in range(len(shown))]
        axes.barh(places, values, 0.36, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.012 * largest, place, digits(value), va="center", fontsize=6.2)
    axes.set_xlim(0, 1.12 * largest)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel(f"bytes of all rounds ({unit})")
    bare(axes, "x")
    legend_below(figure, axes.get_legend_handles_labels()[0], 2)
    return figure


def speed_up_figure(comparison: Comparison, results: Sequence[Result]) -> Figure | None:
    """How many times faster than the baseline, with 95 % confidence intervals over seeds, for every scenario.

    In time to the highest goal that everybody reaches in every seed, else in time per round.

    Returns:
        None if there is nothing but the baseline.
    """
    grouped = {(scenario, label): own for scenario, label, own in pairs(results, comparison)}
    labels = [system.label for system in comparison.systems if system.label != comparison.baseline]
    scenarios = [scenario.name for scenario in comparison.scenarios]
    goals = [
        goal for goal in comparison.target.values
        if results and all(result.row[time_column(comparison.target, goal)] is not None for result in results)
    ]  # fmt: skip
    best = max if comparison.target.mode == "max" else min
    key = time_column(comparison.target, best(goals)) if goals else "seconds_per_round"
    points = []
    for at, scenario in enumerate(scenarios):
        for row, label in enumerate(labels):
            made = speed_up(grouped[scenario, comparison.baseline], grouped[scenario, label], key)
            if made is not None:
                points.append((at, row, made))
    if not points:
        return None
    several = len(scenarios) > 1
    figure, (axes,) = new(0.75 + len(labels) * max(0.26, 0.12 * len(scenarios)) + (0.25 if several else 0.0))
    step = 0.7 / max(1, len(scenarios))
    right = max(made.mean + (made.half or 0.0) for _, _, made in points)
    for at, row, made in points:
        place = row + (at - (len(scenarios) - 1) / 2) * step
        half = made.half or 0.0
        axes.errorbar(
            made.mean, place, xerr=[[min(half, made.mean)], [half]], fmt=MARKERS[at % len(MARKERS)], markersize=4,
            color=COLOURS[at % len(COLOURS)], elinewidth=1.0, capsize=2 if half > 0.02 * right else 0, capthick=0.8,
        )  # fmt: skip
        axes.annotate(
            f"{made.mean:.2f}", (made.mean + (made.half or 0.0), place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=6.3,
        )  # fmt: skip
    for row in range(1, len(labels)):
        axes.axhline(row - 0.5, color="#EEEEEE", linewidth=0.6, zorder=0)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    axes.set_xlim(0, max(1.15, 1.16 * right))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    goal = f"time to {100 * best(goals):g} %" if goals and "acc" in comparison.target.metric else "time per round"
    if goals and "acc" not in comparison.target.metric:
        goal = f"time to {best(goals):g}"
    axes.set_xlabel(f"speed-up over {comparison.baseline} in {goal} (×)")
    bare(axes, "x")
    if several:
        handles = [
            Line2D([], [], linestyle="", marker=MARKERS[at % len(MARKERS)], color=COLOURS[at % len(COLOURS)],
                   markersize=4, label=name)
            for at, name in enumerate(scenarios)
        ]  # fmt: skip
        legend_below(figure, handles, 2)
    return figure
