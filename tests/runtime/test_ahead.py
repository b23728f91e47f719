"""Batches that are loaded while a gradient is awaited: the same batches, and the same random numbers for all others."""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small import Augmented, Deterministic, fit, vectors
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.runtime.ahead import Ahead
from lightning_edgesplit.scheduling import Fixed


def sow() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


@pytest.mark.parametrize("own_generator", [False, True])
def test_what_is_loaded_ahead_is_what_comes_in_turn_and_nobody_notices(own_generator):
    data = Augmented(40)

    def batches():
        generator = torch.Generator().manual_seed(5) if own_generator else None
        return iter(DataLoader(data, batch_size=8, shuffle=True, generator=generator)), [generator] * own_generator

    sow()
    in_turn, _ = batches()
    expected, drawn = [], []
    for batch in in_turn:
        expected.append(batch)
        drawn.append((torch.rand(1), np.random.rand(), random.random()))
    sow()
    (loader, generators), ahead = batches(), Ahead()
    batch = next(loader)
    for number, others in enumerate(drawn):
        assert torch.equal(batch[0], expected[number][0])
        assert (torch.rand(1), np.random.rand(), random.random()) == others
        if number + 1 < len(expected):
            before = torch.get_rng_state()
            ahead.load(loader, generators)
            assert torch.equal(torch.get_rng_state(), before)
            same, batch = ahead.take(generators)
            assert same
            assert not ahead.loaded
            assert ahead.allowed


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand, random.random])
def test_it_is_noticed_that_somebody_drew_in_between(draw):
    ahead = Ahead()
    ahead.load(iter([1]), [])
    draw()
    assert ahead.take([]) == (False, 1)
    assert not ahead.allowed


def test_an_exception_comes_in_its_turn():
    ahead = Ahead()
    ahead.load(iter([]), [])
    with pytest.raises(StopIteration):
        ahead.take([])


class Noisy(torch.optim.SGD):
    """Adds noise to the first layer's gradient, as in Langevin dynamics: draws numbers between two batches."""

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for parameter in self.param_groups[0]["params"]:
            if parameter.shape == (16, 12) and parameter.grad is not None:
                parameter.grad.add_(torch.randn(16, 12), alpha=0.1)
        super().step()
        return loss


class WithNoise(Deterministic):
    optimizer = staticmethod(lambda p: Noisy(p, lr=0.05))


class WithDropoutFirst(Deterministic):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 10))


class Sized:
    """Plans batches of the size that the loader gives."""

    name, batches = "sized", True

    def plan(self, costs, clients, server, corrections=None):
        return replace(Fixed(("net.2",)).plan(costs, clients, server, corrections), batches=(8,))


@pytest.mark.parametrize("options", [{"cuts": "net.2"}, {"policy": Sized()}], ids=["loader", "dealt"])
@pytest.mark.parametrize("module", [Deterministic, WithDropoutFirst, WithNoise])
def test_one_client_with_augmentations_trains_as_plain_lightning_does(module, options):
    torch.manual_seed(1)
    plain, data = module(), Augmented(37)  # the last batch of a round is shorter than the others
    torch.manual_seed(1)
    split = module()
    for own, strategy in ((plain, "auto"), (split, EdgeSplitStrategy(clients=1, round_steps=5, **options))):
        sow()
        fit(own, data, strategy, batch_size=8, epochs=3)
    torch.testing.assert_close(split.state_dict(), plain.state_dict())


class Signals(Dataset):
    """Says which samples have been read, to other processes too."""

    def __init__(self, samples: int) -> None:
        self.vectors = vectors(samples)
        self.read = [multiprocessing.Event() for _ in range(samples)]

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index):
        self.read[index].set()
        return self.vectors[index]


class HoldsGradientsBack(Callback):
    """Lets the server's backward pass wait until the client has read the next batch of the round."""

    def __init__(self, data: Signals) -> None:
        self.data, self.found = data, []

    def on_before_backward(self, trainer, module, loss):
        following = 4 * (trainer.global_step + 1)
        if following % 12:  # the last of the round has none behind it
            self.found.append(self.data.read[following].wait(timeout=20))


def test_the_next_batch_is_read_while_the_gradient_is_awaited():
    data = Signals(24)
    callback = HoldsGradientsBack(data)
    fit(Deterministic(), data, EdgeSplitStrategy(1, cuts="net.2", round_steps=3), 4, epochs=1, callbacks=[callback])
    assert callback.found == [True] * 4
