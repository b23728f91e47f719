from __future__ import annotations

import json

import pytest
import torch

from lightning_edgesplit.cli import main
from lightning_edgesplit.scheduling import Costs, CutCost

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
    assert set(plan["others"]) >= {"edgesplit", "uniform", "exact", "joint"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "best"], "policy='best' is unknown"),
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
