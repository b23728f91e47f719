"""A run that goes on from a checkpoint ends with the very bits of the run that was never interrupted."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from rows import feature
from small import Deterministic, WithAdamW, vectors
from torch.utils.data import DataLoader

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import Fixed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Moving:
    """Cuts that depend on nothing but the number of clients' plans asked for since the checkpoint's round."""

    name = "moving"

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def plan(self, costs, clients, server, corrections=None):
        self.at += 1
        names = [cut.name for cut in costs.cuts]
        cuts = tuple(names[(self.at + k) % len(names)] for k in range(len(clients)))
        return Fixed(cuts).plan(costs, clients, server, corrections)


def loader(samples: int = 72) -> DataLoader:
    torch.manual_seed(7)
    return DataLoader(vectors(samples), batch_size=8, shuffle=True)


def fit(epochs, tmp_path, ckpt_path=None, callbacks=(), **options):
    torch.manual_seed(1)
    module = WithAdamW()
    strategy = EdgeSplitStrategy(clients=3, timeout=30, **options)
    trainer = L.Trainer(
        strategy=strategy, max_epochs=epochs, deterministic=True, callbacks=list(callbacks),
        default_root_dir=tmp_path, enable_checkpointing=bool(callbacks), **QUIET,
    )  # fmt: skip
    data = loader()
    torch.manual_seed(9)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


@feature("`ckpt_path`", how="the same bits as a run without a break, at the end of any round; `deterministic=True`")
@pytest.mark.parametrize("rule", ["keep", "average", "reset"])
@pytest.mark.parametrize("every", [3, 6, 9], ids=["first round", "mid-epoch", "end of the epoch"])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, rule, every):
    options = {"cuts": ["net.0", "net.2", "end"], "round_steps": 1, "optimizer_state": rule, "partition": "iid"}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    whole, first = fit(3, tmp_path, callbacks=[keep], **options)
    path = tmp_path / f"step={every * (12 // every)}.ckpt"
    resumed, second = fit(3, tmp_path, ckpt_path=path, **options)
    assert second.global_step == first.global_step == 27
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_a_checkpoint_holds_the_servers_weights_with_all_of_their_bits(tmp_path, how):
    options = {"cuts": ["net.0", "net.2", "end"], "round_steps": 1, "weight_compression": how}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    whole, _ = fit(3, tmp_path, callbacks=[keep], **options)
    resumed, _ = fit(3, tmp_path, ckpt_path=tmp_path / "step=12.ckpt", **options)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_cuts_may_move_over_the_checkpoint(tmp_path):
    torch.manual_seed(1)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    whole, trainer = fit(4, tmp_path, callbacks=[keep], policy=Moving(), round_steps=2)
    planned = trainer.strategy._policy.at
    # one plan comes before the first round, and every round asks for one; when it resumes, also the first round, which
    # is announced before the checkpoint is read
    per_epoch = len(trainer.strategy.rounds) // 4
    resumed, again = fit(
        4, tmp_path, ckpt_path=tmp_path / "epoch=1.ckpt", policy=Moving(2 * per_epoch - 1), round_steps=2
    )
    assert again.strategy._policy.at == planned
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_policy_that_draws_cuts_draws_the_same_after_the_checkpoint(tmp_path):
    torch.manual_seed(1)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    options = {"policy": {"policy": "random", "seed": 3}, "round_steps": 1}
    whole, first = fit(3, tmp_path, callbacks=[keep], **options)
    resumed, second = fit(3, tmp_path, ckpt_path=tmp_path / "step=12.ckpt", **options)  # in the second epoch

    def cuts(trainer):
        return [[client.cut for client in report.clients] for report in trainer.strategy.rounds]

    assert cuts(second) == cuts(first)[4:]
    assert len({tuple(of_round) for of_round in cuts(first)}) > 4, "they move"
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@feature("checkpoints", how="Lightning's own: a plain run goes on from a split one, and the other way round")
def test_a_plain_checkpoint_is_continued_split_and_the_other_way_round(tmp_path):
    ends = []
    for first, second in (("auto", "split"), ("auto", "auto"), ("split", "auto")):
        torch.manual_seed(1)
        module, data = WithAdamW(), DataLoader(vectors(64), batch_size=16)
        for epochs, kind, path in ((2, first, None), (4, second, tmp_path / "first.ckpt")):
            strategy = "auto" if kind == "auto" else EdgeSplitStrategy(clients=1, cuts="net.2", timeout=30)
            trainer = L.Trainer(strategy=strategy, max_epochs=epochs, enable_checkpointing=False, **QUIET)
            torch.manual_seed(2)
            trainer.fit(module, data, ckpt_path=path)
            trainer.save_checkpoint(tmp_path / "first.ckpt")
        ends.append(module.state_dict())
    for end in (ends[0], ends[2]):
        torch.testing.assert_close(end, ends[1], rtol=1e-5, atol=1e-6)


@feature("`every_n_train_steps` in mid-round", how="the checkpoint holds the mean of the models as they are then")
@pytest.mark.parametrize("arrivals", [1, 3, 4, 6])
def test_a_checkpoint_in_mid_round_holds_the_mean(tmp_path, arrivals):
    torch.manual_seed(1)
    module, data = Deterministic(), vectors(64)
    clients = [copy.deepcopy(module) for _ in range(2)]
    optimizers = [client.configure_optimizers() for client in clients]
    samples = [0, 0]
    for arrival in range(arrivals):  # the oracle: clients in turn, each with eight samples
        k, at = arrival % 2, arrival // 2 * 8
        batch = slice(32 * k + at, 32 * k + at + 8)
        optimizers[k].zero_grad()
        F.cross_entropy(clients[k].net(data.tensors[0][batch]), data.tensors[1][batch]).backward()
        optimizers[k].step()
        samples[k] += 8
    states = [client.state_dict() for client in clients]
    expected = {
        name: sum(n * s[name] / sum(samples) for n, s in zip(samples, states, strict=True)) for name in states[0]
    }
    expected = {k: v if states[0][k].is_floating_point() else v.round().long() for k, v in expected.items()}
    strategy = EdgeSplitStrategy(
        clients=2, cuts=["net.0", "net.3"], timeout=30, partition=[list(range(32)), list(range(32, 64))]
    )
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=arrivals, save_top_k=-1)
    trainer = L.Trainer(strategy=strategy, max_epochs=1, deterministic=True, callbacks=[keep], **QUIET)
    trainer.fit(module, DataLoader(data, batch_size=8))
    assert len(strategy.rounds) == 1
    saved = torch.load(tmp_path / f"step={arrivals}.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved, expected, rtol=1e-5, atol=1e-6)


@feature('`save_last`, `ckpt_path="last"`')
def test_the_last_checkpoint_is_gone_on_from(tmp_path):
    def last():
        return [ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)]

    options = {"cuts": ["net.0", "net.2", "end"], "partition": "iid"}
    whole, _ = fit(3, tmp_path, **options)
    fit(2, tmp_path, callbacks=last(), **options)
    assert (tmp_path / "last.ckpt").exists()
    resumed, trainer = fit(3, tmp_path, callbacks=last(), ckpt_path="last", **options)
    assert len(trainer.strategy.rounds) == 1
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
