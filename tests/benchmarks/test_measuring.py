"""What the scripts that measure share, and the runner that keeps what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import gone, until

from benchmarks import common, run_all
from benchmarks.figures import Script
from benchmarks.models import MODELS
from lightning_edgesplit.splitting import find_cuts


def test_sides_are_run_in_turn_and_who_is_first_changes():
    called = []
    sides = {name: lambda name=name: called.append(name) or len(called) for name in "ab"}
    results = common.interleaved(3, sides, note=lambda text: None)
    assert "".join(called) == "abbaab"
    assert results == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_no_pair_is_no_measurement():
    with pytest.raises(ValueError, match="pairs=0 must be at least 1"):
        common.interleaved(0, {})


def test_a_ratio_is_of_one_pair():
    assert common.ratios([3.0, 8.0], [2.0, 4.0]) == [1.5, 2.0]
    assert common.spread(iter([2.0, 1.0, 4.0])) == [1.0, 4.0]
    assert common.cell([2.0, 1.0, 4.0], ".1f") == "2.0 (1.0 to 4.0)"


def test_the_last_line_says_what_was_measured_on_what(capsys):
    common.publish({"ratio": 1.5}, "a table")
    first, last = capsys.readouterr().out.splitlines()
    assert first == "a table"
    said = json.loads(last)
    assert said["ratio"] == 1.5
    assert said["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert said["machine"]["arch"] == os.uname().machine
    assert said["versions"]["python"] == "{}.{}.{}".format(*sys.version_info)
    assert torch.__version__.startswith(said["versions"]["torch"].partition("+")[0])
    assert set(said["versions"]) >= {"python", "torch", "lightning"}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_four_cuts_from_shallow_to_deep(name):
    model = MODELS[name]
    net, batch = model.make(), (torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert net(batch[0]).shape == (2, 10)
    depths = {name: depth for depth, (name, _) in enumerate(net.named_modules())}
    assert [depths[cut] for cut in model.cuts] == sorted({depths[cut] for cut in model.cuts})
    assert len(model.cuts) == 4
    assert model.samples % (4 * 32) == 0  # whole batches for each of four clients


def test_the_cuts_of_a_model_are_cuts():
    from benchmarks.models import Classifier

    module, cuts = Classifier(MODELS["vgg11_bn"].make()).train(), MODELS["vgg11_bn"].cuts
    batch = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    found = find_cuts(module, batch, only=lambda name: name.endswith(cuts))
    assert [found.find(cut).name for cut in cuts] == [f"net.{cut}" for cut in cuts]


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Four scripts, of which one works, and one fails after it has printed figures; one was measured before."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "good.py").write_text('print("a table")\nprint(\'{"ratio": 2}\')\n')
    (folder / "half.py").write_text('import sys\nprint(\'{"ratio": 3, "other": null}\')\nsys.exit(1)\n')
    (folder / "bad.py").write_text('raise RuntimeError("no")\n')
    (folder / "silent.py").write_text("")
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    monkeypatch.setattr(run_all, "SCRIPTS", tuple(Script(name) for name in ("bad", "half", "silent", "good")))
    monkeypatch.setattr(run_all.report, "write", lambda results, page: page.write_text("page"))
    results = tmp_path / "results"
    results.mkdir()
    (results / "bad.json").write_text('{"ratio": 1}')
    return results


def test_a_script_that_fails_keeps_no_other_from_being_measured(scripts, tmp_path, capsys):
    status = run_all.main(["--results", str(scripts), "--page", str(tmp_path / "page.md")])
    assert status == 1
    told = capsys.readouterr().err
    assert "bad ended with status 1" in told
    assert "half ended with status 1" in told
    assert "silent printed no figures" in told
    assert "good" not in told
    kept = {path.stem: json.loads(path.read_text()) for path in scripts.glob("*.json")}
    assert {name: own["ratio"] for name, own in kept.items()} == {"bad": 1, "half": 3, "good": 2}
    assert kept["good"]["command"] == "python -m benchmarks.good"
    assert kept["good"]["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert (tmp_path / "page.md").read_text() == "page"


def test_when_all_is_measured_the_status_is_0(scripts, tmp_path):
    assert run_all.main(["--only", "good", "--results", str(scripts), "--page", str(tmp_path / "page.md")]) == 0


def test_without_time_nothing_is_started(scripts, tmp_path, capsys):
    status = run_all.main(["--minutes", "0", "--results", str(scripts), "--page", str(tmp_path / "page.md")])
    assert status == 1
    assert "good had no time left" in capsys.readouterr().err
    assert not (scripts / "good.json").exists()


def test_what_is_at_work_when_time_is_up_ends_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        " print(child.pid, flush=True); child.wait()"
    )
    lines, why = run_all.run([sys.executable, "-c", code], seconds=3.0)
    assert why == "was still at work after 3 s"
    for line in lines:  # it may have been ended before it said so
        until(partial(gone, int(line)))


@pytest.mark.parametrize("lines", [[], ["text\n"], ["[1]\n"], ['{"a": 1}\n', "text\n"]])
def test_a_last_line_that_is_no_object_is_no_figures(lines):
    assert run_all.figures_of(lines) is None


def test_the_shared_pass_is_timed():
    command = [sys.executable, "-m", "benchmarks.shared", "--clients", "2", "--batch", "2", "--steps", "1"]
    ran = subprocess.run(
        [*command, "--pairs", "1"], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )
    assert json.loads(ran.stdout.splitlines()[-1])["ratio"] > 0
