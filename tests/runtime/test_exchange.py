"""Frozen parameters and buffers travel once, and whatever somebody does to them is seen all the same."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small import Classifier, fedavg, fit, vectors
from torch import nn

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.runtime.exchange import Digests, Held, digest

PARTS = [list(range(20)), list(range(20, 32))]
FROZEN = 4 * (12 * 2000 + 2000)  # bytes
TRAINED = 4 * (2000 * 16 + 16)


class HalfFrozen(Classifier):
    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1))

    def __init__(self):
        wide = nn.Sequential(nn.Linear(12, 2000), nn.ReLU(), nn.Linear(2000, 16), nn.ReLU(), nn.Linear(16, 10))
        super().__init__(wide)
        self.net[0].requires_grad_(False)


class Averaged(nn.Module):
    """A layer that keeps a moving average of its weights, unseen by autograd and by version counters."""

    def __init__(self):
        super().__init__()
        self.now, self.average = nn.Linear(12, 16), nn.Linear(12, 16).requires_grad_(False)

    def forward(self, x):
        self.average.weight.data.lerp_(self.now.weight.data, 0.5)
        return self.now(x)


class WithAverage(Classifier):
    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1))

    def __init__(self):
        super().__init__(nn.Sequential(Averaged(), nn.ReLU(), nn.Linear(16, 10)))


def train(module, cut, processes=None, epochs=3, callbacks=()):
    """Trains it split between two clients: what it is then, what the oracle starts from, its data, and the rounds."""
    torch.manual_seed(1)
    own, data = module(), vectors(32)
    torch.manual_seed(1)
    plain = module()
    strategy = EdgeSplitStrategy(clients=2, cuts=cut, partition=PARTS, processes=processes)
    fit(own, data, strategy, batch_size=4, epochs=epochs, callbacks=list(callbacks))
    return own, plain, data, strategy.rounds


def oracle(plain, data, epochs=3, **options):
    return fedavg(plain, data, PARTS, 4, epochs, steps=5, **options)


@pytest.mark.parametrize("processes", [None, 1])
def test_what_is_frozen_travels_to_each_process_once_and_never_back(processes):
    own, plain, data, rounds = train(HalfFrozen, "net.3", processes)
    torch.testing.assert_close(own.state_dict(), oracle(plain, data))
    assert torch.equal(own.net[0].weight, plain.net[0].weight)
    down = [[client.bytes_down for client in round_.clients] for round_ in rounds]
    first = down[0] if processes is None else down[0][:1]  # one process has it for both clients
    assert all(own > FROZEN + TRAINED for own in first)
    assert all(TRAINED < own < FROZEN + TRAINED for own in sum(down[1:], down[0][len(first) :]))
    assert all(TRAINED < client.bytes_up < FROZEN + TRAINED for round_ in rounds for client in round_.clients)


@pytest.mark.parametrize("processes", [None, 1])
def test_a_frozen_weight_that_a_step_changes_is_averaged_like_all_others(processes):
    own, plain, data, _ = train(WithAverage, "net.1", processes)
    torch.testing.assert_close(own.state_dict(), oracle(plain, data))


class Halves(Callback):
    """Changes frozen weights on the server, between two rounds."""

    def on_train_epoch_end(self, trainer, module):
        module.net[0].weight.data.mul_(0.5)


def test_a_frozen_weight_that_a_callback_changes_is_sent_anew():
    own, plain, data, rounds = train(HalfFrozen, "net.3", callbacks=[Halves()])

    def halve(optimizers, samples):
        for optimizer in optimizers:
            optimizer.param_groups[0]["params"][0].data.mul_(0.5)

    torch.testing.assert_close(own.state_dict(), oracle(plain, data, after_round=halve))
    assert all(client.bytes_down > TRAINED + 4 * 12 * 2000 for round_ in rounds for client in round_.clients)


def test_plans_count_what_travels_in_every_round():
    torch.manual_seed(1)
    strategy = EdgeSplitStrategy(clients=2, cuts="net.3", partition=PARTS)
    fit(HalfFrozen(), vectors(32), strategy, batch_size=4, epochs=1)
    profile = strategy.cuts.find("net.3").profile
    assert (profile.weight_bytes, profile.frozen_bytes) == (FROZEN + TRAINED, FROZEN)
    assert strategy._planner._model([5, 3], [0, 1]).costs["net.3"].weights == TRAINED


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_a_digest_is_of_all_bits_whatever_the_layout(kind):
    tensor = torch.randint(0, 2, (2, 3, 4, 5)).to(kind)
    other = tensor.clone()
    other[1, 2, 3, 4] = torch.tensor(1).to(kind) if other[1, 2, 3, 4] == 0 else torch.tensor(0).to(kind)
    assert digest(tensor) == digest(tensor.to(memory_format=torch.channels_last)) != digest(other)
    assert digest(tensor[0, 0, 0, 0]) == digest(tensor[0, 0, 0, 0].clone())


def test_zeros_of_two_signs_differ():
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))


def test_a_process_lacks_what_it_gave_away_or_changed():
    held, tensors = Held(), {name: torch.randn(3) for name in "abc"}
    assert held.lacks("abc", "ab", Digests(tensors)) == ["a", "b", "c"], "it had nothing"
    held.keep(["a", "b"])
    assert held.lacks("abc", "ab", Digests(tensors)) == ["c"], "what is trained is always sent"
    held.keep(["b"])
    assert held.lacks("abc", "ab", Digests(tensors)) == ["a", "c"], "it changed a"
    held.keep(["a", "b"])
    assert held.lacks("ab", "ab", Digests({**tensors, "b": torch.randn(3)})) == ["b"], "b is another"
    held.keep(["a", "b"])
    held.lacks("a", "a", Digests(tensors))
    held.keep(["a"])
    assert held.lacks("ab", "ab", Digests(tensors)) == ["b"], "b was not its own in between"
