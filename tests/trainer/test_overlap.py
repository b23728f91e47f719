"""Micro-batches in flight, and 8-bit smashed data: what they change, and what they do not."""

from __future__ import annotations

import copy
from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from small import Classifier, WithAdamW, fedavg, fit, vectors
from torch import nn
from torch.utils.data import DataLoader

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import ClientProfile, Fixed, ServerProfile


class Planned:
    """Fixed cuts with some of a plan's fields of the test's choice."""

    name = "planned"

    def __init__(self, cut: str = "net.2", **fields) -> None:
        self.cut, self.fields = cut, fields

    def plan(self, costs, clients, server, corrections=None):
        plan = Fixed((self.cut,) * len(clients)).plan(costs, clients, server, corrections)
        fields = dict(self.fields)
        if "micro_batches" in fields:
            fields["micro_batches"] = tuple(fields["micro_batches"][: len(clients)])
        return replace(plan, **fields)


class Plain(Classifier):
    """No batch statistics, no dropout: micro-batches change nothing but the order of sums."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10)))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def train(module, policy, clients=3, samples=60, batch_size=10, epochs=2, trainer=None, **options):
    strategy = EdgeSplitStrategy(clients=clients, policy=policy, timeout=30, **options)
    fit(module, vectors_of(samples), strategy, batch_size=batch_size, epochs=epochs, **(trainer or {}))
    return strategy


def vectors_of(samples):
    torch.manual_seed(5)
    return vectors(samples)


def same(a, b, **tolerance):
    torch.testing.assert_close(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_micro_batches_add_up_to_the_same_update_as_federated_averaging_in_plain_pytorch():
    torch.manual_seed(1)
    module = Plain()
    start, data = copy.deepcopy(module), vectors_of(60)
    parts = [list(range(0, 30)), list(range(30, 50)), list(range(50, 60))]
    strategy = EdgeSplitStrategy(
        clients=3, policy=Planned(micro_batches=(3, 4, 1)), partition=parts, round_steps=2, timeout=30
    )
    trainer = fit(module, data, strategy, batch_size=10, epochs=2)  # 10 samples in 3 parts: 4, 3 and 3
    same(module.state_dict(), fedavg(start, data, parts, 10, 2, steps=2))
    assert [client.steps for client in strategy.rounds[0].clients] == [2, 2, 1]
    assert trainer.global_step == 2 * (3 * 3 + 2 * 4 + 1)  # one per arrival


def test_with_clipping_accumulation_and_one_client_it_is_plain_lightning():
    for options in ({"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}):
        torch.manual_seed(1)
        module = Plain()
        plain = copy.deepcopy(module)
        train(module, Planned(micro_batches=(2,)), clients=1, trainer=options)
        fit(plain, vectors_of(60), batch_size=10, epochs=2, **options)
        same(module.state_dict(), plain.state_dict())


def test_the_loss_that_is_logged_is_the_mean_over_all_samples():
    torch.manual_seed(1)
    module = Plain()
    plain = copy.deepcopy(module)
    train(module, Planned(micro_batches=(3,)), clients=1, epochs=1)
    trainer = fit(plain, vectors_of(60), batch_size=10, epochs=1)
    same(module.trainer.callback_metrics["loss"], trainer.callback_metrics["loss"])


def test_batch_statistics_are_those_of_a_micro_batch():
    """Ghost batch normalisation: the definition, in plain PyTorch, with the running statistics of two passes."""

    class Normed(Plain):
        def __init__(self):
            super().__init__()
            self.net[1] = nn.BatchNorm1d(16)

    torch.manual_seed(1)
    module = Normed()
    plain, data = copy.deepcopy(module), vectors_of(20)
    train(module, Planned(micro_batches=(2,)), clients=1, samples=20, batch_size=20, epochs=1)
    optimizer = plain.configure_optimizers()
    for rows in torch.arange(20).tensor_split(2):
        (F.cross_entropy(plain.net(data.tensors[0][rows]), data.tensors[1][rows]) * len(rows) / 20).backward()
    optimizer.step()
    same(module.state_dict(), plain.state_dict())


def test_micro_batches_overlap_on_the_wall_clock_and_no_waiting_counts_as_computing():
    profiles = [ClientProfile("one", flops=2e5)]  # 77 ms forward, 154 ms backward; half a second on each way
    server = ServerProfile(flops=1e9, uplink=4e4, downlink=4e4)
    rounds = {}
    for parts in (1, 2):
        torch.manual_seed(1)
        strategy = train(
            Plain(), Planned(micro_batches=(parts,)), clients=profiles, samples=40, batch_size=40, epochs=1,
            server=server, clock="wall",
        )  # fmt: skip
        rounds[parts] = strategy.rounds[0]
    one, two = (rounds[parts].clients[0] for parts in (1, 2))
    for client in (one, two):
        assert 0.99 * 40 * 2 * 12 * 16 / 2e5 <= client.seconds["forward"] < 0.5 * client.seconds["uplink"]
        assert client.seconds["backward"] < 0.7 * client.seconds["uplink"]
    forwards = [span for span in rounds[2].spans if span.phase == "forward"]
    uplinks = [span for span in rounds[2].spans if span.phase == "uplink"]
    assert len(forwards) == len(uplinks) == 2
    assert uplinks[0].start < forwards[1].end  # the first is on its way while the second is computed


@pytest.mark.parametrize("clock", ["off", "virtual"])
def test_int8_changes_the_update_a_little_and_says_how_much(clock):
    torch.manual_seed(1)
    start = Plain()
    modules, reports = {}, {}
    profiles = [ClientProfile(f"c{k}", flops=1e9) for k in range(2)]
    for kind in ("none", "int8"):
        modules[kind] = copy.deepcopy(start)
        strategy = train(
            modules[kind], Planned(compression=kind), clients=profiles, server=ServerProfile(flops=1e9, uplink=1e6),
            clock=clock, epochs=1,
        )  # fmt: skip
        reports[kind] = strategy.rounds[0].clients[0]
    assert reports["none"].smashed_error is reports["none"].gradient_error is None
    assert 0 < reports["int8"].smashed_error < 0.01
    assert 0 < reports["int8"].gradient_error < 0.01
    assert reports["int8"].bytes_up < reports["none"].bytes_up
    exact, lossy = (torch.cat([p.flatten() for p in modules[k].parameters()]) for k in ("none", "int8"))
    begun = torch.cat([p.flatten() for p in start.parameters()])
    assert 0 < (exact - lossy).norm() < 0.05 * (exact - begun).norm()


def test_random_layers_on_both_sides_are_repeatable_with_micro_batches():
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        module = Classifier(nn.Sequential(
            nn.Linear(12, 16), nn.Dropout(0.3), nn.Linear(16, 16), nn.Dropout(0.3), nn.Linear(16, 10)
        ))  # fmt: skip
        train(module, Planned(micro_batches=(2, 3, 2)))
        ends.append(module.state_dict())
    same(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "policy", "options", "wanted"),
    [
        (Plain, Planned(micro_batches=(2, 2)), {"second_cut": "net.3"}, "plans micro_batches=2.*second_cut"),
        (Plain, Planned(micro_batches=(2, 2)), {"server_model": "shared"}, "plans micro_batches=2.*server model"),
        (Plain, Planned(compression="int8"), {"server_model": "shared"}, "plans compression='int8'"),
    ],
)
def test_what_does_not_go_together_is_refused(module, policy, options, wanted):
    with pytest.raises(ValueError, match=wanted):
        train(module(), policy, clients=2, **options)


def test_a_schedule_per_step_is_refused():
    class PerStep(WithAdamW):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}
            return [optimizer], [schedule]

    with pytest.raises(ValueError, match="nor with a schedule per step"):
        train(PerStep(), Planned(micro_batches=(2, 2)), clients=2)


def test_validation_in_mid_round_sees_whole_steps_alone():
    class Validated(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("val", F.cross_entropy(self.net(batch[0]), batch[1]))

    torch.manual_seed(1)
    module, plain = Validated(), Plain()
    plain.load_state_dict(module.state_dict())
    strategy = EdgeSplitStrategy(clients=2, policy=Planned(micro_batches=(2, 2)), timeout=30)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=1, val_check_interval=3, logger=False, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data = vectors_of(60)
    trainer.fit(module, DataLoader(data, batch_size=10), DataLoader(data, batch_size=60))
    other = EdgeSplitStrategy(clients=2, cuts="net.2", timeout=30)
    fit(plain, data, other, batch_size=10, epochs=1)
    same(module.state_dict(), plain.state_dict())
