"""The timeline of a round: who computed, sent, waited and was served, and when."""

from __future__ import annotations

from collections import defaultdict
from os import PathLike
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lightning_edgesplit.monitoring.units import percent, seconds
from lightning_edgesplit.runtime.report import PHASES, RoundReport
from lightning_edgesplit.scheduling.simulate import WAITING

COLOURS = {
    "download": "#E6BFD5",
    "forward": "#0072B2",
    "grant": "#E8E8E8",
    "uplink": "#D55E00",
    "wait": "#BBBBBB",
    "server": "#009E73",
    "downlink": "#E69F00",
    "head": "#003C67",
    "backward": "#56B4E9",
    "upload": "#CC79A7",
    "aggregation": "#333333",
}
"""The palette of Okabe and Ito (2008), which colour-blind readers can tell apart: blues compute, orange and vermilion
are the link, green is the server, pinks move the model, greys are nobody's work."""

LABELS = {
    "download": "download (model)",
    "forward": "forward (client)",
    "grant": "grant (link is taken)",
    "uplink": "uplink (smashed data)",
    "wait": "wait (server's queue)",
    "server": "server",
    "downlink": "downlink (gradient)",
    "head": "last layers, loss (client)",
    "backward": "backward (client)",
    "upload": "upload (model)",
}
"""What the legend calls a phase, where the phase alone does not say it."""

PASSIVE = (*WAITING, "aggregation")
"""Phases in which the client itself rests: thin bars in its row."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": "#222222",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: publishers refuse type 3
}

WIDTH = 7.2  # inches: the text width of a two-column page
BAR = 0.62  # height of a bar; rows are 1 apart
LANE = 0.19  # height of a client's lane in the server's row


def timeline_figure(report: RoundReport) -> Figure:
    """Draws a round: a row of bars for every client and one for the server, on one axis of seconds.

    The server's row has a lane for each client, in the order of the rows above, so that it shows who is served without
    a second set of colours. At the right each client's round time, the straggler's in bold. No pyplot, so that nothing
    is left in its registry; spans of clients without a report (lost in mid-round) are drawn on the server's row only.

    Args:
        report: The round; its `spans` are what is drawn.

    Returns:
        A figure with an Agg canvas, sized by the number of clients.
    """
    clients = len(report.clients)
    lanes = max(BAR, LANE * clients)
    rows = clients + lanes
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.35 + 0.36 * rows), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        server = clients - 0.5 + (1 - BAR) / 2  # top of the server's row; y grows downwards
        axes.set_ylim(server + lanes + (1 - BAR) / 2, -0.5)
        drawn = _draw_spans(axes, report, server, lanes)
        _label_rows(axes, report, server + lanes / 2)
        _draw_axis(axes, report)
        _draw_legend(figure, report, drawn)
    return figure


def save_timeline(report: RoundReport, path: str | PathLike[str]) -> None:
    """Saves the timeline of a round; the path's ending says as what (``.png``; ``.pdf`` or ``.svg`` for a paper)."""
    with mpl.rc_context(STYLE):
        timeline_figure(report).savefig(path, dpi=200)


def _draw_spans(axes: Axes, report: RoundReport, server: float, lanes: float) -> set[str]:
    """Draws every span, one collection per row, height and phase (so hundreds of spans cost little).

    Returns:
        The phases that were drawn.
    """
    row = {client.client: k for k, client in enumerate(report.clients)}
    bars: dict[tuple[float, float, str], list[tuple[float, float]]] = defaultdict(list)  # (top, height, phase)
    for span in report.spans:
        if not span.on_server:
            if span.client not in row:
                continue
            height = BAR / 3 if span.phase in PASSIVE else BAR
            top = row[span.client] - height / 2
        elif span.phase == "aggregation" or span.client not in row:
            top, height = server, lanes
        else:
            height = lanes / len(row)
            top = server + height * row[span.client]
        bars[top, height, span.phase].append((span.start, span.end - span.start))
    for (top, height, phase), ranges in bars.items():
        axes.broken_barh(ranges, (top, height), facecolors=COLOURS[phase], linewidth=0, label=phase, zorder=2)
    return {phase for _, _, phase in bars}


def _label_rows(axes: Axes, report: RoundReport, server: float) -> None:
    """Names and cuts at the left, round times at the right; the straggler in bold."""
    rows = [*range(len(report.clients)), server]
    axes.yaxis.remove_overlapping_locs = False  # a name (major tick) and its cut (minor tick) share a position
    axes.set_yticks(rows, [*(_short(client.name) for client in report.clients), "server"], va="bottom")
    cuts = [f"{_short(client.cut)}, {percent(client.share)}" for client in report.clients]
    axes.set_yticks(rows, [*cuts, "a lane per client"], minor=True, va="top", fontsize=7, color="#666666")
    axes.tick_params(axis="y", which="both", length=0)
    busy = report.server_seconds / report.seconds if report.seconds > 0 else 0.0
    _right_label(axes, server, f"busy {percent(busy)}")
    for k, client in enumerate(report.clients):
        straggler = client is report.slowest
        _right_label(axes, k, seconds(client.round_time) + ("\nstraggler" if straggler else ""), bold=straggler)
        if straggler:
            axes.get_yticklabels()[k].set_fontweight("bold")
    for k in range(1, len(rows)):
        axes.axhline(k - 0.5, color="#E4E4E4", linewidth=0.6, zorder=0)


def _right_label(axes: Axes, y: float, text: str, bold: bool = False) -> None:
    axes.text(
        1.012,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=7.5,
        linespacing=1.15,
        fontweight="bold" if bold else "normal",
    )


def _draw_axis(axes: Axes, report: RoundReport) -> None:
    """The axis of seconds, and what was predicted on it."""
    if report.predicted > 0:  # false for NaN too: then nothing was predicted
        axes.axvline(report.predicted, color="black", linewidth=1.1, linestyle=(0, (4, 2.5)), zorder=3)
    last = max((span.end for span in report.spans), default=0.0)
    axes.set_xlim(0, 1.015 * max(last, report.seconds, report.predicted if report.predicted > 0 else 0.0) or 1.0)
    axes.set_xlabel("seconds since the round began")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(
        f"Round {report.index}, policy {report.policy}: {seconds(report.seconds)}", loc="left", fontsize=9, pad=6
    )


def _draw_legend(figure: Figure, report: RoundReport, drawn: set[str]) -> None:
    """Phases in the order in which a client goes through them, then the line of the prediction; below the axes."""
    handles: list[Patch | Line2D] = [
        Patch(facecolor=COLOURS[phase], label=LABELS.get(phase, phase)) for phase in PHASES if phase in drawn
    ]
    if report.predicted > 0:
        dashes = (0, (4, 2.5))
        label = f"predicted: {seconds(report.predicted)}"
        handles.append(Line2D([], [], color="black", linewidth=1.1, linestyle=dashes, label=label))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=7.5,
        handlelength=1.6,
        columnspacing=1.6,
    )


def _short(name: str, limit: int = 26) -> str:
    """The name, without its beginning where it is longer than the limit (paths of modules differ at their ends)."""
    return name if len(name) <= limit else "…" + name[1 - limit :]
