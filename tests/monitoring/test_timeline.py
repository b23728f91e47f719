from __future__ import annotations

import pytest
from monitoring_samples import sample_report

from lightning_edgesplit.monitoring.timeline import save_timeline, timeline_figure


@pytest.mark.parametrize("copies", [1, 5])
def test_every_span_is_a_bar_as_long_as_it_took(copies):
    report = sample_report(copies)
    (axes,) = timeline_figure(report).axes
    drawn = []
    for collection in axes.collections:
        for path in collection.get_paths():
            box = path.get_extents()
            drawn.append((collection.get_label(), round(box.x0, 6), round(box.x1, 6)))
    expected = [(span.phase, round(span.start, 6), round(span.end, 6)) for span in report.spans]
    assert sorted(drawn) == sorted(expected)


def test_there_is_a_row_for_every_client_and_one_for_the_server():
    report = sample_report(2)
    figure = timeline_figure(report)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels() if tick.get_text()]
    assert labels == [*(client.name for client in report.clients), "server"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == len({span.phase for span in report.spans}) + 1
    assert legend[-1].startswith("predicted")


def test_a_picture_is_written(tmp_path):
    save_timeline(sample_report(), tmp_path / "round.png")
    save_timeline(sample_report(), tmp_path / "round.pdf")
    assert (tmp_path / "round.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "round.pdf").read_bytes()[:4] == b"%PDF"


def test_nothing_is_left_in_pyplots_registry():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    timeline_figure(sample_report())
    assert pyplot.get_fignums() == []
