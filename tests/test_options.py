from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from small import Classifier, fit, vectors

from lightning_edgesplit import ClientProfile, EdgeSplitStrategy, ImpossibleCutError, InfeasibleError, ServerProfile
from lightning_edgesplit.scheduling import Fixed


class Halves:
    """A policy of a user's own, with two micro-batches in flight."""

    name = "halves"

    def __init__(self, parts=2, server_model="per_client"):
        self.parts, self.model = parts, server_model

    def plan(self, costs, clients, server, corrections=None):
        plan = Fixed((costs.cuts[0].name,) * len(clients)).plan(costs, clients, server, corrections)
        return replace(plan, policy=self.name, micro_batches=(self.parts,) * len(clients), server_model=self.model)


def undivided():
    return Halves(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients=0"),
        ({"clients": 2, "cuts": ["net.0"]}, "names 1 cuts for 2 clients"),
        ({"round_steps": 0}, "round_steps=0"),
        ({"partition": "shards"}, "partition='shards'"),
        ({"timeout": 0}, "timeout=0"),
        ({"policy": "fastest"}, "policy='fastest' is unknown: use one of"),
        ({"policy": "exact", "cuts": "net.0"}, "exclude each other"),
        ({"policy": {"policy": "exact", "phi": 1}}, "phi=1 is no parameter of policy='exact': use tolerance"),
        ({"policy": "nowhere.Mine"}, "policy='nowhere.Mine' is not there"),
        ({"policy": "epsl", "server_model": "per_client"}, "does not go with policy='epsl', which plans for 'shared'"),
        (
            {"policy": "sequential+pipar", "server_model": "shared"},
            "policy='sequential.pipar', which plans for 'sequen",
        ),
        ({"clients": []}, r"clients=\[\] is empty"),
        ({"clients": {}}, "`clients:` is missing or empty"),
        ({"clients": [ClientProfile("a"), ClientProfile("a")]}, "give every client its own"),
        ({"second_cut": "end"}, "second_cut='end' must be the name of a module"),
        ({"second_cut": 3}, "second_cut=3 must be the name of a module"),
        ({"participation": 0.0}, "participation=0.0 must be a fraction"),
        ({"participation": 1.5}, "participation=1.5 must be a fraction"),
        ({"optimizer_state": "drop"}, "optimizer_state='drop' is unknown"),
        ({"clock": "real"}, "clock='real' is unknown"),
        ({"processes": 3, "clients": 2}, "processes=3 must be from 1 to the number of clients, 2"),
        ({"processes": 0, "clients": 2}, "processes=0 must be from 1"),
        ({"processes": True, "clients": 2}, "processes=True must be from 1"),
        ({"processes": 1, "clients": 2, "clock": "wall"}, "clock='wall' does not work with processes=1.*virtual"),
        ({"processes": 1, "clients": 2, "partition": None}, "partition=None does not work with processes=1"),
        ({"processes": 1, "clients": 2, "launcher": "script"}, "launcher='script' does not work with.*launcher=.fork"),
        ({"launcher": "mpi"}, "launcher='mpi' is unknown"),
    ],
)
def test_wrong_arguments_are_refused_with_option_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeSplitStrategy(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": Halves(1, server_model="shared")},
            "policy='halves' plans server_model='shared', and 'per_client' is",
        ),
        ({"policy": "esfl", "clock": "wall"}, r"policy='esfl' plans server_shares=\(.* on the wall clock"),
        ({"policy": Halves(), "server_model": "shared"}, "policy='halves' plans micro_batches=2"),
    ],
)
def test_a_plan_that_a_run_would_not_follow_is_refused_before_any_process_starts(options, message):
    server = ServerProfile(flops=1e9, uplink=1e6, downlink=1e6)
    clients = [ClientProfile("a", flops=1e6), ClientProfile("b", flops=1e6)]
    strategy = EdgeSplitStrategy(clients=clients, server=server, **options)
    with pytest.raises(ValueError, match=message):
        fit(Classifier(), vectors(32), strategy)
    assert strategy._processes is None


@pytest.mark.parametrize("policy", ["asfl-code", "test_options.undivided", {"policy": "asfl", "least": 0.5}])
def test_policies_by_name_path_and_mapping_train(policy):
    clients = [ClientProfile("a", flops=1e6), ClientProfile("b", flops=1e9)]
    server = ServerProfile(flops=1e9, uplink=1e6, downlink=1e6)
    strategy = EdgeSplitStrategy(clients=clients, server=server, policy=policy, timeout=30)
    fit(Classifier(), vectors(32), strategy)
    taking = [{client.client for client in report.clients} for report in strategy.rounds]
    assert taking
    assert all(numbers == ({1} if isinstance(policy, dict) else {0, 1}) for numbers in taking)


def test_an_unknown_key_of_a_file_is_named_with_its_path(tmp_path):
    (tmp_path / "clients.yaml").write_text("clients: [{name: a, flop: 1e9}]")
    with pytest.raises(ValueError, match=r"clients\.yaml at 'clients\[0\]\.flop': the key is unknown"):
        EdgeSplitStrategy(clients=tmp_path / "clients.yaml")


@pytest.mark.parametrize("value", [0, -1e9, float("nan"), float("inf")])
def test_a_profile_that_cannot_be_is_refused_where_it_is_made(value):
    with pytest.raises(ValueError, match=r"flops=.* of client 'a' must be > 0 and finite"):
        ClientProfile("a", flops=value)


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class TwoOptimizers(Classifier):
    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=0.1) for p in list(self.parameters())[:2]]

    def training_step(self, batch, batch_idx):
        raise AssertionError("it must not get this far")


@pytest.fixture
def no_process_may_start(monkeypatch):
    def refuse(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr("lightning_edgesplit.launcher.ForkLauncher", refuse)


SMALL = [ClientProfile("big"), ClientProfile("tiny", memory=100.0)]


@pytest.mark.parametrize(
    ("module", "strategy", "trainer", "error", "message"),
    [
        (Classifier, {"cuts": "net.9"}, {}, ImpossibleCutError, r"cuts='net.9' cannot be used: the module has no such"),
        (Classifier, {"clients": 33}, {}, ValueError, "clients=33 for 32 training samples"),
        (Classifier, {"partition": [[0], [99]]}, {}, ValueError, "names sample 99, the training set has 32"),
        (Classifier, {"clients": SMALL}, {}, InfeasibleError, "memory=100 bytes of client 'tiny' fits no cut"),
        (Classifier, {"clients": SMALL, "cuts": "net.3"}, {}, InfeasibleError, "memory=100 bytes of client 'tiny'"),
        (Manual, {}, {}, ValueError, "automatic_optimization=False does not work"),
        (Classifier, {}, {"devices": 2}, ValueError, "`devices` as given does not work.*use devices=1"),
        (
            Classifier,
            {"round_steps": 3},
            {"accumulate_grad_batches": 2},
            ValueError,
            "`accumulate_grad_batches`.*multiple",
        ),
        (Classifier, {"private": "image"}, {}, ValueError, "private='image' names nothing in the batch"),
    ],
)
def test_what_cannot_be_is_refused_before_any_process_starts(
    module, strategy, trainer, error, message, no_process_may_start
):
    with pytest.raises(error, match=message):
        fit(module(), vectors(32), EdgeSplitStrategy(**{"clients": 2, **strategy}), **trainer)


def test_several_optimizers_are_refused_before_any_process_starts(no_process_may_start):
    with pytest.raises((ValueError, RuntimeError), match="optimizers"):
        fit(TwoOptimizers(), vectors(32), EdgeSplitStrategy(clients=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the accelerator")
def test_an_accelerator_that_is_not_there_is_refused():
    with pytest.raises(MisconfigurationException, match="gpu"):
        L.Trainer(strategy=EdgeSplitStrategy(clients=2), accelerator="gpu")
