from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparing_samples import CONFIG
from omegaconf import OmegaConf

from lightning_edgesplit.cli import main
from lightning_edgesplit.comparing.config import load_comparison
from lightning_edgesplit.comparing.orders import orders_of, strategy_of

CONFIGS = Path(__file__).parents[2] / "configs"


def written(tmp_path, **changes):
    """The sample configuration with some keys changed; `scenario__key` is one of the scenario."""
    config = OmegaConf.to_container(OmegaConf.create(CONFIG))
    for key, value in changes.items():
        place, _, name = key.rpartition("__")
        (config["scenarios"][0] if place else config)[name] = value
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    return path


def test_what_is_said_at_the_top_holds_for_all_and_a_scenario_may_say_otherwise(tmp_path):
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "three.yaml").write_text(
        "clients: [{name: a, times: a.csv}, {flops: 1e6, count: 2}]\nserver: {flops: 1e9}"
    )
    (tmp_path / "clients" / "a.csv").write_text("cut,client_forward_seconds,client_backward_seconds\nend,0.1,0.2\n")
    path = written(
        tmp_path, scenario__clients="clients/three.yaml", scenario__batch=16, scenario__server={"flops": 2e9}
    )
    comparison = load_comparison(path)
    (scenario,) = comparison.scenarios
    assert [p.name for p in scenario.profiles] == ["a", "client-1", "client-2"]
    assert scenario.server.flops == 2e9
    assert scenario.data.init_args == {"batch_size": 16}
    assert scenario.model.class_path == "comparing_samples.Tiny"
    assert [system.label for system in comparison.systems] == ["FedAvg", "SplitFed"]
    assert comparison.baseline == "FedAvg"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sytems": []}, "at 'config.sytems': the key is unknown"),
        ({"systems": ["best"]}, "at 'systems[0].policy': policy='best' is unknown"),
        ({"systems": []}, "at 'systems': the list is missing or empty"),
        ({"systems": ["fedavg", "fedavg"]}, "'fedavg' comes twice: give every one its own `label`"),
        ({"systems": [{"label": "x"}]}, "at 'systems[0]'"),
        ({"systems": [{"policy": "fedavg", "cuts": "net.0"}]}, "at 'systems[0].cuts'"),
        ({"baseline": "best"}, "at 'baseline': 'best' is no system here: use one of FedAvg, SplitFed"),
        ({"seeds": [1, 1]}, "at 'seeds'"),
        ({"seeds": ["one"]}, "seeds"),
        ({"threads": 0}, "at 'threads': 0 must be at least 1"),
        ({"trainer": {"strategy": "ddp"}}, "at 'trainer.strategy': the key is unknown here"),
        ({"strategy": {"clock": "off"}}, "at 'strategy.clock': the key is unknown here"),
        ({"target_accuracy": {"metric": "a", "mode": "best"}}, "mode='best' is unknown: use one of max, min"),
        ({"target_accuracy": {"values": [float("nan")]}}, "must be finite numbers"),
        ({"model": "resnet0"}, "at 'scenarios[0].model': model='resnet0' is no ready one: use one of"),
        ({"model": {"class_path": "comparing_samples.Nothing"}}, "comparing_samples has no Nothing"),
        ({"model": {"class_path": "nowhere.Tiny"}}, "No module named 'nowhere'"),
        ({"data": {"class_path": "comparing_samples.Vectors", "init_args": {"size": 1}}}, "unexpected keyword"),
        ({"data": None}, "at 'scenarios[0].data': it is missing"),
        ({"scenario__name": ""}, "at 'scenarios[0].name': the value is missing"),
        ({"scenario__clients": None}, "at 'scenarios[0].clients': there are none"),
        ({"scenario__clients": "none.yaml"}, "no such file"),
        ({"scenario__clients": [{"flops": float("nan")}]}, "must be > 0 and finite"),
        ({"scenario__clients": [{"slowdown": 2.0}]}, "relative to the machine at hand"),
        ({"scenario__clients": [{"flop": 1e9}]}, "clients[0].flop': the key is unknown"),
        ({"scenario__server": {"uplink": 1e6}}, "at 'scenarios[0].server': its speed is missing"),
        ({"scenario__server": {"flops": 1e9, "uplink": float("nan")}}, "must be > 0 and finite"),
        ({"scenario__partition": "dirichlet:no"}, "at 'scenarios[0].partition'"),
        ({"scenario__round_steps": 0}, "at 'scenarios[0].round_steps': 0 must be at least 1"),
        ({"scenario__participation": 0.0}, "at 'scenarios[0].participation'"),
        ({"scenario__batch": 0}, "at 'scenarios[0].batch'"),
        ({"scenario__trace": "none.csv"}, "at 'scenarios[0].trace'"),
    ],
)
def test_a_mistake_is_an_error_with_its_place(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        load_comparison(written(tmp_path, **changes))
    assert message in str(raised.value)


def test_a_trace_with_a_gap_is_refused_with_its_line(tmp_path):
    (tmp_path / "trace.csv").write_text("seconds,client,uplink\n0,slow,1e6\n5,slow,\n")
    with pytest.raises(ValueError, match=r"scenarios\[0\].trace.*line 3, column 'uplink'"):
        load_comparison(written(tmp_path, scenario__trace="trace.csv"))


def test_a_client_without_room_for_any_cut_is_named_before_anything_is_trained(tmp_path, capsys):
    clients = [{"name": "slow", "flops": 1e6}, {"name": "small", "flops": 1e6, "memory": 100}]
    path, output = written(tmp_path, scenario__clients=clients), tmp_path / "results"
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(path), "--output", str(output)])
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert "scenario 'two', system 'FedAvg': memory=100 bytes of client 'small'" in text
    assert "Nothing was trained" in text
    assert not output.exists()


def test_what_does_not_go_together_is_refused_before_anything_is_trained(tmp_path, capsys):
    path = written(tmp_path, systems=[{"policy": "uniform", "optimizer_state": "forget"}])
    with pytest.raises(SystemExit):
        main(["compare", str(path), "--only-plan"])
    assert "scenario 'two', system 'uniform': optimizer_state='forget' is unknown" in capsys.readouterr().err


def test_a_system_may_have_its_weights_travel_with_fewer_bits(tmp_path, capsys):
    systems = [{"policy": "fedavg", "label": how, "weight_compression": how} for how in ("none", "bfloat16")]
    path = written(tmp_path, systems=systems, scenario__server={"flops": 1e30, "uplink": 1e6, "downlink": 1e6})
    assert [strategy_of(order).weight_compression for order in orders_of(load_comparison(path))[:2]] == [
        "none", "bfloat16",
    ]  # fmt: skip
    assert main(["compare", str(path), "--only-plan", "--json"]) == 0
    one, other = (entry["client_seconds"][0] for entry in json.loads(capsys.readouterr().out)["plans"])
    weights = 4 * ((12 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 4)  # bytes
    assert one - other == pytest.approx(2 * weights / 2 / (0.5 * 1e6 / 8)), "half of them, over half a link each way"


def test_data_without_a_validation_set_are_refused_before_anything_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", str(written(tmp_path, data={"class_path": "test_cli.training_data"})), "--only-plan"])
    assert "gives nothing to validate on" in capsys.readouterr().err


def test_the_fingerprint_changes_with_what_the_numbers_depend_on_and_with_nothing_else(tmp_path):
    def prints(**changes):
        return {o.fingerprint for o in orders_of(load_comparison(written(tmp_path, **changes)))}

    first = prints()
    assert len(first) == 4, "one of each run"
    assert prints() == first
    assert prints(target_accuracy={"metric": "accuracy", "values": [0.9]}, baseline="SplitFed") == first
    assert len(prints(seeds=[0, 1, 2]) - first) == 2, "runs that are there already are kept"
    for changes in ({"trainer": {"max_epochs": 3}}, {"scenario__round_steps": 3}, {"threads": 2}):
        assert not prints(**changes) & first
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,client,uplink\n0,slow,1e6\n")
    before = prints(scenario__trace="trace.csv")
    trace.write_text("seconds,client,uplink\n0,slow,2e6\n")
    assert not prints(scenario__trace="trace.csv") & before, "the content of a file counts, not its name"


@pytest.mark.parametrize("name", [path.name for path in sorted((CONFIGS / "compare").glob("*.yaml"))])
def test_the_configurations_of_the_package_are_valid(name):
    pytest.importorskip("torchvision")
    comparison = load_comparison(CONFIGS / "compare" / name)
    assert comparison.systems
    assert comparison.target.values
