"""Writes docs/performance.md and its pictures from the JSON files in benchmarks/results/.

python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from benchmarks.figures import FIGURES, SCRIPTS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

MODELS = {
    "resnet18_7x7": "ResNet-18, 7×7 stem", "resnet18_3x3": "ResNet-18, 3×3 stem", "vgg11_bn": "VGG-11-BN",
    "vit_tiny": "ViT-tiny",
}  # fmt: skip
"""Names of models for people."""

SPENT = {
    "compute": ("forward", "backward", "optimizer"), "Lightning's loop": ("loop",), "data": ("data",),
    "ours": ("ours",), "wire": ("serialisation", "wire"), "round": ("start of the round", "aggregation"),
    "waiting": ("waiting",),
}  # fmt: skip
"""What `benchmarks.where` tells apart, in fewer colours."""

COLOURS = ("#4c72b0", "#ccb974", "#937860", "#c44e52", "#dd8452", "#8172b3", "#dddddd")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of all scripts that have some, by script.

    Raises:
        ValueError: If a file is not what `run_all` writes.
    """
    results = {}
    for script in SCRIPTS:
        path = folder / f"{script.name}.json"
        if path.exists():
            try:
                results[script.name] = json.loads(path.read_text())
            except json.JSONDecodeError as error:
                again = f"python -m benchmarks.run_all --only {script.name}"
                raise ValueError(f"{path} is no JSON ({error}): remove it, and run `{again}`.") from None
    return results


def rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Figure, goal, measured value, spread and command, as the page has them."""
    for figure in FIGURES:
        value, spread, met = figure.value(results), figure.spread(results), figure.met(results)
        script = next(script for script in SCRIPTS if script.name == figure.script)
        command = " ".join(["python -m", f"benchmarks.{script.name}", *script.arguments])
        yield (
            figure.says,
            figure.write_goal(),
            "not measured" if value is None else figure.write(value) + {None: "", True: " ✓", False: " ✗"}[met],
            "–" if spread is None else " to ".join(figure.write(end) for end in spread),
            f"`{command}`",
        )


def machines(results: Mapping[str, Any]) -> Iterator[str]:
    """A line for every machine with versions that figures are of, with the names of the scripts where they differ."""
    of: dict[str, list[str]] = defaultdict(list)
    for name, own in results.items():
        of[_machine(own)].append(name)
    for machine, names in of.items():
        yield f"{machine}." if len(of) == 1 else f"{machine}: {', '.join(names)}."


def _machine(own: Mapping[str, Any]) -> str:
    machine, versions = own.get("machine"), own.get("versions")
    if isinstance(machine, Mapping):
        machine = f"{machine.get('cores')} cores, {machine.get('arch')}, {machine.get('processor', 'unknown')}"
    said = [str(machine)]
    if isinstance(versions, Mapping):
        said += [f"{package} {version}" for package, version in versions.items()]
    return ", ".join(said)


def page(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page, Markdown.

    Args:
        results: By script.
        pictures: Path of each picture from the page's folder, by what stands below it.
    """
    lines = [
        "<!-- Written by `python -m benchmarks.report` from benchmarks/results/: do not edit. -->",
        "",
        "# Performance",
        "",
        "`make bench` measures all of this again and writes this page. Both sides of a ratio are run in turn on the"
        " same machine with the same threads; a figure is the median, the spread goes from the least to the largest.",
        "",
        *(machines(results) if results else ["Nothing was measured yet."]),
        "",
        "| figure | goal | measured | spread | command |",
        "| --- | --- | --- | --- | --- |",
        *("| " + " | ".join(cells) + " |" for cells in rows(results)),
    ]
    missed = [figure for figure in FIGURES if figure.why and figure.met(results) is False]
    if missed:
        lines += ["", "Why goals are missed:", "", *(f"- {figure.says}: {figure.why}" for figure in missed)]
    for below, path in pictures.items():
        lines += ["", f"![{below}]({path})", "", f"*{below}*"]
    days = sorted({own["measured"] for own in results.values() if "measured" in own})
    if days:
        lines += ["", f"Measured on {' to '.join(dict.fromkeys((days[0], days[-1])))}."]
    return "\n".join(lines) + "\n"


def draw_throughput(own: Mapping[str, Any], path: Path) -> None:
    """A dot for each pair and a bar for the median, by model."""
    found = own["ratios"]
    drawing, axes = _drawing(3.4, 0.42 * len(found) + 0.9)
    for place, name in enumerate(reversed(list(found))):
        axes.plot(found[name], [place] * len(found[name]), "o", alpha=0.45, markersize=4.5, color=COLOURS[0])
        axes.plot([statistics.median(found[name])], [place], "|", markersize=15, markeredgewidth=1.6, color="black")
    axes.axvline(1, color="grey", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(found)), [MODELS.get(name, name) for name in reversed(list(found))])
    axes.set(ylim=(-0.6, len(found) - 0.4), xlabel="samples/s over plain Lightning")
    _save(drawing, path)


def draw_where(own: Mapping[str, Any], path: Path) -> None:
    """Where the time of server and clients goes: a bar of shares for each model and side."""
    bars = [(name, side) for name in own["models"] for side in ("server", "clients")]
    drawing, axes = _drawing(6.2, 0.27 * len(bars) + 1.2)
    for place, (name, side) in enumerate(reversed(bars)):
        spent, left = own["models"][name][side], 0.0
        whole = sum(spent.get(part, 0.0) for parts in SPENT.values() for part in parts)
        for colour, parts in zip(COLOURS, SPENT.values(), strict=True):
            share = sum(spent.get(part, 0.0) for part in parts) / whole
            axes.barh(place, 100 * share, left=left, color=colour, height=0.75)
            left += 100 * share
    for colour, label in zip(COLOURS, SPENT, strict=True):
        axes.barh(0, 0, color=colour, label=label)
    axes.set_yticks(range(len(bars)), [f"{MODELS.get(name, name)}: {side}" for name, side in reversed(bars)])
    axes.set(xlim=(0, 100), xlabel="% of the time of a round")
    drawing.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=7)
    _save(drawing, path)


def _drawing(width: float, height: float) -> tuple[Drawing, Any]:
    """An empty picture, inches, with small letters as in a paper's column."""
    drawing = Drawing(figsize=(width, height), layout="constrained")
    axes = FigureCanvasAgg(drawing).figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(8)
    return drawing, axes


def _save(drawing: Drawing, path: Path) -> None:
    """The same numbers give the same file."""
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        drawing.savefig(path, metadata={"Date": None})


PICTURES = (
    (
        "throughput", "ratios", draw_throughput,
        "Samples per second of four clients over plain Lightning on the same two cores: a dot for each pair of runs, a"
        " bar for their median.",
    ),
    (
        "where", "models", draw_where,
        "Where the time of a round goes, on the server's main thread and on the clients (mean of four); they share two"
        " cores, so some wait while others compute.",
    ),
)  # fmt: skip
"""Script, the key in its JSON that holds what is drawn, what draws it, and what stands below the picture."""


def write(folder: Path = RESULTS, target: Path = PAGE) -> None:
    """Draws the pictures into `folder`, and writes the page."""
    results, pictures = load(folder), {}
    for name, key, draw, below in PICTURES:
        if key in results.get(name, {}):
            path = folder / f"{name}.svg"
            draw(results[name], path)
            pictures[below] = Path(os.path.relpath(path, target.parent)).as_posix()
    target.write_text(page(results, pictures), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files and pictures")
    parser.add_argument("--page", type=Path, default=PAGE, help="file for the page")
    options = parser.parse_args()
    write(options.results, options.page)


if __name__ == "__main__":
    main()
