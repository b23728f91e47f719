"""Micro-batches of batches that are smaller than others: everybody knows beforehand how many arrivals there will be."""

from __future__ import annotations

import copy
from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small import fedavg, fit, go_on
from test_overlap import Plain, Planned, same, vectors_of
from torch.utils.data import DataLoader, Sampler

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.errors import ClientFailedError
from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.scheduling import ClientProfile, ServerProfile

PARTS = [list(range(0, 23)), list(range(23, 34)), list(range(34, 40))]
"""In batches of 10: 10, 10 and 3; 10 and 1; 6."""

MOST = (4, 3, 8)
"""Micro-batches of a full batch, so that an epoch's arrivals are 4, 4, 3; 3, 1; 6."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def start() -> Plain:
    torch.manual_seed(1)
    return Plain()


@pytest.mark.parametrize(
    ("options", "trainer_options"),
    [
        ({"round_steps": 2}, {}),
        ({"round_steps": 2, "processes": 2}, {"deterministic": True}),
        ({"clock": "virtual"}, {"deterministic": True}),
    ],
    ids=["as they come", "two processes in order", "virtual clock"],
)
def test_the_update_is_that_of_federated_averaging_in_plain_pytorch(options, trainer_options):
    module, data = start(), vectors_of(40)
    plain = copy.deepcopy(module)
    profiles = [ClientProfile(f"c{k}", flops=1e9) for k in range(3)]
    strategy = EdgeSplitStrategy(
        clients=profiles, server=ServerProfile(flops=1e9), policy=Planned(micro_batches=MOST), partition=PARTS,
        timeout=30, **options,
    )  # fmt: skip
    trainer = fit(module, data, strategy, batch_size=10, epochs=2, **trainer_options)
    same(module.state_dict(), fedavg(plain, data, PARTS, 10, 2, steps=options.get("round_steps", 3)))
    assert trainer.global_step == 2 * (4 + 4 + 3 + 3 + 1 + 6)
    rounds = [report for report in strategy.rounds if report.epoch == 1]
    assert [sum(client.steps for r in rounds for client in r.clients if client.client == k) for k in range(3)] == [
        3, 2, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "arrivals"),
    [
        ({"gradient_clip_val": 0.1}, 11),
        ({"accumulate_grad_batches": 2}, 6),  # the Trainer's count, by two and once more at the end
        ({"limit_train_batches": 2}, 8),  # the short one is never reached
    ],
)
def test_with_one_client_it_is_plain_lightning(options, arrivals):
    module = start()
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(clients=1, policy=Planned(micro_batches=(4,)), timeout=30)
    trainer = fit(module, vectors_of(23), strategy, batch_size=10, **options)
    other = fit(plain, vectors_of(23), batch_size=10, **options)
    same(module.state_dict(), plain.state_dict())
    same(trainer.callback_metrics["loss"], other.callback_metrics["loss"])
    assert trainer.global_step == 2 * arrivals


def test_whoever_misses_a_round_of_the_epoch_does_not_come_to_its_last_batch():
    module, data = start(), vectors_of(46)
    plain, parts = copy.deepcopy(module), [list(range(23)), list(range(23, 46))]
    strategy = EdgeSplitStrategy(
        clients=2, policy=Planned(micro_batches=(4, 4)), partition=parts, participation=0.5, round_steps=1, timeout=30
    )
    trainer = fit(module, data, strategy, batch_size=10, epochs=3)
    drawn = [report.clients[0].client for report in strategy.rounds]
    optimizers = [plain.configure_optimizers() for _ in parts]  # the mean of one client is its own model
    expected = 0
    for epoch in range(3):
        batches = [iter(torch.tensor(part).split(10)) for part in parts]
        for k in drawn[3 * epoch : 3 * epoch + 3]:
            rows = next(batches[k])
            expected += min(4, len(rows))
            optimizers[k].zero_grad()
            F.cross_entropy(plain.net(data.tensors[0][rows]), data.tensors[1][rows]).backward()
            optimizers[k].step()
    assert len(set(drawn[:3])) == 2
    same(module.state_dict(), plain.state_dict())
    assert trainer.global_step == expected


def test_where_batches_are_not_known_beforehand_a_short_one_is_an_error_that_names_the_way_out():
    class Uneven(Sampler):
        def __len__(self):
            return 2

        def __iter__(self):
            yield from (range(10), range(10, 12))

    strategy = EdgeSplitStrategy(clients=1, policy=Planned(micro_batches=(4,)), partition=None, timeout=30)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ClientFailedError, match=r"micro_batches=4 of a batch of 2 samples.*drop_last=True"):
        trainer.fit(start(), DataLoader(vectors_of(12), batch_sampler=Uneven()))


BATCHES = [[slice(0, 10), slice(10, 20), slice(20, 23)], [slice(23, 33), slice(33, 43), slice(43, 44)]]
"""Of two clients; with at most 2 and 3 micro-batches the arrivals in order are 2, 3, 2, 3, 2, 1."""


def stopped_and_gone_on_with(module, data, done):
    """Federated averaging in plain PyTorch, two epochs, with one mean more after so many steps of the first one."""
    clients = [copy.deepcopy(module) for _ in BATCHES]
    optimizers = [client.configure_optimizers() for client in clients]

    def train(rows_of_all):
        for client, optimizer, own in zip(clients, optimizers, rows_of_all, strict=True):
            for rows in own:
                optimizer.zero_grad()
                F.cross_entropy(client.net(data.tensors[0][rows]), data.tensors[1][rows]).backward()
                optimizer.step()
        samples = [sum(rows.stop - rows.start for rows in own) for own in rows_of_all]
        if any(samples):
            states = [client.state_dict() for client in clients]
            weights = [n / sum(samples) for n in samples]
            mean = {name: sum(w * s[name] for w, s in zip(weights, states, strict=True)) for name in states[0]}
            for client in clients:
                client.load_state_dict(mean)

    train([own[:n] for own, n in zip(BATCHES, done, strict=True)])
    train([own[n:] for own, n in zip(BATCHES, done, strict=True)])
    train(BATCHES)
    return clients[0].state_dict()


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable", "ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(
    ("arrivals", "done", "to_come", "most", "processes"),
    [
        (1, [0, 0], 13, (2, 3), None),  # in the first step of the first client; the other one has begun its own
        (4, [1, 0], 11, (2, 3), None),
        (4, [1, 0], 11, (2, 3), 2),
        (5, [1, 1], 8, (2, 3), None),
        (11, [2, 2], 3, (2, 3), 2),  # in a short batch
        (12, [3, 2], 1, (2, 3), None),
        (1, [1, 0], 5, (1, 1), None),
    ],
)
def test_a_run_goes_on_from_a_checkpoint_within_a_round_and_within_a_step(
    tmp_path, arrivals, done, to_come, most, processes
):
    def run(epochs, path=None, callbacks=()):
        strategy = EdgeSplitStrategy(
            clients=2, policy=Planned(micro_batches=most), partition=[list(range(23)), list(range(23, 44))],
            processes=processes, timeout=30,
        )  # fmt: skip
        module = start()
        return module, go_on(module, DataLoader(data, batch_size=10), strategy, tmp_path, epochs, path, callbacks)

    data = vectors_of(44)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=arrivals, save_top_k=-1)
    run(1, callbacks=[keep])
    module, trainer = run(2, path=tmp_path / f"step={arrivals}.ckpt")
    same(module.state_dict(), stopped_and_gone_on_with(start(), data, done))
    assert trainer.global_step == arrivals + to_come + (13 if most == (2, 3) else 6)
    assert trainer.current_epoch == 2


class OnceLearned(Planned):
    """Micro-batches once measured times have changed what is known."""

    def plan(self, costs, clients, server, corrections=None):
        learned = corrections is not None and any(factor != 1 for factor in corrections.compute)
        self.fields = {"micro_batches": (4, 4)} if learned else {}
        return super().plan(costs, clients, server, corrections)


def test_a_plan_that_would_have_other_micro_batches_waits_for_the_next_epoch(monkeypatch):
    def learn(planner, plan, steps, report):  # as if every client had been slower than its profile
        planner.corrections = replace(planner.corrections, compute=(2.0, 2.0))

    class Plans(Callback):
        def on_train_epoch_end(self, trainer, module):
            plans.append(trainer.strategy.plan.micro_batches)

    plans = []
    monkeypatch.setattr(Planner, "learn", learn)
    module, data, parts = start(), vectors_of(46), [list(range(23)), list(range(23, 46))]
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(clients=2, policy=OnceLearned(), partition=parts, round_steps=1, timeout=30)
    trainer = fit(module, data, strategy, batch_size=10, epochs=2, callbacks=[Plans()])
    same(module.state_dict(), fedavg(plain, data, parts, 10, 2, steps=1))
    assert plans == [(), (4, 4)]
    assert trainer.global_step == 2 * 3 + 2 * (4 + 4 + 3)


class OnceThawed(Planned):
    """Micro-batches once the first layer is trained, which costs more than before."""

    least = float("inf")

    def plan(self, costs, clients, server, corrections=None):
        backward = next(cut.client_backward for cut in costs.cuts if cut.name == self.cut)
        self.least = min(self.least, backward)
        self.fields = {"micro_batches": (4,)} if backward > self.least else {}
        return super().plan(costs, clients, server, corrections)


class Thaw(Callback):
    """Trains the first layer from the start of an epoch on, or after a batch of the first one."""

    def __init__(self, within: bool) -> None:
        self.within = within

    def on_fit_start(self, trainer, module):
        module.net[0].requires_grad_(False)

    def on_train_epoch_start(self, trainer, module):
        if not self.within and trainer.current_epoch == 1:
            module.net[0].requires_grad_(True)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.within and trainer.current_epoch == 0 and batch_idx == 0:
            module.net[0].requires_grad_(True)


@pytest.mark.parametrize(("within", "arrivals"), [(False, 3 + 11), (True, 1 + 7 + 11)])
def test_the_trainer_is_told_anew_when_something_else_is_trained(within, arrivals):
    module = start()
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(clients=1, policy=OnceThawed(), round_steps=1, timeout=30)
    trainer = fit(module, vectors_of(23), strategy, batch_size=10, callbacks=[Thaw(within)])
    fit(plain, vectors_of(23), batch_size=10, callbacks=[Thaw(within)])
    same(module.state_dict(), plain.state_dict())
    assert trainer.global_step == arrivals
