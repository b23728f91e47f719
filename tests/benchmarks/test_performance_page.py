"""Figures from the scripts' JSON, and the page that shows them beside their goals."""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks import report
from benchmarks.figures import FIGURES, SCRIPTS, Figure

MACHINE = {"cores": 2, "arch": "x86_64", "processor": "a processor"}
VERSIONS = {"python": "3.11.7", "torch": "2.14.1", "lightning": "2.6.6"}
ABOUT = {"machine": MACHINE, "versions": VERSIONS, "measured": "2026-01-02"}
RESULTS = {
    "throughput": {
        "ratio_median": 0.975, "resnet18_7x7": 0.95, "vit_tiny": 1.0,
        "spread": {"ratio_median": [0.95, 1.0], "resnet18_7x7": [0.9, 1.1]},
        "ratios": {"resnet18_7x7": [0.95, 0.9, 1.1], "vit_tiny": [1.0, 1.0, 1.0]}, **ABOUT,
    },
    "overhead": {"beyond_seconds": 1.25, "spread": {"beyond_seconds": [1.0, 1.5]}, **ABOUT},
    "imports": {"plan_help_imports_torch": False, **ABOUT},
    "scaling": {"ratio": 1.1, "spread": [1.0, 1.2], **ABOUT},
    "where": {"models": {"vit_tiny": {
        "server": {"forward": 1.0, "backward": 2.0, "waiting": 1.0}, "clients": {"wire": 3.0, "waiting": 1.0},
    }}, **ABOUT},
    "peers": {"flower": {"steady": 2.5, "first_round": None}, "hivemind": None, **ABOUT},
}  # fmt: skip


def cells(results):
    """What stands in the page's table, by figure."""
    rows = [line.strip("| ").split(" | ") for line in report.page(results, {}).splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[2:]}


def figure(script, key):
    (found,) = [own for own in FIGURES if (own.script, own.key) == (script, key)]
    return found


def test_a_figure_is_found_by_its_key_in_its_scripts_json():
    assert figure("throughput", "resnet18_7x7").value(RESULTS) == 0.95
    assert figure("peers", "flower.steady").value(RESULTS) == 2.5
    assert figure("imports", "plan_help_imports_torch").value(RESULTS) is False


@pytest.mark.parametrize(
    ("script", "key"),
    [("peers", "flower.first_round"), ("peers", "hivemind.steady"), ("wire", "wire_over_payload"),
     ("throughput", "vgg11_bn")],
)  # fmt: skip
def test_what_is_missing_is_not_measured(script, key):
    own = figure(script, key)
    assert own.value(RESULTS) is None
    assert own.met(RESULTS) is None
    assert cells(RESULTS)[own.says][1:3] == ["not measured", "–"]


def test_a_spread_is_the_figures_own():
    assert figure("throughput", "resnet18_7x7").spread(RESULTS) == (0.9, 1.1)
    assert figure("scaling", "ratio").spread(RESULTS) == (1.0, 1.2)
    assert figure("throughput", "vit_tiny").spread(RESULTS) is None
    assert Figure("scaling", "few_ms", "").spread(RESULTS) is None  # the pair is the ratio's


@pytest.mark.parametrize(
    ("goal", "at_least", "value", "met"),
    [(1.0, False, 1.0, True), (1.0, False, 1.01, False), (0.9, True, 0.9, True), (0.9, True, 0.89, False),
     (False, False, False, True), (False, False, True, False), (None, False, 1.0, None)],
)  # fmt: skip
def test_a_goal_is_met_or_missed(goal, at_least, value, met):
    own = Figure("wire", "key", "what it is", goal=goal, at_least=at_least)
    assert own.met({"wire": {"key": value}}) is met


def test_a_row_has_goal_value_spread_and_command():
    rows = cells(RESULTS)
    launch = figure("overhead", "beyond_seconds").says
    assert rows[launch] == ["≤ 1 s", "1.25 s ✗", "1.00 s to 1.50 s", "`python -m benchmarks.overhead`"]
    assert rows["whether that imports torch"] == ["no", "no ✓", "–", "`python -m benchmarks.imports`"]


def test_the_page_says_machine_and_versions_once_where_they_are_the_same():
    said = "2 cores, x86_64, a processor, python 3.11.7, torch 2.14.1, lightning 2.6.6"
    assert list(report.machines(RESULTS)) == [f"{said}."]
    others = {**RESULTS, "wire": {**ABOUT, "versions": {**VERSIONS, "torch": "2.15.0"}}}
    assert list(report.machines(others)) == [
        f"{said}: {', '.join(RESULTS)}.",
        said.replace("2.14.1", "2.15.0") + ": wire.",
    ]


def test_the_page_and_its_pictures_are_made_of_the_files(tmp_path):
    for name, own in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    report.write(tmp_path, page)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert set(first) == {"throughput.svg", "where.svg"}
    assert "](../throughput.svg)" in page.read_text()
    assert "](../where.svg)" in page.read_text()
    assert "Measured on 2026-01-02." in page.read_text()
    report.write(tmp_path, page)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")} == first


def test_a_page_without_results_has_every_figure_as_not_measured(tmp_path):
    page = tmp_path / "page.md"
    report.write(tmp_path, page)
    assert page.read_text().count("| not measured |") == len(FIGURES)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "wire.json").write_text("{")
    with pytest.raises(ValueError, match=r"wire\.json is no JSON .* run `python -m benchmarks\.run_all --only wire`"):
        report.load(tmp_path)


def test_the_lists_go_together():
    assert {own.script for own in FIGURES} == {script.name for script in SCRIPTS}
    assert len({(own.script, own.key) for own in FIGURES}) == len({own.says for own in FIGURES}) == len(FIGURES)
    with pytest.raises(ValueError, match="script 'nothing', which SCRIPTS does not have"):
        Figure("nothing", "key", "")


@pytest.mark.parametrize("name", ["throughput", "scaling", "overhead", "imports", "where", "memory", "finding"])
def test_a_script_of_the_list_is_there(name):
    assert importlib.util.find_spec(f"benchmarks.{name}") is not None


def test_a_missed_goal_is_explained_and_one_that_is_met_is_not():
    why = figure("aggregate", "ratio").why
    assert why
    assert why in report.page({"aggregate": {"ratio": 1.51, **ABOUT}}, {})
    assert why not in report.page({"aggregate": {"ratio": 1.49, **ABOUT}}, {})
