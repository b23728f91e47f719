from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from monitoring_samples import sample_report

from lightning_edgesplit.monitoring import round_text, unwatch, watch


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_the_bar_shows_the_round_and_the_slowest_client_until_it_is_not_watched_any_more(kind):
    bar = kind()
    trainer = SimpleNamespace(
        progress_bar_callback=bar, progress_bar_metrics={"loss": 1.0}, loggers=[], lightning_module=None
    )
    before = bar.get_metrics(trainer, None)
    report = sample_report()
    watch(trainer, lambda: round_text(report))
    watch(trainer, lambda: round_text(report))  # twice is once
    assert bar.get_metrics(trainer, None) == {**before, "round": 3, "slowest": "raspberry-pi-4"}
    unwatch(trainer)
    assert bar.get_metrics(trainer, None) == before
    assert "get_metrics" not in vars(bar)


def test_before_the_first_round_and_without_a_bar_there_is_nothing_to_show():
    assert round_text(None) == {}
    watch(SimpleNamespace(progress_bar_callback=None), dict)
