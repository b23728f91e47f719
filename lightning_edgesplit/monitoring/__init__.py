"""Watching a run: tables for the terminal, a timeline of each round, the user's loggers and the progress bar."""

from typing import TYPE_CHECKING

from lightning_edgesplit import lazily

if TYPE_CHECKING:
    from lightning_edgesplit.monitoring.console import plan_table, print_plan, print_round, round_line, round_table
    from lightning_edgesplit.monitoring.cuts import cuts_figure, cuts_rows, cuts_table, refused_table, save_cuts
    from lightning_edgesplit.monitoring.loggers import log_round, round_metrics
    from lightning_edgesplit.monitoring.progress import round_text, unwatch, watch
    from lightning_edgesplit.monitoring.timeline import save_timeline, timeline_figure

__all__ = [
    "cuts_figure",
    "cuts_rows",
    "cuts_table",
    "log_round",
    "plan_table",
    "print_plan",
    "print_round",
    "refused_table",
    "round_line",
    "round_metrics",
    "round_table",
    "round_text",
    "save_cuts",
    "save_timeline",
    "timeline_figure",
    "unwatch",
    "watch",
]

__getattr__ = lazily.attributes(
    __name__,
    {
        **dict.fromkeys(("plan_table", "print_plan", "print_round", "round_line", "round_table"), "console"),
        **dict.fromkeys(("cuts_figure", "cuts_rows", "cuts_table", "refused_table", "save_cuts"), "cuts"),
        **dict.fromkeys(("log_round", "round_metrics"), "loggers"),
        **dict.fromkeys(("round_text", "unwatch", "watch"), "progress"),
        **dict.fromkeys(("save_timeline", "timeline_figure"), "timeline"),
    },
)
