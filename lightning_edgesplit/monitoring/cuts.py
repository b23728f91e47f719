"""The cuts of a module as a table, as plain numbers, and as a picture of cost over depth."""

from __future__ import annotations

from os import PathLike
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from lightning_edgesplit.monitoring.timeline import COLOURS, STYLE, WIDTH
from lightning_edgesplit.monitoring.units import digits, percent
from lightning_edgesplit.splitting import END, Cut, Cuts


def cuts_rows(cuts: Cuts, batch: int) -> list[dict[str, Any]]:
    """What each cut costs.

    Args:
        cuts: As `find_cuts` found them.
        batch: Samples per batch, for the client's memory.

    Returns:
        For every cut ``name``, ``flop_share`` (of the forward pass, before the cut), ``head_share`` (of the whole step:
        the client's last layers and the loss, where the step comes back), ``smashed_bytes`` per sample,
        ``weight_bytes`` of the client's side, ``memory_bytes`` of the client (weights, gradients, optimizer state and
        activations of a batch), ``tensors`` that cross, ``private`` and ``sent`` batch leaves by number, and ``error``.
    """
    whole = cuts.find(END).profile
    assert whole is not None
    step = whole.client_forward + whole.client_backward
    rows = []
    for cut in cuts:
        profile = cut.profile
        assert profile is not None
        fixed = profile.weight_bytes + profile.parameter_bytes + (profile.optimizer_bytes or 0)
        rows.append(
            {
                "name": cut.name,
                "flop_share": profile.client_forward / whole.client_forward if whole.client_forward else 0.0,
                "head_share": profile.head / step if step else 0.0,
                "smashed_bytes": profile.smashed_bytes,
                "weight_bytes": profile.weight_bytes,
                "memory_bytes": fixed + batch * profile.activation_bytes,
                "tensors": 0 if cut.border is None else len(cut.border.tensors),
                "private": list(cut.private),
                "sent": list(cut.sent),
                "error": cut.error,
            }
        )
    return rows


def cuts_table(cuts: Cuts, batch: int) -> Table:
    """The same as a table for the terminal."""
    table = Table(title=f"{len(cuts)} cuts, batches of {batch}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("cut", overflow="fold")
    comes_back = any(cut.back is not None for cut in cuts)
    heads = ["last layers"] if comes_back else []
    for header in ("forward FLOP", *heads, "smashed kB", "weights MB", "memory MB", "tensors", "error"):
        table.add_column(header, justify="right")
    for row in cuts_rows(cuts, batch):
        table.add_row(
            Text(row["name"]),
            percent(row["flop_share"]),
            *([percent(row["head_share"])] if comes_back else []),
            digits(row["smashed_bytes"] / 1e3),
            digits(row["weight_bytes"] / 1e6),
            digits(row["memory_bytes"] / 1e6),
            str(row["tensors"]),
            digits(row["error"]),
        )
    return table


def refused_table(cuts: Cuts) -> Table:
    """Why the other modules are no cuts."""
    table = Table(title="no cuts", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("module", overflow="fold")
    table.add_column("why", overflow="fold")
    for name, reason in cuts.refused.items():
        table.add_row(Text(name), Text(reason))
    return table


def cuts_figure(cuts: Cuts, batch: int) -> Figure:
    """Cost over depth: what crosses the link, and what the client holds, against its share of the work."""
    chosen: list[Cut] = [cut for cut in cuts if cut.name != END]
    rows = [row for row in cuts_rows(cuts, batch) if row["name"] != END]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharex=True)
        share = [100 * row["flop_share"] for row in rows]
        single = [sum(wanted for *_, wanted in cut.border.tensors) == 1 for cut in chosen if cut.border is not None]
        entries = (
            (panels[0], "smashed_bytes", 1e3, "smashed data per sample (kB)", COLOURS["uplink"]),
            (panels[1], "memory_bytes", 1e6, f"client's memory, batch {batch} (MB)", COLOURS["forward"]),
        )
        for axes, key, unit, label, colour in entries:
            values = [row[key] / unit for row in rows]
            axes.plot(share, values, color=colour, linewidth=0.8, alpha=0.5)
            for one, marker, text in ((True, "o", "one tensor crosses"), (False, "s", "several tensors cross")):
                x = [s for s, is_single in zip(share, single, strict=True) if is_single == one]
                y = [v for v, is_single in zip(values, single, strict=True) if is_single == one]
                if x:
                    axes.plot(
                        x, y, marker, color=colour, markersize=3.5, fillstyle="full" if one else "none", label=text
                    )
            axes.set_xlabel("client's share of the forward pass (% of FLOP)")
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, loc="best")
    return figure


def save_cuts(cuts: Cuts, batch: int, path: str | PathLike[str]) -> None:
    """Writes `cuts_figure` to a file; its ending says as what (png, pdf, svg)."""
    with mpl.rc_context(STYLE):
        cuts_figure(cuts, batch).savefig(path, dpi=200)
