"""The figures of a paper, as PNG and PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from lightning_edgesplit.comparing.config import Comparison, folder_name
from lightning_edgesplit.comparing.figures.bars import bytes_figure, phases_figure, speed_up_figure
from lightning_edgesplit.comparing.figures.curves import curve_figure
from lightning_edgesplit.comparing.figures.cuts import cuts_figure
from lightning_edgesplit.comparing.figures.look import STYLE, save
from lightning_edgesplit.comparing.results import Result, pairs
from lightning_edgesplit.monitoring import timeline_figure
from lightning_edgesplit.runtime.report import ClientReport, RoundReport
from lightning_edgesplit.scheduling.simulate import Span

__all__ = ["draw_all"]


def draw_all(comparison: Comparison, results: Sequence[Result], output: Path) -> list[Path]:
    """Draws everything below ``figures/``: a folder per scenario, and the speed-ups over all of them.

    Returns:
        The files, without their endings ``.png`` and ``.pdf``.
    """
    folder, drawn = output / "figures", []
    grouped = pairs(results, comparison)
    with mpl.rc_context(STYLE):
        for scenario in comparison.scenarios:
            systems = [(label, own) for name, label, own in grouped if name == scenario.name]
            if not any(own for _, own in systems):
                continue
            here = folder / folder_name(scenario.name)
            made = {
                "accuracy_over_time": curve_figure(systems, comparison.target, "time"),
                "accuracy_over_rounds": curve_figure(systems, comparison.target, "rounds"),
                "round_by_phase": phases_figure(systems),
                "bytes": bytes_figure(systems),
                "cuts": cuts_figure(systems),
            }
            for label, own in systems:
                if own:
                    made[f"timeline_{folder_name(label)}"] = timeline_figure(last_round(own[0]))
            for name, figure in made.items():
                save(figure, here / name)
                drawn.append(here / name)
        speeds = speed_up_figure(comparison, results)
        if speeds is not None:
            save(speeds, folder / "speed_up")
            drawn.append(folder / "speed_up")
    return drawn


def last_round(result: Result) -> RoundReport:
    """The last round of a run as the report that it was."""
    one, nan = result.record["rounds"][-1], float("nan")
    clients = tuple(
        ClientReport(
            client=c["client"], name=c["name"], cut=c["cut"], share=c["share"], uplink=None, downlink=None,
            steps=c["steps"], samples=c["samples"], seconds=c["seconds"], idle=c["idle"], bytes_up=c["bytes_up"],
            bytes_down=c["bytes_down"], round_time=c["round_time"], predicted=nan,
        )
        for c in one["clients"]
    )  # fmt: skip
    return RoundReport(
        index=one["index"], epoch=one["epoch"], policy=result.record["system"], clients=clients, seconds=one["seconds"],
        predicted=nan,  # it took what was predicted: that is what the virtual clock does
        server_seconds=one["server_seconds"], aggregation_seconds=one["aggregation_seconds"],
        spans=tuple(Span(*span) for span in result.record["spans"]),
    )  # fmt: skip
