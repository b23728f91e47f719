"""Seconds per sample that were measured on a device, cut by cut or layer by layer, in place of FLOP over FLOP/s."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike, fspath

from lightning_edgesplit.scheduling.costs import END, Costs, CutCost
from lightning_edgesplit.scheduling.table import Row, read


@dataclass(frozen=True)
class CutTimes:
    """Seconds per sample at one cut.

    Attributes:
        name: Name of the cut, as in `CutCost`.
        client_forward: Forward pass of all layers before the cut.
        client_backward: Their backward pass and optimizer step.
        server: Forward and backward pass of what is behind the cut; None: not measured.
    """

    name: str
    client_forward: float
    client_backward: float
    server: float | None = None


@dataclass(frozen=True)
class LayerTimes:
    """Measured seconds of one device, for a client's ``times``.

    Attributes:
        source: Where they come from, for messages.
        cuts: One entry per cut that was measured.

    Raises:
        ValueError: If a cut comes twice, there is none, or a time is negative or not finite.
    """

    source: str
    cuts: tuple[CutTimes, ...]

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError(f"{self.source}: there are no times: measure at least one cut.")
        names = [cut.name for cut in self.cuts]
        for cut in self.cuts:
            if names.count(cut.name) > 1:
                raise ValueError(f"{self.source}: the cut {cut.name!r} comes twice: keep one.")
            for value in (cut.client_forward, cut.client_backward, cut.server):
                if value is not None and not 0 <= value < float("inf"):
                    raise ValueError(f"{self.source}: {value} s of the cut {cut.name!r} must be >= 0 and finite.")

    def __getitem__(self, name: str) -> CutTimes:
        for cut in self.cuts:
            if cut.name == name:
                return cut
        known = ", ".join(cut.name for cut in self.cuts)
        raise ValueError(f"{self.source} has no times of the cut {name!r}: measure it too. It has {known}.")


def load_layer_times(path: str | PathLike[str]) -> LayerTimes:
    """Reads measured times from a CSV file, in seconds per sample.

    Columns are ``client_forward_seconds``, ``client_backward_seconds``, optionally ``server_seconds``, and one of

    - ``cut``: a line holds the sums over all layers before the cut, and for the server over all behind it;
    - ``layer``: a line holds that layer alone, the layers from the input on. They are summed here: the cut named like a
      layer is behind it, and `END` is behind the last.

    Raises:
        ValueError: If the file is wrong; with line and column.
        FileNotFoundError: If there is no such file.
    """
    times, known = ["client_forward_seconds", "client_backward_seconds"], ["cut", "layer", "server_seconds"]
    rows = read(path, times, known)
    first = rows[0]
    if ("cut" in first) == ("layer" in first):
        raise ValueError(f"{fspath(path)}, line 1, column 'cut': there must be a column `cut` or `layer`, one of them.")
    column = "cut" if "cut" in first else "layer"
    lines: dict[str, CutTimes] = {}
    for row in rows:
        entry = _entry(row, column)
        if entry.name in lines:
            raise row.wrong(column, f"{entry.name!r} comes twice: keep one line.")
        if column == "layer" and entry.name == END:
            raise row.wrong(column, f"{END!r} is no layer: it is the cut behind the last one, and summed up here.")
        lines[entry.name] = entry
    cuts = tuple(lines.values())
    return LayerTimes(fspath(path), cuts if column == "cut" else _prefixes(cuts))


def apply(costs: Costs, times: LayerTimes) -> Costs:
    """The costs with these seconds in place of the ones measured on this machine.

    They hold for every client without ``flops`` and ``times`` of its own, times its ``slowdown``. The server's seconds
    are replaced where there are some.

    Raises:
        ValueError: If a cut of the costs was not measured.
    """
    return replace(costs, cuts=tuple(_with(cut, times[cut.name]) for cut in costs.cuts))


def _with(cost: CutCost, times: CutTimes) -> CutCost:
    return replace(
        cost,
        client_forward_seconds=times.client_forward,
        client_backward_seconds=times.client_backward,
        server_seconds=cost.server_seconds if times.server is None else times.server,
    )


def _entry(row: Row, column: str) -> CutTimes:
    return CutTimes(
        row.text(column),
        row.number("client_forward_seconds"),
        row.number("client_backward_seconds"),
        row.number("server_seconds") if "server_seconds" in row else None,
    )


def _prefixes(layers: tuple[CutTimes, ...]) -> tuple[CutTimes, ...]:
    """Sums before, and for the server behind, each layer's end."""
    cuts: list[CutTimes] = []
    for place, layer in enumerate(layers, start=1):
        before, behind = layers[:place], layers[place:]
        server = None if layer.server is None else sum(other.server or 0.0 for other in behind)
        forward, backward = sum(one.client_forward for one in before), sum(one.client_backward for one in before)
        cuts.append(CutTimes(layer.name, forward, backward, server))
    return (*cuts, replace(cuts[-1], name=END))
