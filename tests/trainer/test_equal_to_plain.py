"""What a Trainer does, done by one client and a server: weights and metrics are those of the plain Trainer."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from rows import feature
from small import Classifier, WithAdamW, vectors
from torch import nn
from torch.utils.data import DataLoader

from lightning_edgesplit import EdgeSplitStrategy

CUTS = ["net.0", "net.2", "end"]


def run(module: L.LightningModule, strategy: Any, batch_size: int = 8, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "max_epochs": 2,
    }  # fmt: skip
    trainer = L.Trainer(strategy=strategy, **{**quiet, **options})
    torch.manual_seed(2)
    trainer.fit(module, DataLoader(vectors_of_all_runs(), batch_size=batch_size))
    return trainer


def vectors_of_all_runs():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return vectors(44)


def both(module: L.LightningModule, cut: str, tolerance: float = 1e-5, **options: Any) -> tuple[L.Trainer, L.Trainer]:
    """Trains plainly and split, and compares."""
    split = copy.deepcopy(module)
    expected = run(module, "auto", **options)
    actual = run(split, EdgeSplitStrategy(clients=1, cuts=cut, timeout=30), **options)
    torch.testing.assert_close(split.state_dict(), module.state_dict(), rtol=tolerance, atol=tolerance / 10)
    assert actual.global_step == expected.global_step
    assert actual.callback_metrics.keys() == expected.callback_metrics.keys()
    return expected, actual


class WithRMSprop(Classifier):
    optimizer = staticmethod(lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.5))


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023 (arXiv:2302.06675), as users write their own."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.002, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    one, two = group["betas"]
                    p.sub_(group["lr"] * (one * average + (1 - one) * p.grad).sign())
                    average.mul_(two).add_(p.grad, alpha=1 - two)
        return loss


class WithLion(Classifier):
    optimizer = staticmethod(Lion)


class Grouped(Classifier):
    """A rate of its own for every layer, so that groups lie on both sides."""

    def configure_optimizers(self):
        groups = [{"params": list(layer.parameters()), "lr": 0.1 / (i + 1)} for i, layer in enumerate(self.net)]
        return torch.optim.SGD([g for g in groups if g["params"]], lr=0.1, momentum=0.9)


class Plateau(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "loss"}}


class WarmUp(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class WarmUpByHand(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (self.trainer.global_step + 1)
        optimizer.step(closure=optimizer_closure)


@feature("Adam, AdamW, SGD, RMSprop, optimizers of your own", how="state: tensors and numbers")
@feature("parameter groups", how="rates and the like of every group reach both sides")
@feature(
    "schedules per epoch, per step, ReduceLROnPlateau, warm-up", how="per step: clients are served in a fixed order"
)
@feature("`optimizer_step` of your own (warm-up by hand)", how="runs on the server")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", [WithRMSprop, WithLion, Grouped, Plateau, WarmUp, WarmUpByHand])
def test_optimizers_groups_and_schedules(kind, cut):
    both(kind(), cut, max_epochs=3)


class OneCycle(Classifier):
    """Asks for the number of steps, as warm-ups of transformers do."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.estimated = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.estimated)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@feature("`estimated_stepping_batches`", how="steps of all clients; with `participation` those of the longest epoch")
@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}, {"limit_train_batches": 0.5}, {"max_steps": 5}])
def test_a_schedule_is_told_how_many_steps_there_will_be(options):
    both(OneCycle(), "net.2", max_epochs=2, **options)


@pytest.mark.parametrize(
    ("trainer_options", "options", "steps"),
    [
        ({}, {}, 2 * (4 + 2 + 1)),
        ({}, {"round_steps": 2, "processes": 2}, 2 * (4 + 2 + 1)),
        ({"limit_train_batches": 5}, {}, 2 * 5),
        ({"limit_train_batches": 0.5}, {}, 2 * 3),
        ({}, {"server_model": "shared"}, 2 * 4),
        ({}, {"server_model": "sequential"}, 2 * 7),
    ],
)
def test_it_is_the_number_of_steps_of_all_clients(trainer_options, options, steps):
    module, parts = OneCycle(), [list(range(16)), list(range(16, 24)), list(range(24, 28))]
    split = EdgeSplitStrategy(clients=3, cuts="net.2", partition=parts, timeout=30, **options)
    trainer = run(module, split, batch_size=4, max_epochs=2, **trainer_options)
    assert module.estimated == steps
    (schedule,) = trainer.lr_scheduler_configs
    assert schedule.scheduler.last_epoch == steps


def test_with_participation_it_is_enough():
    module, parts = OneCycle(), [list(range(16)), list(range(16, 24)), list(range(24, 28))]
    trainer = run(module, EdgeSplitStrategy(3, cuts="net.2", partition=parts, participation=0.4), max_epochs=4)
    assert module.estimated == 4 * max(round_.clients[0].steps for round_ in trainer.strategy.rounds)


def test_where_only_clients_know_it_the_answer_is_an_error():
    with pytest.raises(ValueError, match=r"estimated_stepping_batches.*partition=None"):
        run(OneCycle(), EdgeSplitStrategy(clients=2, cuts="net.2", partition=None))


@feature("`accumulate_grad_batches`", how="each client counts its own batches; `round_steps` is a multiple of it")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_gradients(cut, steps):
    both(WithAdamW(), cut, accumulate_grad_batches=steps)


@feature("`gradient_clip_val` by norm and by value", how="by norm: exact, over both sides; costs a round trip per step")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("kind", [Classifier, WarmUp])
def test_clipped_gradients(cut, algorithm, kind):
    limit = {"norm": 0.05, "value": 0.01}[algorithm]
    both(kind(), cut, gradient_clip_val=limit, gradient_clip_algorithm=algorithm)


def test_clipping_and_accumulation_together():
    both(Classifier(), "net.2", gradient_clip_val=0.05, accumulate_grad_batches=2)


@feature("`precision` 64-true, bf16-mixed, bf16-true, 16-true", how="on both sides; what crosses has that type too")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true", "16-true"])
def test_precision(cut, precision):
    both(Classifier(), cut, precision=precision, tolerance=1e-5)


@feature(
    "`max_steps`, `max_epochs`, `limit_train_batches`, `overfit_batches`, `fast_dev_run`",
    how="batches of all clients are counted; a limit is dealt out to them in turn",
)
@pytest.mark.parametrize(
    "limits",
    [
        {"max_steps": 4, "max_epochs": -1}, {"limit_train_batches": 3}, {"limit_train_batches": 0.5},
        {"overfit_batches": 2}, {"fast_dev_run": 3}, {"max_epochs": 1, "min_epochs": 1},
    ],
    ids=str,
)  # fmt: skip
def test_limits(limits):
    both(Classifier(), "net.2", **limits)


class Tied(Classifier):
    """The first layer's weight is used again behind the cut."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]) @ self.net[0].weight[:, :10], batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss


@feature("tied weights across the cut", how="both sides' gradients are summed; value and gradient travel in each step")
@pytest.mark.parametrize("cut", ["net.0", "net.2", "net", "end"])
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 2}], ids=str)
def test_tied_weights(cut, options):
    both(Tied(), cut, **options)


class Compiled(Classifier):
    def configure_model(self):
        if not isinstance(self.net, nn.ModuleList):
            self.extra = nn.Linear(10, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.extra(self.net(batch[0])), batch[1])


@feature("`configure_model`", how="before the clients start")
def test_layers_made_in_configure_model():
    torch.manual_seed(3)
    ends = []
    for strategy in ("auto", EdgeSplitStrategy(clients=1, cuts="net.2", timeout=30)):
        torch.manual_seed(3)
        module = Compiled()
        run(module, strategy)
        ends.append(module.state_dict())
    assert ends[0].keys() == ends[1].keys()
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
