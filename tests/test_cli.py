from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_edgesplit.cli import main
from lightning_edgesplit.scheduling import POLICIES, Costs, CutCost, load_clients
from lightning_edgesplit.scheduling.measured import load_layer_times

CLIENTS = """
clients:
  - {name: fast, flops: 1e12}
  - {name: slow, flops: 1e9}
server: {flops: 1e12, uplink: 1e8, downlink: 1e8}
"""


@pytest.fixture
def files(tmp_path):
    shallow = CutCost("shallow", 1e6, 2e6, 97e6, smashed=4e3, gradient=4e3, weights=1e4)
    end = CutCost("end", 30e6, 70e6, 0.0, 0.0, 0.0, weights=1e7)
    Costs((shallow, end), (32, 32), (10, 10)).save(tmp_path / "costs.json")
    (tmp_path / "clients.yaml").write_text(CLIENTS)
    return [str(tmp_path / "clients.yaml"), str(tmp_path / "costs.json")]


def test_plan_prints_a_table_beside_the_other_policies(files, capsys):
    assert main(["plan", *files]) == 0
    text = capsys.readouterr().out
    assert "plan of edgesplit" in text
    assert all(word in text for word in ("fast", "slow", "shallow", "fedavg", "uniform", "exact"))


def test_plan_prints_json_for_programs(files, capsys):
    assert main(["plan", *files, "--policy", "fedavg", "--steps", "1", "--batch", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cuts"] == ["end", "end"]
    assert plan["round_time"] == pytest.approx(8 * 100e6 / 1e9 + 2 * 1e7 / (0.5 * 1e8 / 8))
    assert set(plan["others"]) == set(POLICIES) - {"fedavg"}


def test_a_policy_may_have_parameters_overlap_and_be_the_users_own(files, capsys):
    def planned(*more):
        assert main(["plan", *files, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    plan = planned("--policy", "{policy: epsl, phi: 0.25}")
    assert (plan["policy"], plan["aggregated"], plan["server_model"]) == ("epsl", 0.25, "shared")
    assert planned("--policy", "uniform+pipar")["policy"] == "uniform+pipar"
    assert planned("--policy", "test_options.Halves")["micro_batches"] == [2, 2]
    drawn = [planned("--policy", "random", "--round", str(number))["cuts"] for number in range(12)]
    assert len({tuple(cuts) for cuts in drawn}) > 1
    assert planned("--policy", "random", "--round", "5")["cuts"] == drawn[5]


def test_plan_draws_the_planned_round(files, tmp_path):
    assert main(["plan", *files, "--figure", str(tmp_path / "round.png")]) == 0
    assert (tmp_path / "round.png").read_bytes().startswith(b"\x89PNG")


def test_plan_shows_the_batches_that_joint_divides(files, capsys):
    arguments = ["plan", *files, "--policy", "{policy: joint, batches: true}", "--batch", "16", "--steps", "2"]
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sum(plan["batches"]) == 2 * 16
    assert plan["batches"] != [16, 16]
    assert main(arguments) == 0
    header, first, second = (line.split() for line in capsys.readouterr().out.splitlines()[1:5] if "─" not in line)
    assert header[:3] == ["client", "cut", "batch"]
    assert [first[2], second[2]] == [str(own) for own in plan["batches"]]


def test_a_plan_of_costs_with_samples_left_counts_the_steps_that_they_make(files, tmp_path, capsys):
    costs = Costs.load(files[1])
    replace(costs, batch=(8, 8), steps=(3, 2), samples=(20, 9)).save(tmp_path / "left.json")

    replace(costs, batch=(4, 4), steps=(5, 3)).save(tmp_path / "plain.json")

    def seconds(name, *more):
        assert main(["plan", files[0], str(tmp_path / name), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)["round_time"]

    assert seconds("left.json", "--batch", "4") == seconds("plain.json"), "20 and 9 samples in fours"
    assert seconds("left.json", "--batch", "4", "--steps", "1") < seconds("plain.json")


def run_python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plan_answers_without_torch_and_matplotlib(files):
    code = """
import sys
from lightning_edgesplit.cli import main
main(["plan", *sys.argv[1:]])
print("loaded:", [name for name in ("torch", "lightning", "matplotlib") if name in sys.modules])
"""
    text = run_python(code, *files)
    assert "plan of edgesplit" in text
    assert "loaded: []" in text


@pytest.mark.parametrize("first", ["lightning_edgesplit", "lightning.pytorch"])
def test_the_trainer_knows_the_strategy_whichever_package_is_imported_first(first):
    second = {"lightning_edgesplit": "lightning.pytorch", "lightning.pytorch": "lightning_edgesplit"}[first]
    code = f"""
import {first}, {second}
from lightning.pytorch import Trainer
print(type(Trainer(strategy="edgesplit", accelerator="cpu", logger=False, enable_checkpointing=False).strategy))
"""
    assert "EdgeSplitStrategy" in run_python(code)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "best"], "policy='best' is unknown"),
        (["--policy", "{policy: epsl"], "is no mapping: write it as '{policy: epsl, phi: 0.5}'"),
        (["--policy", "{policy: epsl, fi: 1}"], "fi=1 is no parameter of policy='epsl'"),
        (["--steps", "0"], "--steps=0 must be at least 1"),
    ],
)
def test_a_wrong_argument_ends_with_one_line_that_says_what_to_do(files, more, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", *files, *more])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_costs_of_another_number_of_clients_need_batch_and_steps(files, tmp_path, capsys):
    three = tmp_path / "three.yaml"
    three.write_text("clients: [{name: a, flops: 1e9, count: 3}]\nserver: {flops: 1e12}")
    with pytest.raises(SystemExit):
        main(["plan", str(three), files[1]])
    assert "the costs are of 2 clients, there are 3: give --batch" in capsys.readouterr().err
    assert main(["plan", str(three), files[1], "--batch", "32", "--steps", "10"]) == 0


def test_a_client_needs_a_script(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["client", "0", "--server", "127.0.0.1:29500", str(tmp_path / "none.py")])
    assert "there is no such file" in capsys.readouterr().err


def training_data():
    return [(torch.randn(4, 12), torch.randint(0, 10, (4,)))]


def test_cuts_prints_what_there_is_and_why_the_rest_is_not(capsys, tmp_path):
    figure = tmp_path / "cuts.png"
    arguments = ["cuts", "--module", "small.Deterministic", "--data", "test_cli.training_data"]
    assert main([*arguments, "--figure", str(figure)]) == 0
    text = capsys.readouterr().out
    assert "net.3" in text
    assert "smashed kB" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json", "--cut", "net.3"]) == 0
    (row, end) = json.loads(capsys.readouterr().out)["cuts"]
    assert row["name"] == "net.3"
    assert row["smashed_bytes"] == 16 * 4 + 8, "sixteen floats and a label"
    assert row["flop_share"] == pytest.approx((12 * 16 + 16 * 16) / (12 * 16 + 16 * 16 + 16 * 10))
    assert end["name"] == "end"
    assert main([*arguments, "--second-cut", "net.3"]) == 0
    assert "layers" in capsys.readouterr().out
    assert main([*arguments, "--json", "--cut", "net.0", "--second-cut", "net.3"]) == 0
    (row, _) = json.loads(capsys.readouterr().out)["cuts"]
    assert row["sent"] == [], "the labels stay"
    assert row["head_share"] == pytest.approx(3 * 16 * 10 / (3 * 16 * 26 + 2 * 12 * 16))
    with pytest.raises(SystemExit):
        main([*arguments, "--second-cut", "net.9"])
    assert "second_cut='net.9' names no module" in capsys.readouterr().err


def test_cuts_takes_a_configuration_and_explains_what_is_wrong(capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}\n"
        "data: {class_path: lightning.pytorch.demos.boring_classes.BoringDataModule}\n"
    )
    assert main(["cuts", "--config", str(config)]) == 0
    assert "layer" in capsys.readouterr().out
    for arguments, message in (
        (["--module", "small.Nothing", "--data", "test_cli.training_data"], "small has no Nothing"),
        (["--module", "nowhere.Module", "--data", "x.y"], "No module named 'nowhere'"),
        (["--module", "small.Deterministic"], "--data=None: give a dotted path"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["cuts", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_profile_writes_the_times_that_a_client_profile_takes(capsys, tmp_path):
    times = tmp_path / "times.csv"
    arguments = ["profile", "--module", "small.Deterministic", "--data", "test_cli.training_data", "--repeats", "1"]
    assert main([*arguments, "--output", str(times)]) == 0
    assert "GFLOP/s over the whole step" in capsys.readouterr().out
    loaded = load_layer_times(times)
    assert [cut.name for cut in loaded.cuts][-1] == "end"
    assert loaded["end"].server == 0
    assert all(cut.client_forward > 0 and cut.client_backward > 0 for cut in loaded.cuts)
    assert main([*arguments, "--cut", "net.3", "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert [row["cut"] for row in profile["cuts"]] == ["net.3", "end"]
    assert profile["flops"] > 0
    yaml = tmp_path / "clients.yaml"
    yaml.write_text("clients:\n  - {name: here, times: times.csv}\nserver: {flops: 1.0e+9}\n")
    (here,), _ = load_clients(yaml)
    assert here.times is not None
    with pytest.raises(SystemExit):
        main([*arguments, "--threads", "0"])
    assert "--threads=0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module", ["splitting", "scheduling", "runtime.planning", "monitoring.cuts", "comparing.making"]
)
def test_every_part_can_be_the_first_that_is_imported(module):
    assert run_python(f"import lightning_edgesplit.{module}; print('imported')") == "imported\n"
