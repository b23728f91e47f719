"""Sequential, SplitFed-V2 and shared server-side models, each against its definition in plain PyTorch."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from rows import feature
from small import Classifier, Deterministic, vectors
from torch.utils.data import DataLoader

from lightning_edgesplit import EdgeSplitStrategy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
PARTS = [list(range(8)), list(range(8, 34)), list(range(34, 64))]  # 1, 4 and 4 batches of at most 8


class WithAdamW(Deterministic):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-4))


def split(server_model, cuts="net.2", parts=PARTS, **options):
    return EdgeSplitStrategy(
        clients=len(parts), cuts=cuts, server_model=server_model, partition=parts, timeout=30, **options
    )


def fit(module, data, strategy, epochs=2, **options):
    trainer = L.Trainer(strategy=strategy, max_epochs=epochs, **{**QUIET, "enable_checkpointing": False, **options})
    trainer.fit(module, DataLoader(data, batch_size=8))
    return trainer


def batches_of(parts, batch_size=8):
    return [list(torch.tensor(part).split(batch_size)) for part in parts]


def close(module, expected):
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


# ---- sequential ------------------------------------------------------------------------------------------------------


def in_turns(module, data, parts, epochs, steps, clip=None, accumulate=1, forget=False):
    """The oracle: one model, one optimizer, the clients' batches one after the other."""
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        own = batches_of(parts)
        for at in range(0, max(len(batches) for batches in own), steps):
            for batches in own:
                if forget:
                    optimizer.state.clear()
                for number, batch in enumerate(batches[at : at + steps]):
                    if number % accumulate == 0:
                        optimizer.zero_grad()
                    loss = F.cross_entropy(module.net(data.tensors[0][batch]), data.tensors[1][batch])
                    (loss / accumulate).backward()
                    if (number + 1) % accumulate and at + number + 1 < len(batches):
                        continue
                    if clip is not None:
                        torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                    optimizer.step()
    return module.state_dict()


@feature('`server_model="sequential"`', how="plain training on the clients' batches one after the other")
@pytest.mark.parametrize("kind", [Deterministic, WithAdamW])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("cuts", ["net.2", "end", ["net.0", "net.3", "end"]], ids=str)
def test_clients_in_turn_are_plain_training_on_their_batches_in_that_order(kind, steps, cuts):
    data, module = vectors(64), kind()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=steps or 100)
    strategy = split("sequential", cuts, round_steps=steps)
    trainer = fit(module, data, strategy)
    close(module, expected)
    assert trainer.global_step == 18
    assert [[c.client for c in report.clients] for report in strategy.rounds[:3]] == [[0], [1], [2]]


@pytest.mark.parametrize("options", [{"clip": 0.05}, {"accumulate": 2}], ids=str)
def test_turns_with_clipping_and_accumulation(options):
    data, module = vectors(64), Deterministic()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=2, **options)
    trainers = {"gradient_clip_val": options.get("clip"), "accumulate_grad_batches": options.get("accumulate", 1)}
    fit(module, data, split("sequential", round_steps=2), **trainers)
    close(module, expected)


def test_turns_may_begin_with_a_fresh_optimizer():
    data, module = vectors(64), WithAdamW()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=2, forget=True)
    fit(module, data, split("sequential", round_steps=2, optimizer_state="reset"))
    close(module, expected)


def test_turns_with_a_second_cut():
    data, module = vectors(64), Deterministic()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=100)
    fit(module, data, split("sequential", "net.0", second_cut="net.3"))
    close(module, expected)


class Stepped(Deterministic):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_turns_under_a_schedule_per_step():
    data, module = vectors(64), Stepped()
    expected = copy.deepcopy(module)
    [optimizer], [schedule] = expected.configure_optimizers()
    for batches in batches_of(PARTS):
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(expected.net(data.tensors[0][batch]), data.tensors[1][batch]).backward()
            optimizer.step()
            schedule["scheduler"].step()
    fit(module, data, split("sequential"), epochs=1)
    close(module, expected.state_dict())


@pytest.mark.parametrize("at", [1, 2, 4, 7], ids=lambda n: f"after step {n}")
def test_turns_go_on_from_a_checkpoint_with_the_same_bits(tmp_path, at):
    data = vectors(64)
    states = []
    for path in (None, tmp_path / f"step={at}.ckpt"):
        torch.manual_seed(1)
        module = WithAdamW()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            strategy=split("sequential", round_steps=2), max_epochs=2, callbacks=[keep] if path is None else [],
            enable_checkpointing=path is None, default_root_dir=tmp_path, deterministic=True, **QUIET,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=path)
        assert trainer.global_step == 18
        states.append(module.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_validation_sees_the_model_of_the_client_whose_turn_it_was():
    data, module = vectors(64), Deterministic()
    seen = []
    module.validation_step = lambda batch, batch_idx: seen.append(copy.deepcopy(module.state_dict()))
    expected = copy.deepcopy(module)
    del expected.validation_step
    trainer = L.Trainer(
        strategy=split("sequential"), max_epochs=1, val_check_interval=3, num_sanity_val_steps=0,
        enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    loader = DataLoader(data, batch_size=8)
    trainer.fit(module, loader, DataLoader(data, batch_size=64))
    assert len(seen) == 3
    first = in_turns(expected, data, [PARTS[0], PARTS[1][:16]], epochs=1, steps=100)  # three steps
    torch.testing.assert_close(seen[0], first, rtol=1e-5, atol=1e-6)
    close(module, seen[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_model": "common"}, "server_model='common' is unknown: use one of per_client, sequential"),
        ({"server_model": "sequential", "optimizer_state": "average"}, 'optimizer_state="average" does not go'),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeSplitStrategy(clients=2, **options)
