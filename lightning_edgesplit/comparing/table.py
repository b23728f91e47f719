"""The table of a paper: a row per system, mean ± standard deviation over seeds, speed-ups with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lightning_edgesplit.comparing.config import Comparison
from lightning_edgesplit.comparing.results import Result, pairs, time_column
from lightning_edgesplit.comparing.statistics import Summary, summary
from lightning_edgesplit.monitoring.units import digits


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Attributes:
        header: With its unit.
        key: Of the rows of results.
        factor: From the row's unit to the header's.
        best: ``"min"`` or ``"max"``.
        over: Whether it is the baseline's value over this system's, seed by seed, instead of the value.
    """

    header: str
    key: str
    factor: float = 1.0
    best: str = "min"
    over: bool = False


@dataclass(frozen=True)
class Cell:
    """A number of the table.

    Attributes:
        text: How it reads.
        value: To compare with others of its column; None: there is none.
        best: Whether none is better, as far as the digits shown tell.
        short: Without its spread, for the terminal.
    """

    text: str
    value: float | None
    best: bool = False
    short: str = ""


def columns(comparison: Comparison, results: Sequence[Result]) -> list[Column]:
    """What there is to show; a column that nothing is known for is left out."""
    target = comparison.target
    share = target.mode == "max" and "acc" in target.metric
    made = [Column("round, s", "seconds_per_round")]
    made += [Column(f"to {_goal(goal, share)}, s", time_column(target, goal)) for goal in target.values]
    made += [
        Column(
            f"{target.metric}{', %' if share else ''}", f"final_{target.metric}", 100.0 if share else 1.0, target.mode
        ),
        Column("up, MB", "bytes_up", 1e-6),
        Column("down, MB", "bytes_down", 1e-6),
        Column("idle, %", "idle_fraction", 100.0),
        Column("server busy, %", "server_busy_fraction", 100.0, "max"),
        Column("computing, kJ", "compute_energy_joules", 1e-3),
        Column("energy, kJ", "energy_joules", 1e-3),
        Column("speed-up", "seconds_per_round", best="max", over=True),
    ]
    made += [
        Column(f"speed-up to {_goal(goal, share)}", time_column(target, goal), best="max", over=True)
        for goal in target.values
    ]
    return [column for column in made if any(result.row.get(column.key) is not None for result in results)]


def _goal(goal: float, share: bool) -> str:
    return f"{100 * goal:g} %" if share else f"{goal:g}"


def speed_up(baseline: Sequence[Result], system: Sequence[Result], key: str) -> Summary | None:
    """How many times faster than the baseline, seed by seed: seeds share weights, data and draws, so pairs compare.

    Returns:
        Mean over the seeds and its 95 % interval; None unless both have a value for every seed of either.
    """
    one = {result.row["seed"]: result.row[key] for result in baseline}
    other = {result.row["seed"]: result.row[key] for result in system}
    if set(one) != set(other) or None in one.values() or None in other.values():
        return None
    return summary([one[seed] / other[seed] for seed in sorted(one)])


def cells(comparison: Comparison, results: Sequence[Result]) -> list[tuple[str, str, list[Cell]]]:
    """Scenario, system and its cells, the best of each scenario marked."""
    shown, seeds = columns(comparison, results), len(comparison.seeds)
    rows: list[tuple[str, str, list[Cell]]] = []
    grouped = pairs(results, comparison)
    for scenario, system, own in grouped:
        baseline = next(runs for s, label, runs in grouped if (s, label) == (scenario, comparison.baseline))
        row = []
        for column in shown:
            if column.over:
                row.append(_ratio(speed_up(baseline, own, column.key)))
            else:
                row.append(_mean([result.row[column.key] for result in own], column.factor, seeds))
        rows.append((scenario, system, row))
    return [(scenario, system, _marked(scenario, row, rows, shown)) for scenario, system, row in rows]


def _marked(scenario: str, row: list[Cell], rows: list[tuple[str, str, list[Cell]]], shown: list[Column]) -> list[Cell]:
    marked = []
    for place, (cell, column) in enumerate(zip(row, shown, strict=True)):
        others = [other[place] for name, _, other in rows if name == scenario and other[place].value is not None]
        found = (min if column.best == "min" else max)(others, key=lambda c: c.value or 0.0, default=None)
        differ = len({other.short for other in others}) > 1  # where all are as good, none is best
        marked.append(replace(cell, best=differ and found is not None and cell.short == found.short))
    return marked


def _mean(values: list[float | None], factor: float, seeds: int) -> Cell:
    """Mean ± standard deviation; where some seeds have no value, how many have one: their mean would be too good."""
    known = [value * factor for value in values if value is not None]
    if not values:
        return Cell("failed", None, short="failed")
    if len(known) < len(values):
        text = f"- ({len(known)}/{len(values)})" if known else "-"
        return Cell(text, None, short=text)
    made = summary(known)
    assert made is not None
    missing = f" ({len(values)}/{seeds})" if len(values) < seeds else ""
    return Cell(with_spread(made) + missing, made.mean, short=digits(made.mean) + missing)


def with_spread(made: Summary) -> str:
    """Mean ± standard deviation, with two digits of the latter but at most four of the mean.

    Where all seeds have the same value, as times have on the virtual clock, the mean stands alone.
    """
    alone = digits(made.mean) if made.mean >= 0 else f"{made.mean:.3g}"
    if not made.std or made.std < 1e-9 * abs(made.mean):
        return alone
    places = 1 - math.floor(math.log10(made.std))
    if made.mean:
        places = min(places, 3 - math.floor(math.log10(abs(made.mean))))
    places = max(0, places)
    if not round(made.std, places):
        return alone
    return f"{made.mean:.{places}f} ± {made.std:.{places}f}"


def _ratio(made: Summary | None) -> Cell:
    if made is None:
        return Cell("-", None, short="-")
    short = f"{made.mean:.2f}"
    if made.half is None or made.half < 1e-9:
        return Cell(short, made.mean, short=short)
    return Cell(f"{short} [{made.mean - made.half:.2f}, {made.mean + made.half:.2f}]", made.mean, short=short)


def markdown(comparison: Comparison, results: Sequence[Result]) -> str:
    """``table.md``: a table per scenario."""
    shown = columns(comparison, results)
    parts = []
    for scenario in comparison.scenarios:
        lines = [
            f"## {scenario.name}", "", _line(["system", *(column.header for column in shown)]),
            _line(["---", *("---:" for _ in shown)]),
        ]  # fmt: skip
        for name, system, row in cells(comparison, results):
            if name == scenario.name:
                lines.append(_line([system, *(f"**{c.text}**" if c.best else c.text for c in row)]))
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, _caption(comparison) + "\n"])


def _line(parts: Sequence[str]) -> str:
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"


def _caption(comparison: Comparison) -> str:
    seeds = len(comparison.seeds)
    over = f"Mean ± standard deviation over {seeds} seeds (one number: all the same)" if seeds > 1 else "One seed"
    interval = ", with the 95 % confidence interval of Student's t" if seeds > 1 else ""
    return (
        f"{over}; times are emulated. Speed-ups are over {comparison.baseline}, seed by seed{interval}. Best in bold;"
        ' "-": not reached by every seed, or not known.'
    )


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def tex(comparison: Comparison, results: Sequence[Result]) -> str:
    r"""``table.tex``: one tabular of the booktabs package, a block per scenario."""
    shown = columns(comparison, results)
    rows = cells(comparison, results)
    lines = [
        "% needs \\usepackage{booktabs}; " + _caption(comparison).replace("±", "+-"),
        r"\begin{tabular}{l" + "r" * len(shown) + "}",
        r"\toprule",
        " & ".join(["System", *(_escaped(column.header) for column in shown)]) + r" \\",
    ]
    for scenario in comparison.scenarios:
        lines += [r"\midrule", rf"\multicolumn{{{len(shown) + 1}}}{{l}}{{\emph{{{_escaped(scenario.name)}}}}} \\"]
        for name, system, row in rows:
            if name == scenario.name:
                texts = [rf"\textbf{{{_escaped(c.text)}}}" if c.best else _escaped(c.text) for c in row]
                lines.append(" & ".join([_escaped(system), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def terminal(comparison: Comparison, results: Sequence[Result]) -> list[RichTable]:
    """A table per scenario for the terminal: means of the columns that fit into its 80 characters."""
    shown = columns(comparison, results)
    over = [column for column in shown if column.over]
    wide = ("bytes", "server_busy", "compute_energy", "energy", "idle")
    kept = [n for n, c in enumerate(shown) if not c.key.startswith(wide) and (not c.over or c is over[-1])]
    tables = []
    for scenario in comparison.scenarios:
        made = RichTable(
            title=Text(scenario.name, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, header_style="",
            padding=(0, 1), pad_edge=False, show_edge=False,
        )  # fmt: skip
        made.add_column("system", overflow="fold")
        for n in kept:
            made.add_column(shown[n].header, justify="right")
        for name, system, row in cells(comparison, results):
            if name == scenario.name:
                made.add_row(Text(system), *(Text(row[n].short, style="bold" if row[n].best else "") for n in kept))
        tables.append(made)
    return tables
