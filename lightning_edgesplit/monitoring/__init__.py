"""Watching a run: tables for the terminal, a timeline of each round, the user's loggers and the progress bar.

What is named here is imported when it is used: matplotlib takes longer to import than everything else together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_edgesplit.monitoring.console import plan_table, print_plan, print_round, round_line, round_table
    from lightning_edgesplit.monitoring.loggers import log_round, round_metrics
    from lightning_edgesplit.monitoring.progress import round_text, unwatch, watch
    from lightning_edgesplit.monitoring.timeline import save_timeline, timeline_figure

_HOMES = {
    "console": ("plan_table", "print_plan", "print_round", "round_line", "round_table"),
    "loggers": ("log_round", "round_metrics"),
    "progress": ("round_text", "unwatch", "watch"),
    "timeline": ("save_timeline", "timeline_figure"),
}

__all__ = [
    "log_round",
    "plan_table",
    "print_plan",
    "print_round",
    "round_line",
    "round_metrics",
    "round_table",
    "round_text",
    "save_timeline",
    "timeline_figure",
    "unwatch",
    "watch",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
