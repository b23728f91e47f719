"""From the command to the table: real training, a process for every run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from comparing_samples import CONFIG
from processes import gone, until

from lightning_edgesplit.cli import main
from lightning_edgesplit.comparing.files import write

pytestmark = pytest.mark.timeout(400)
FOLDERS = (Path(__file__).parent, Path(__file__).parents[2])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    (folder / "config.yaml").write_text(CONFIG.replace("tensorboard: false", "tensorboard: true"))
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGESPLIT_CACHE", str(folder / "cache"))
    patch.setenv("PYTHONWARNINGS", "ignore")
    assert main(["compare", str(folder / "config.yaml"), "--output", str(folder / "one"), "--processes", "2"]) == 0
    yield folder
    patch.undo()


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_system_and_seed_has_a_row_and_emulated_times_are_those_of_the_profiles(compared):
    made = rows(compared / "one" / "results.csv")
    assert [(row["system"], row["seed"]) for row in made] == [
        ("FedAvg", "0"), ("FedAvg", "1"), ("SplitFed", "0"), ("SplitFed", "1"),
    ]  # fmt: skip
    flop = 2 * (12 * 16 + 16 * 16 + 16 * 4)  # a forward pass of one sample
    flop += 2 * flop - 2 * 12 * 16  # nothing needs the gradient of the first layer's input
    weights = 4 * ((12 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 4)  # bytes
    slow = 2 * 8 * flop / 1e6 + 2 * weights / (0.5 * 1e6 / 8)  # two local steps of eight, half of the links each way
    for row in made[:2]:
        assert int(row["rounds"]) == 4, "32 samples each in batches of 8, two steps a round, two epochs"
        assert float(row["seconds_per_round"]) == pytest.approx(slow, rel=1e-3)
        assert float(row["emulated_seconds"]) == pytest.approx(4 * slow, rel=1e-3)
        assert row["seconds_to_accuracy_2"] == "", "no accuracy is 2"
    for one, other in zip(made[:2], made[2:], strict=True):
        assert float(one["final_accuracy"]) == pytest.approx(float(other["final_accuracy"]), abs=0.011), (
            "split rounds are federated averaging, wherever the cuts are"
        )
        assert float(other["seconds_per_round"]) < float(one["seconds_per_round"])


def test_tables_figures_logs_and_boards_are_there(compared):
    output = compared / "one"
    assert "FedAvg" in (output / "table.md").read_text()
    assert r"\toprule" in (output / "table.tex").read_text()
    assert len(rows(output / "rounds.csv")) == 16
    assert len((output / "results.jsonl").read_text().splitlines()) == 4
    for name in ("speed_up.png", "two/accuracy_over_time.pdf", "two/timeline_SplitFed.png"):
        assert (output / "figures" / name).stat().st_size > 1000
    logged = [json.loads(line) for line in (output / "runs.log").read_text().splitlines()]
    assert all(entry["wall_seconds"] > 0 for entry in logged)
    assert len(logged) == 4


def test_tensorboard_has_the_run_among_its_hyperparameters(compared):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(compared / "one" / "tb" / "two" / "SplitFed" / "1"))
    events.Reload()
    (row,) = [r for r in rows(compared / "one" / "results.csv") if (r["system"], r["seed"]) == ("SplitFed", "1")]
    assert events.Scalars("final/accuracy")[-1].value == pytest.approx(float(row["final_accuracy"]))
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_again_with_another_number_of_processes_gives_the_same_bytes(compared):
    arguments = ["compare", str(compared / "config.yaml"), "--output", str(compared / "two"), "--processes", "1"]
    assert main(arguments) == 0
    for name in ("results.csv", "results.jsonl", "rounds.csv", "table.md", "table.tex", "figures/two/cuts.png"):
        assert (compared / "one" / name).read_bytes() == (compared / "two" / name).read_bytes(), name
    for path in (compared / "one" / "runs").rglob("*.json"):
        assert (
            path.read_bytes() == (compared / "two" / "runs" / path.relative_to(compared / "one" / "runs")).read_bytes()
        )


def test_what_is_finished_is_kept_and_what_is_missing_or_of_another_configuration_is_run(compared, capsys):
    output = compared / "one"
    paths = sorted((output / "runs").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    text = (output / "results.csv").read_bytes()
    missing, stale = paths[0], paths[3]
    missing.unlink()
    stale.write_text(stale.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    assert main(["compare", str(compared / "config.yaml"), "--output", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["results"]) == 4
    assert said["failed"] == []
    after = {path: path.stat().st_mtime_ns for path in paths}
    assert {path for path in paths if after[path] != before[path]} == {missing, stale}
    assert (output / "results.csv").read_bytes() == text


def test_only_plan_trains_nothing(compared, capsys, tmp_path):
    arguments = ["compare", str(compared / "config.yaml"), "--output", str(tmp_path / "none"), "--only-plan", "--json"]
    assert main(arguments) == 0
    (fedavg, split) = json.loads(capsys.readouterr().out)["plans"]
    assert fedavg["cuts"] == ["end", "end"]
    assert split["round_seconds"] < fedavg["round_seconds"]
    assert float(rows(compared / "one" / "results.csv")[0]["seconds_per_round"]) == fedavg["round_seconds"]
    assert not (tmp_path / "none").exists()


def test_planned_batches_are_shown_without_training(compared, tmp_path, capsys):
    path, output = tmp_path / "config.yaml", tmp_path / "none"
    own = "  - {policy: joint, batches: true, label: batches}\n"
    path.write_text(CONFIG.replace("  - {policy: uniform, label: SplitFed}\n", own))
    arguments = ["compare", str(path), "--output", str(output), "--only-plan"]
    assert main([*arguments, "--json"]) == 0
    fedavg, joint = json.loads(capsys.readouterr().out)["plans"]
    assert fedavg["batches"] == []
    assert sum(joint["batches"]) == 16, "two clients with 8 each"
    assert min(joint["batches"]) < 8, "one is ten times as fast"
    assert main(arguments) == 0
    assert f"batches {', '.join(map(str, joint['batches']))}" in " ".join(capsys.readouterr().out.split())


def config(tmp_path, module, arguments="{}"):
    path = tmp_path / "config.yaml"
    text = CONFIG.replace("{class_path: comparing_samples.Tiny}", f"{{class_path: {module}, init_args: {arguments}}}")
    path.write_text(text.replace("  - {policy: uniform, label: SplitFed}\n", ""))
    return path


def test_a_run_that_fails_is_named_at_the_end_and_the_others_go_on(tmp_path, capsys):
    path, output = config(tmp_path, "comparing_samples.Failing"), tmp_path / "out"
    assert main(["compare", str(path), "--output", str(output), "--processes", "1"]) == 1
    error = capsys.readouterr().err
    assert "failed: two, FedAvg, seed 1: RuntimeError: this seed is odd" in error
    assert "RuntimeError: this seed is odd" in (output / "logs" / "two" / "FedAvg" / "1.log").read_text()
    assert [row["seed"] for row in rows(output / "results.csv")] == ["0"]
    assert "(1/2)" in (output / "table.md").read_text()


def test_a_metric_that_is_not_logged_is_an_error_that_lists_those_that_are(tmp_path, capsys):
    path = config(tmp_path, "comparing_samples.Tiny")
    path.write_text(path.read_text().replace("metric: accuracy", "metric: acc").replace("[0, 1]", "[0]"))
    assert main(["compare", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "target_accuracy.metric='acc' is not logged" in capsys.readouterr().err


def test_a_full_disk_ends_all_with_a_message_and_keeps_what_is_finished(tmp_path, capsys):
    path, output = config(tmp_path, "comparing_samples.FullDisk"), tmp_path / "out"
    path.write_text(path.read_text().replace("[0, 1]", "[0, 1, 3, 5]"))
    assert main(["compare", str(path), "--output", str(output), "--processes", "1"]) == 1
    error = capsys.readouterr().err
    assert "no room is left on the disk" in error
    assert "No space left on device" in error
    folder = output / "runs" / "two" / "FedAvg"
    assert [child.name for child in folder.iterdir()] == ["0.json"], "and no temporary file"
    assert not (output / "logs" / "two" / "FedAvg" / "3.log").exists(), "no further run was started"


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "file"
    write(path, "before")
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("the disk is gone")))
    with pytest.raises(OSError, match="the disk is gone"):
        write(path, "after")
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_no_process_behind_and_what_is_finished_is_kept(tmp_path, sent):
    path, output = config(tmp_path, "comparing_samples.Hanging", f"{{folder: {tmp_path}}}"), tmp_path / "out"
    command = [sys.executable, "-m", "lightning_edgesplit.cli", "compare", str(path), "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(f) for f in FOLDERS), "PYTHONWARNINGS": "ignore"}
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen([*command, "--processes", "1"], env=environment, stdout=said, stderr=said)
        until((tmp_path / "pid").exists)
        until(lambda: (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        clients = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        first.send_signal(sent)
        code = first.wait(60)
    assert clients, "the run had clients"
    until(lambda: all(gone(one) for one in [pid, *clients]))
    kept = output / "runs" / "two" / "FedAvg" / "0.json"
    assert [child for child in kept.parent.iterdir()] == [kept]
    if sent == signal.SIGKILL:
        return
    assert code == 130
    assert "interrupted: 1 of 2 runs are kept" in (tmp_path / "said").read_text()
    assert [row["seed"] for row in rows(output / "results.csv")] == ["0"]
    before = kept.stat().st_mtime_ns
    (tmp_path / "go").touch()
    done = subprocess.run([*command, "--processes", "2"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs done, 1 of them from before" in done.stdout
    assert kept.stat().st_mtime_ns == before
    assert [row["seed"] for row in rows(output / "results.csv")] == ["0", "1"]
