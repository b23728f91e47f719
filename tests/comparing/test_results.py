from __future__ import annotations

import csv
import io

import pytest
from comparing_samples import record

from lightning_edgesplit.comparing.config import Comparison, Made, Scenario, System, Target
from lightning_edgesplit.comparing.figures import draw_all
from lightning_edgesplit.comparing.results import Result, csv_text, round_rows, row_of
from lightning_edgesplit.comparing.run import round_of, spans_of, whole_rounds
from lightning_edgesplit.comparing.table import cells, columns, markdown, tex
from lightning_edgesplit.runtime.report import ClientReport, RoundReport
from lightning_edgesplit.scheduling import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.simulate import Span

TARGET = Target("accuracy", [0.5, 0.7])


def comparison(labels=("a", "b"), seeds=(0, 1), target=TARGET):
    scenario = Scenario(
        "s", {}, (ClientProfile("c0", flops=1), ClientProfile("c1", flops=1)), ServerProfile(), Made("m"), Made("d")
    )
    systems = tuple(System(label, label, {}) for label in labels)
    return Comparison((scenario,), systems, seeds, {}, {}, target, labels[0])


def results(*records, target=TARGET):
    return [Result(one, row_of(one, target)) for one in records]


def test_a_row_is_what_the_rounds_add_up_to():
    row = row_of(record(), TARGET)
    assert row["emulated_seconds"] == 20
    assert row["seconds_to_accuracy_0.5"] == 10
    assert row["seconds_to_accuracy_0.7"] == 20
    assert row["rounds_to_accuracy_0.7"] == 2
    assert row["final_accuracy"] == 0.8
    assert (row["bytes_up"], row["bytes_down"]) == (400, 240)
    assert row["idle_fraction"] == pytest.approx((4 + 3) * 2 / (2 * 2 * 10))
    assert row["server_busy_fraction"] == pytest.approx(6 / 20)
    busy = (2 * (1 + 2), 2 * (2 + 2))  # forward and backward of each client
    assert row["compute_energy_joules"] == pytest.approx(5 * busy[0] + 9 * busy[1])
    assert row["energy_joules"] == pytest.approx(5 * busy[0] + 9 * busy[1] + 1 * (20 - busy[0]) + 2 * (20 - busy[1]))


def test_what_is_not_known_or_not_reached_is_empty_and_never_zero():
    unknown = record(values=(0.5, None))
    unknown["clients"][1]["power_idle"] = None
    row = row_of(unknown, Target("accuracy", [0.9]))
    assert row["energy_joules"] is None
    assert row["compute_energy_joules"] is not None
    unknown["clients"][1]["power_busy"] = None
    row = row_of(unknown, Target("accuracy", [0.9]))
    assert row["compute_energy_joules"] is row["seconds_to_accuracy_0.9"] is row["final_accuracy"] is None
    assert row["best_accuracy"] == 0.5
    (read,) = csv.DictReader(io.StringIO(csv_text([row])))
    assert read["energy_joules"] == read["seconds_to_accuracy_0.9"] == ""


def test_turns_of_one_round_are_one_round_in_which_the_others_wait():
    def turn(client, seconds, last):
        report = ClientReport(client, f"c{client}", "cut", 1.0, None, None, 2, 16, {"forward": 1.0}, seconds - 1.0,
                              10, 20, seconds, seconds)  # fmt: skip
        span = Span(client, False, "forward", 0.0, 1.0)
        return RoundReport(0, 0, "p", (report,), seconds, seconds, 0.5, 0.0, elapsed=seconds, ends_turns=last,
                           spans=(span,))  # fmt: skip

    turns = [turn(0, 3.0, False), turn(1, 5.0, True), turn(0, 3.0, False)]
    first, second = whole_rounds(turns)
    assert [len(first), len(second)] == [2, 1], "the last was stopped in the middle of a round"
    one = round_of(first, 7)
    assert (one["index"], one["seconds"], one["server_seconds"], one["bytes_up"]) == (7, 8.0, 1.0, 20)
    assert [client["round_time"] for client in one["clients"]] == [3.0, 8.0]
    assert [client["idle"] for client in one["clients"]] == [8.0 - 1.0, 8.0 - 1.0], "all but a second of work"
    assert spans_of(first)[1] == (1, False, "forward", 3.0, 4.0)


def test_lower_is_better_where_the_target_says_so():
    row = row_of(record(values=(2.0, 0.4)), Target("accuracy", [0.5], "min"))
    assert row["seconds_to_accuracy_0.5"] == 20
    assert row["best_accuracy"] == 0.4


def test_csv_keeps_every_digit_and_any_name():
    text = csv_text([{"name": 'a, "b"', "value": 0.1 + 0.2, "none": None}])
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {"name": 'a, "b"', "value": "0.30000000000000004", "none": ""}


def test_a_round_names_its_straggler_and_cuts():
    (first, _) = round_rows(results(record())[0])
    assert first["straggler"] == "c1"
    assert first["cuts"] == "c0=shallow c1=deep"
    assert first["ends_at_seconds"] == 10


def test_speed_ups_compare_seed_by_seed_and_know_how_sure_they_are():
    runs = results(record("a", 0, 10.0), record("a", 1, 30.0), record("b", 0, 5.0), record("b", 1, 10.0))
    shown = [column.header for column in columns(comparison(), runs)]
    _, (_, _, fast) = cells(comparison(), runs)
    ratios = (10 / 5, 30 / 10)  # seed by seed: not 20 / 7.5
    half = 12.706204736 * (0.5**2 * 2) ** 0.5 / 2**0.5
    text = f"2.50 [{2.5 - half:.2f}, {2.5 + half:.2f}]"
    assert sum(ratios) / 2 == 2.5
    assert fast[shown.index("speed-up")].text == text
    assert fast[shown.index("speed-up")].best
    assert fast[shown.index("round, s")].text == "7.5 ± 3.5"
    assert f"| **{text}** |" in markdown(comparison(), runs)
    assert rf"\textbf{{{text}}}" in tex(comparison(), runs)


def test_a_target_that_one_seed_misses_has_no_mean():
    runs = results(record("a", 0), record("a", 1), record("b", 0), record("b", 1, values=(0.5, 0.6)))
    shown = [column.header for column in columns(comparison(), runs)]
    _, (_, _, row) = cells(comparison(), runs)
    assert row[shown.index("to 70 %, s")].text == "- (1/2)", "the mean of those that reach it would be too good"
    assert row[shown.index("speed-up to 70 %")].text == "-"
    assert row[shown.index("speed-up to 50 %")].text == "1.00"
    missing = results(record("a", 0), record("a", 1), record("b", 0))
    _, (_, _, row) = cells(comparison(), missing)
    assert row[0].text.endswith("(1/2)"), "a run that failed is seen"


def test_tex_escapes_names():
    text = tex(comparison(labels=("a_1 & 50%", "b")), results(record("a_1 & 50%")))
    assert r"a\_1 \& 50\%" in text


@pytest.mark.timeout(300)
def test_figures_are_drawn_and_the_same_results_give_the_same_bytes(tmp_path):
    runs = results(record("a", 0), record("a", 1, 11.0), record("b", 0, 5.0), record("b", 1, 6.0))
    drawn = draw_all(comparison(), runs, tmp_path / "one")
    draw_all(comparison(), runs, tmp_path / "two")
    names = {path.name for path in drawn}
    assert names == {
        "accuracy_over_time", "accuracy_over_rounds", "round_by_phase", "bytes", "cuts", "timeline_a", "timeline_b",
        "speed_up",
    }  # fmt: skip
    files = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 2 * len(names)
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
