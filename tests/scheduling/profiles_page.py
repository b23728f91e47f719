"""The tables of `docs/profiles.md`, from the catalogue. ``python tests/scheduling/profiles_page.py`` writes them."""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "profiles.md"
BEGIN = "<!-- tables by `python tests/scheduling/profiles_page.py` -->\n"
END = "<!-- end of the tables -->\n"


def number(value: float | None, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.3g}" if value < 1000 * unit else f"{value / unit:.0f}"


def basis(sustained: float | None, efficiency: float | None) -> str:
    return "measured" if sustained is not None else f"{efficiency:g} × peak"


def tables() -> str:
    from lightning_edgesplit.scheduling import catalogue

    lines = ["| device | GFLOP/s | | memory, GB | busy, W | idle, W |", "| --- | --- | --- | --- | --- | --- |"]
    for name, one in catalogue.devices().items():
        cells = (
            number(one.flops, 1e9), basis(one.sustained, one.efficiency), number(one.memory, 1e9),
            number(one.power_busy), number(one.power_idle),
        )  # fmt: skip
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "| link | uplink, Mbit/s | downlink, Mbit/s | | latency, ms |", "| --- | --- | --- | --- | --- |"]
    for name, link in catalogue.links().items():
        up, down = number(link.uplink, 1e6), number(link.downlink, 1e6)
        cells = (up, down, basis(link.sustained_uplink, link.efficiency), number(link.latency, 1e-3))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its tables as they should be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parents[1]))
    PAGE.write_text(page(PAGE.read_text()))
