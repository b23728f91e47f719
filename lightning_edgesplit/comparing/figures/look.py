"""How figures look: the width of a column, colours that everybody can tell apart, and a marker for each system."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_edgesplit.comparing.files import write

WIDTH = 3.3
"""Inches: a column of a two-column page."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#8C8C8C")
"""Okabe and Ito (2008), with grey in place of their yellow, which is too light for lines."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: publishers refuse type 3
}

GRID = {"color": "#E4E4E4", "linewidth": 0.5}


def new(height: float, rows: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of one column with `rows` axes above each other; no pyplot, so nothing is left in its registry."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, **options)
    return figure, [own for row in axes for own in row]


def line_of(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the system of that number; no two of the first 24 are alike."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[(number // len(COLOURS)) % len(DASHES)],
    }


def bare(axes: Axes, grid: str = "both") -> None:
    """Without frame, with a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, **GRID)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend_below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """The legend under the axes, where it hides nothing."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.4,
        columnspacing=1.2, handletextpad=0.5, labelspacing=0.3,
    )  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Writes ``.png`` (300 dots per inch) and ``.pdf``; the same figure always gives the same bytes."""
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format=ending, dpi=300, metadata=metadata)
        write(path.with_name(f"{path.name}.{ending}"), buffer.getvalue())


def time_unit(longest: float) -> tuple[float, str]:
    """What to divide seconds by, and what to call the result."""
    return (1.0, "s") if longest < 600 else (60.0, "min") if longest < 4 * 3600 else (3600.0, "h")


def byte_unit(largest: float) -> tuple[float, str]:
    """What to divide bytes by, and what to call the result."""
    power = min(4, max(1, int(math.log10(largest or 1.0)) // 3))
    return 10.0 ** (3 * power), ("kB", "MB", "GB", "TB")[power - 1]
