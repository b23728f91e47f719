from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import Exact, InfeasibleError
from lightning_edgesplit.scheduling.latency import RoundTerms
from lightning_edgesplit.scheduling.policies.bisection import solve


def problem(seed: int):
    """2 to 4 clients, 3 to 5 cuts; every other one with memory limits, every third with the same work for all."""
    rng = random.Random(seed)
    costs, clients, server = instance(seed, clients=rng.randint(2, 4), count=rng.randint(3, 5))
    if seed % 3 == 0:
        costs = replace(costs, batch=costs.batch[:1] * len(clients), steps=costs.steps[:1] * len(clients))
    if seed % 2:
        needs = [[cut.memory_fixed + batch * cut.memory_per_sample for cut in costs.cuts] for batch in costs.batch]
        limits = [rng.choice([None, rng.uniform(min(need), max(need))]) for need in needs]
        clients = [replace(client, memory=limit) for client, limit in zip(clients, limits, strict=True)]
    return costs, clients, server


def parts(costs, clients, server, k, cut):
    """Fixed seconds, and for each link the seconds over the whole of it and over the client's own rate. By hand."""
    cost, client, batch, steps = costs.cuts[cut], clients[k], costs.batch[k], costs.steps[k]
    fixed = steps * batch * (cost.client_forward + cost.client_backward) / client.flops + 2 * client.latency
    if cost.name != "end":
        fixed += steps * (batch * cost.server / (server.flops / len(clients)) + 2 * client.latency)
    up = 8 * (steps * (batch * cost.smashed + cost.step_up) + cost.weights)
    down = 8 * (steps * (batch * cost.gradient + cost.step_down) + cost.weights)
    return fixed, [
        (size / link if link else 0.0, size / own if own else 0.0)
        for size, link, own in ((up, server.uplink, client.uplink), (down, server.downlink, client.downlink))
    ]


def least_share(fixed, links, target):
    """Least φ with fixed + Σ max(link/φ, own) ≤ target: from kink to kink, where one link more begins to bind."""

    def seconds(stretch):
        return fixed + sum(max(link * stretch, own) for link, own in links)

    if seconds(0.0) > target:
        return np.inf
    begin = 0.0
    for end in [*sorted(own / link for link, own in links if link), np.inf]:
        slope = sum(link for link, own in links if link and own / link <= begin)
        if slope and begin + (target - seconds(begin)) / slope <= end:
            stretch = begin + (target - seconds(begin)) / slope
            return 1 / stretch if stretch > 0 else np.inf
        begin = end
    return 0.0  # nothing goes over a link that is shared


def brute_force(costs, clients, server) -> float:
    """The least time over all combinations of cuts that fit; at fixed cuts T solves Σ least shares = 1."""
    choices = []
    for k, client in enumerate(clients):
        needs = [cut.memory_fixed + costs.batch[k] * cut.memory_per_sample for cut in costs.cuts]
        fitting = [cut for cut, need in enumerate(needs) if client.memory is None or need <= client.memory]
        choices.append([parts(costs, clients, server, k, cut) for cut in fitting])
    best = np.inf
    for chosen in itertools.product(*choices):

        def reached(target, chosen=chosen):
            return sum(least_share(fixed, links, target) for fixed, links in chosen) <= 1

        if np.isfinite(best) and not reached(best):
            continue  # the sum falls with the time: no earlier time can be reached either
        low, high = 0.0, 1.0
        while not reached(high):
            low, high = high, 2 * high
        while high - low > 1e-10 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if reached(middle) else (middle, high)
        best = min(best, high)
    return best


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(0, 200, 20)], ids=str)
def test_no_combination_of_cuts_is_faster_than_the_exact_plan(seeds):
    for seed in seeds:
        costs, clients, server = problem(seed)
        plan = Exact().plan(costs, clients, server)
        least = brute_force(costs, clients, server)
        names = [cut.name for cut in costs.cuts]
        taken = [parts(costs, clients, server, k, names.index(cut)) for k, cut in enumerate(plan.cuts)]
        real = max(
            fixed + sum(max(link / share if link else 0.0, own) for link, own in links)
            for (fixed, links), share in zip(taken, plan.shares, strict=True)
        )
        assert sum(plan.shares) <= 1 + 1e-12, seed
        assert real == pytest.approx(least, rel=1e-6), seed
        assert plan.round_time == pytest.approx(real, rel=1e-12), seed


def many(clients: int, seed: int, link: float, slow: float = 1.0) -> RoundTerms:
    """Random terms, with memory limits and own rates for a part; `slow` stretches the last client's fixed times."""
    rng = np.random.default_rng(seed)
    work, depth = 10 ** rng.uniform(0, 1.5, clients), np.linspace(0.1, 1, 12)[:, None]
    fixed = work * depth + rng.uniform(0, 1, (12, clients))
    fixed[:, -1] *= slow
    up, down = (rng.uniform(0.2, 2, (12, clients)) * (1.2 - depth) * link / clients for _ in range(2))
    own_up, own_down = (clients * rng.choice([0, 0, 0.3, 1.0, 3.0], clients) for _ in range(2))
    fixed[1:][rng.random((11, clients)) < 0.2] = np.inf
    return RoundTerms(fixed, up, down, own_up, own_down)


def plain_bisection(terms: RoundTerms) -> float:
    """The readable way: shares of all clients at all cuts, 60 times."""

    def total(time):
        left = time - terms.fixed
        over_up, over_down = terms.up * terms.own_up, terms.down * terms.own_down
        need = np.maximum.reduce([
            (terms.up + terms.down) / left, terms.down / (left - over_up), terms.up / (left - over_down)
        ])  # fmt: skip
        return np.where(left > over_up + over_down, need, np.inf).min(axis=0).sum()

    low, high = 0.0, 1e6
    with np.errstate(divide="ignore"):
        for _ in range(70):
            middle = (low + high) / 2
            low, high = (low, middle) if total(middle) <= 1 else (middle, high)
    return high


@pytest.mark.parametrize("slow", [1.0, 40.0])  # a straggler whom no sample shows
@pytest.mark.parametrize("link", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("seed", range(2))
def test_dropping_cuts_loses_nothing(seed, link, slow):
    terms = many(9_000, seed, link, slow)
    cuts, shares, time = solve(terms)
    everyone = np.arange(9_000)
    stretch = 1 / shares
    real = (
        terms.fixed[cuts, everyone]
        + terms.up[cuts, everyone] * np.maximum(stretch, terms.own_up)
        + terms.down[cuts, everyone] * np.maximum(stretch, terms.own_down)
    )
    least = plain_bisection(terms)
    assert shares.sum() == pytest.approx(1, rel=1e-9)
    assert least * (1 - 1e-11) <= real.max() <= least * (1 + 2e-9)
    assert real.max() <= time * (1 + 1e-11)


def test_a_client_that_no_cut_fits_is_named_with_what_it_lacks():
    costs, clients, server = instance(3, clients=3, count=4)
    needs = [cut.memory_fixed + costs.batch[1] * cut.memory_per_sample for cut in costs.cuts]
    clients[1] = replace(clients[1], memory=1000.0)
    message = rf"memory=1000 bytes of client 'client-1' fits no cut: the least is {min(needs):.0f} bytes"
    with pytest.raises(InfeasibleError, match=message):
        Exact().plan(costs, clients, server)
