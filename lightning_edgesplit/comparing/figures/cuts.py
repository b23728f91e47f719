"""Where each client's cut is, round by round."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_edgesplit.comparing.figures.look import new
from lightning_edgesplit.comparing.results import Result

_NAMED = 12
"""Cuts that the colour bar has room to name."""


def cuts_figure(systems: Sequence[tuple[str, Sequence[Result]]]) -> Figure:
    """A panel per system: a row per client, a column per round, the colour is the depth of the cut; the first seed.

    Light is shallow, dark is deep; a client that takes no part in a round is left white.
    """
    shown = [(label, own[0].record) for label, own in systems if own]
    depths = {name: depth for depth, name in enumerate(shown[0][1]["cuts"])}
    used = sorted({c["cut"] for _, r in shown for one in r["rounds"] for c in one["clients"]}, key=depths.__getitem__)
    colours = mpl.colormaps["viridis_r"](np.linspace(0.03, 1.0, max(2, len(used))))
    palette = ListedColormap(colours[: len(used)] if len(used) > 1 else colours[1:])
    norm = BoundaryNorm(np.arange(len(used) + 1) - 0.5, palette.N) if len(used) > 1 else None
    clients = len(shown[0][1]["clients"])
    tall = min(1.6, max(0.42, 0.11 * clients))
    figure, panels = new(0.55 + (tall + 0.22) * len(shown), rows=len(shown), sharex=True)
    image = None
    for axes, (label, record) in zip(panels, shown, strict=True):
        grid = np.full((clients, len(record["rounds"])), np.nan)
        for column, one in enumerate(record["rounds"]):
            for client in one["clients"]:
                grid[client["client"], column] = used.index(client["cut"])
        extent = (-0.5, grid.shape[1] - 0.5, clients - 0.5, -0.5)
        image = axes.imshow(
            grid, aspect="auto", cmap=palette, norm=norm, interpolation="nearest", extent=extent, origin="upper"
        )
        axes.set_title(label, loc="left", fontsize=7, pad=2)
        names = [client["name"] for client in record["clients"]]
        if clients <= 6:
            axes.set_yticks(range(clients), [_short(name) for name in names], fontsize=5.5)
            axes.set_yticks(np.arange(clients - 1) + 0.5, minor=True)
            axes.grid(which="minor", axis="y", color="white", linewidth=0.8)
        else:
            axes.set_yticks([0, clients - 1], ["1", str(clients)], fontsize=6)
        axes.tick_params(axis="y", which="both", length=0)
        axes.tick_params(axis="x", bottom=axes is panels[-1])
        axes.spines[:].set_visible(False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    panels[-1].set_xlabel("round")
    if clients > 6:
        figure.supylabel("client", fontsize=7.5)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, fraction=0.05, aspect=14 * min(3, len(shown)), pad=0.02)
    every = max(1, -(-len(used) // _NAMED))
    bar.set_ticks(list(range(0, len(used), every)), labels=[_short(name, 16) for name in used[::every]])
    bar.ax.tick_params(which="both", labelsize=5.5, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]  # a Spine
    bar.set_label("cut behind", fontsize=7)
    return figure


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else "…" + name[1 - limit :]
