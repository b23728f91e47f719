"""The round in Lightning's own progress bar, through the method that Lightning documents for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_edgesplit.runtime.report import RoundReport

Text = Callable[[], dict[str, "str | int"]]


def watch(trainer: Trainer, text: Text) -> None:
    """Adds entries to the Trainer's progress bar (TQDM, Rich or the user's own) until `unwatch`.

    The bar's ``get_metrics`` is wrapped on this one instance. An entry that the bar already has keeps the bar's value.
    Without a progress bar nothing happens; watching twice replaces the text.

    Args:
        trainer: The Trainer whose bar it is.
        text: Called whenever the bar is drawn; what it returns is shown, for instance that of `round_text`.
    """
    unwatch(trainer)
    bar = trainer.progress_bar_callback
    if bar is not None:
        vars(bar)["get_metrics"] = _Watched(bar.get_metrics, vars(bar).get("get_metrics"), text)


def unwatch(trainer: Trainer) -> None:
    """Undoes `watch`; without it, nothing happens."""
    bar = trainer.progress_bar_callback
    watched = vars(bar).get("get_metrics") if bar is not None else None
    if isinstance(watched, _Watched):
        del vars(bar)["get_metrics"]
        if watched.replaced is not None:
            vars(bar)["get_metrics"] = watched.replaced


def round_text(report: RoundReport | None) -> dict[str, str | int]:
    """The last round's number and its slowest client; nothing before the end of the first round."""
    if report is None or not report.clients:
        return {}
    return {"round": report.index, "slowest": report.slowest.name}


class _Watched:
    """Stands in for a bar's ``get_metrics``.

    Args:
        original: The method, bound to its bar.
        replaced: What stood in the instance itself, where somebody had overridden it there.
        text: The entries to add.
    """

    def __init__(self, original: Callable[..., dict[str, Any]], replaced: Any, text: Text) -> None:
        self.original = original
        self.replaced = replaced
        self.text = text

    def __call__(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items = self.original(trainer, pl_module)
        return items | {key: value for key, value in self.text().items() if key not in items}
