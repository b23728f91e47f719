from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from lightning.pytorch import Trainer
from small import Classifier, Deterministic, WithAdamW, fedavg, fit, vectors
from torch.utils.data import DataLoader, TensorDataset

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import Fixed


@pytest.mark.parametrize("kind", [Classifier, WithAdamW])
@pytest.mark.parametrize("cut", ["net.0", "net.2", "end"])
def test_one_client_equals_plain_lightning(kind, cut):
    data, plain = vectors(64), kind()
    split = copy.deepcopy(plain)
    expected = fit(plain, data)
    actual = fit(split, data, EdgeSplitStrategy(clients=1, cuts=cut, timeout=30))
    torch.testing.assert_close(split.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics)


@pytest.mark.parametrize("kind", [Classifier, WithAdamW])
@pytest.mark.parametrize("cut", ["maxpool", "layer3"])
def test_one_client_equals_plain_lightning_on_resnet18(cut, kind):
    plain = kind(torchvision.models.resnet18(num_classes=10))
    split = copy.deepcopy(plain)
    data = TensorDataset(torch.randn(24, 3, 32, 32), torch.randint(0, 10, (24,)))
    fit(plain, data, batch_size=8)
    fit(split, data, EdgeSplitStrategy(clients=1, cuts=cut, timeout=60), batch_size=8)
    torch.testing.assert_close(split.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [None, 2])
def test_mixed_cuts_and_unequal_data_equal_federated_averaging(steps):
    data, module = vectors(72), Deterministic()
    parts = [list(range(8)), list(range(8, 34)), list(range(34, 72))]  # 1, 4 and 5 batches of at most 8
    expected = fedavg(copy.deepcopy(module), data, parts, batch_size=8, epochs=2, steps=steps or 100)
    strategy = EdgeSplitStrategy(
        clients=3, cuts=["net.0", "net.3", "end"], partition=parts, round_steps=steps, timeout=30
    )
    fit(module, data, strategy, batch_size=8)
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


class Wandering:
    """A policy under which every client has another cut in every round."""

    name = "wandering"

    def __init__(self) -> None:
        self.rounds = 0

    def plan(self, costs, clients, server, corrections=None):
        names = [cut.name for cut in costs.cuts]
        self.rounds += 1
        cuts = tuple(names[(self.rounds + 2 * k) % len(names)] for k in range(len(clients)))
        return Fixed(cuts).plan(costs, clients, server, corrections)


class WithAdamWDeterministic(Deterministic):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-4))


PARTS = [list(range(8)), list(range(8, 34)), list(range(34, 72))]


@pytest.mark.parametrize("kind", [Deterministic, WithAdamWDeterministic])
def test_cuts_that_move_between_rounds_change_nothing(kind):
    data, module = vectors(72), kind()
    expected = fedavg(copy.deepcopy(module), data, PARTS, batch_size=8, epochs=3, steps=2)
    strategy = EdgeSplitStrategy(clients=3, policy=Wandering(), partition=PARTS, round_steps=2, timeout=30)
    fit(module, data, strategy, batch_size=8, epochs=3)
    assert len({client.cut for report in strategy.rounds for client in report.clients}) > 3
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


def reset(optimizers, samples):
    for optimizer in optimizers:
        optimizer.state.clear()


def average(optimizers, samples):
    for group in zip(*(optimizer.param_groups[0]["params"] for optimizer in optimizers), strict=True):
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, group, strict=True)]
        having = [(state, n) for state, n in zip(states, samples, strict=True) if n]
        total = sum(n for _, n in having)
        mean = {key: sum(n / total * state[key] for state, n in having) for key in having[0][0]}
        for optimizer, p in zip(optimizers, group, strict=True):
            optimizer.state[p] = {key: value.clone() for key, value in mean.items()}


@pytest.mark.parametrize(("rule", "oracle"), [("reset", reset), ("average", average)])
def test_optimizer_state_is_reset_or_averaged_on_request(rule, oracle):
    data, module = vectors(72), Deterministic()
    expected = fedavg(copy.deepcopy(module), data, PARTS, batch_size=8, epochs=2, steps=2, after_round=oracle)
    strategy = EdgeSplitStrategy(
        clients=3, policy=Wandering(), partition=PARTS, round_steps=2, optimizer_state=rule, timeout=30
    )
    fit(module, data, strategy, batch_size=8)
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


class SteppedSchedule(Classifier):
    """The rate changes with every step, so that it depends on the order in which clients are served."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_under_a_schedule_per_step_clients_are_served_in_a_fixed_order():
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        module, data = SteppedSchedule(), vectors(96)
        strategy = EdgeSplitStrategy(clients=3, cuts=["net.0", "net.3", "end"], timeout=30)
        fit(module, data, strategy)
        states.append(module.state_dict())
        begun = sorted(
            (span.start, span.client) for span in strategy.rounds[0].spans if span.on_server and span.phase == "server"
        )
        assert [client for _, client in begun] == [0, 1] * 2
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_checkpoint_continues_in_plain_lightning_as_if_nothing_had_been_split(tmp_path):
    data, plain = vectors(64), WithAdamW()
    split = copy.deepcopy(plain)
    fit(plain, data, epochs=2).save_checkpoint(tmp_path / "plain.ckpt")
    fit(split, data, EdgeSplitStrategy(clients=1, cuts="net.2", timeout=30)).save_checkpoint(tmp_path / "split.ckpt")
    ends = []
    for name in ("plain", "split"):
        module = WithAdamW()
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        torch.manual_seed(3)
        trainer.fit(module, DataLoader(data, batch_size=16), ckpt_path=tmp_path / f"{name}.ckpt")
        assert trainer.current_epoch == 4
        ends.append(module.state_dict())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_several_clients_holds_the_mean_of_weights_and_optimizer_states(tmp_path):
    module, data = WithAdamW(), vectors(64)
    fit(module, data, EdgeSplitStrategy(clients=2, cuts=["net.0", "net.3"], timeout=30)).save_checkpoint(
        tmp_path / "split.ckpt"
    )
    saved = torch.load(tmp_path / "split.ckpt", weights_only=True)
    torch.testing.assert_close(saved["state_dict"], module.state_dict(), rtol=0, atol=0)
    states = saved["optimizer_states"][0]["state"]
    assert len(states) == len(list(module.parameters()))
    assert all(state["step"] == 4 for state in states.values())  # two epochs of two batches, on either client


def test_validation_in_mid_round_sees_the_mean_of_the_models_and_disturbs_nothing():
    data, module = vectors(64), Deterministic()
    seen = []
    module.validation_step = lambda batch, batch_idx: seen.append(copy.deepcopy(module.net.state_dict()))
    undisturbed = copy.deepcopy(module)
    del undisturbed.validation_step
    options = {
        "clients": 2,
        "cuts": ["net.0", "end"],
        "timeout": 30,
        "partition": [list(range(32)), list(range(32, 64))],
    }
    for model, extra in ((undisturbed, {}), (module, {"val_check_interval": 0.5, "num_sanity_val_steps": 0})):
        trainer = Trainer(
            strategy=EdgeSplitStrategy(**options), max_epochs=1, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **extra,
        )  # fmt: skip
        loader = DataLoader(data, batch_size=8)
        trainer.fit(model, loader, DataLoader(data, batch_size=64) if extra else None)
    assert len(seen) == 2
    torch.testing.assert_close(module.state_dict(), undisturbed.state_dict(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(seen[1], module.net.state_dict(), rtol=0, atol=0)
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def test_every_client_may_have_a_loader_of_its_own():
    data, module = vectors(72), Deterministic()
    expected = fedavg(copy.deepcopy(module), data, PARTS, batch_size=8, epochs=2, steps=100)
    loaders = [DataLoader(torch.utils.data.Subset(data, part), batch_size=8) for part in PARTS]
    trainer = Trainer(
        strategy=EdgeSplitStrategy(clients=3, cuts="net.3", timeout=30), max_epochs=2, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loaders)
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_a_rounds_report_accounts_for_its_time_and_bytes():
    module = Deterministic()
    strategy = EdgeSplitStrategy(clients=2, cuts=["net.0", "end"], timeout=30)
    fit(module, vectors(64), strategy, batch_size=8, epochs=3)
    assert [report.epoch for report in strategy.rounds] == [0, 1, 2]
    report = strategy.rounds[1]
    split, whole = report.clients
    assert (split.steps, whole.steps, split.samples) == (4, 4, 32)
    own = sum(p.nbytes for name, p in module.state_dict().items() if name.startswith("net.0."))
    payload = own + 4 * 8 * (16 * 4 + 8)  # its weights, then four times eight samples of 16 floats and a label
    assert payload < split.bytes_up < payload + 8000
    phases = {span.phase for span in report.spans if span.client == 0 and not span.on_server}
    assert phases >= {"download", "forward", "uplink", "wait", "server", "downlink", "backward", "upload"}
    for client in report.clients:
        own_spans = [span for span in report.spans if span.client == client.client and not span.on_server]
        covered = sum(span.end - span.start for span in own_spans)
        assert covered <= client.round_time * 1.05 + 1e-3
        assert client.round_time <= report.seconds
        assert sum(client.seconds.values()) == pytest.approx(covered)


def test_the_name_is_registered():
    module = Classifier()
    trainer = fit(module, vectors(64), "edgesplit", epochs=1)
    assert isinstance(trainer.strategy, EdgeSplitStrategy)
    assert len(trainer.strategy.rounds) == 1
