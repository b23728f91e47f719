"""Batches that the plan sizes: the update is federated averaging's with those batches, every sample once an epoch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import fit
from test_overlap import Plain, same, vectors_of

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import ClientProfile, Fixed, ServerProfile

PARTS = [list(range(0, 23)), list(range(23, 34)), list(range(34, 40))]
SIZES = ((7, 2, 1), (3, 4, 3))
"""Samples in a local step of three clients, in rounds of odd and of even number; loaders give 4 each."""


class Deals:
    """Fixed cuts, and batches that go from one round to the next."""

    name, batches = "deals", True

    def __init__(self, *sizes, cut="net.2", **fields) -> None:
        self.sizes, self.cut, self.fields, self.now = sizes, cut, fields, sizes[0]

    def in_round(self, epoch, number):
        own = copy.copy(self)
        own.now = self.sizes[(number - 1) % len(self.sizes)]
        return own

    def plan(self, costs, clients, server, corrections=None):
        numbers = [int(client.name.removeprefix("c")) for client in clients]
        plan = Fixed((self.cut,) * len(clients)).plan(costs, clients, server, corrections)
        fields = {name: tuple(values[k] for k in numbers) for name, values in self.fields.items()}
        return replace(plan, batches=tuple(self.now[k] for k in numbers), **fields)


def profiles(count=3):
    return [ClientProfile(f"c{k}", flops=1e9) for k in range(count)]


def start() -> Plain:
    torch.manual_seed(1)
    return Plain()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rounds_of(parts, sizes, steps):
    """The oracle's rounds of an epoch: the rows of each local step of each client, taken off a pile card by card."""
    piles, number = [list(part) for part in parts], 0
    while any(piles):
        of_all = []
        for k, pile in enumerate(piles):
            own = []
            while pile and (steps is None or len(own) < steps):
                own.append([pile.pop(0) for _ in range(min(sizes[number % len(sizes)][k], len(pile)))])
            of_all.append(own)
        yield of_all
        number += 1


def fedavg(module, data, rounds, accumulate=1):
    """Federated averaging in plain PyTorch over rounds of given rows; each client keeps its optimizer."""
    clients = [copy.deepcopy(module) for _ in rounds[0]]
    optimizers = [client.configure_optimizers() for client in clients]
    for of_all in rounds:
        samples = [sum(map(len, own)) for own in of_all]
        for client, optimizer, own in zip(clients, optimizers, of_all, strict=True):
            for at in range(0, len(own), accumulate):
                optimizer.zero_grad()
                for rows in own[at : at + accumulate]:
                    loss = F.cross_entropy(client.net(data.tensors[0][rows]), data.tensors[1][rows])
                    (loss / accumulate).backward()
                optimizer.step()
        states = [client.state_dict() for client in clients]
        mean = {
            name: sum(n / sum(samples) * s[name] for n, s in zip(samples, states, strict=True)) for name in states[0]
        }
        for client in clients:
            client.load_state_dict(mean)
    return clients[0].state_dict()


@pytest.mark.parametrize(
    ("options", "trainer_options"),
    [
        ({"round_steps": 2}, {}),
        ({"round_steps": 2, "processes": 2}, {"deterministic": True}),
        ({"round_steps": 3, "processes": 1}, {}),
        ({"round_steps": 2, "clock": "virtual"}, {}),
        ({}, {}),
    ],
    ids=["as they come", "two processes in order", "one process", "virtual clock", "a round is an epoch"],
)
def test_the_update_is_that_of_federated_averaging_with_those_batches(options, trainer_options):
    module, data = start(), vectors_of(40)
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(
        clients=profiles(), server=ServerProfile(flops=1e9), policy=Deals(*SIZES), partition=PARTS, timeout=30,
        **options,
    )  # fmt: skip
    trainer = fit(module, data, strategy, batch_size=4, epochs=2, **trainer_options)
    rounds = list(rounds_of(PARTS, SIZES, options.get("round_steps")))
    same(module.state_dict(), fedavg(plain, data, 2 * rounds))
    assert trainer.global_step == 2 * sum(len(own) for of_all in rounds for own in of_all)
    steps = [[{c.client: c.steps for c in report.clients}.get(k, 0) for k in range(3)] for report in strategy.rounds]
    assert steps == 2 * [[len(own) for own in of_all] for of_all in rounds]
    samples = [sum(c.samples for r in strategy.rounds for c in r.clients if c.client == k) for k in range(3)]
    assert samples == [2 * len(part) for part in PARTS], "every sample once an epoch"
