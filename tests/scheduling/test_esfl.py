from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scheduling_samples import instance, round_of, seconds

from lightning_edgesplit.scheduling import ESFL, ServerProfile
from lightning_edgesplit.scheduling.policies.esfl import server_shares


def slowest(rest, work, shares):
    return max(c + (w / f if w else 0.0) for c, w, f in zip(rest, work, shares, strict=True))


def best_shares_by_grid(rest, work) -> float:
    """The least time over parts of the server's speed, on a grid that is drawn ever closer around the best."""
    centre, width = np.full(3, 1 / 3), 1.0
    for _ in range(40):
        steps = itertools.product(np.linspace(-width, width, 9), repeat=2)
        around = [centre + np.array([a, b, -a - b]) for a, b in steps]
        centre = min([s for s in around if (s > 1e-12).all()], key=lambda shares: slowest(rest, work, shares))
        width *= 0.7
    return slowest(rest, work, centre)


@pytest.mark.parametrize("seed", range(8))
def test_the_share_step_is_the_numeric_optimum(seed):
    rng = np.random.default_rng(seed)
    rest, work = rng.uniform(0, 10, 3), rng.uniform(0.1, 10, 3)
    shares = server_shares(rest, work)
    assert shares.sum() == pytest.approx(1)
    assert slowest(rest, work, shares) == pytest.approx(best_shares_by_grid(rest, work), rel=1e-3)
    assert rest + work / shares == pytest.approx(slowest(rest, work, shares)), "all end together"


def test_who_asks_nothing_of_the_server_has_none_of_it():
    shares = server_shares(np.array([5.0, 1.0]), np.array([0.0, 3.0]))
    assert shares == pytest.approx([0.0, 1.0])
    assert server_shares(np.array([1.0, 1.0]), np.zeros(2)) == pytest.approx([0.5, 0.5])


def optimum(costs, clients, server) -> float:
    """Brute force: all cuts, and for each the shares by bisection on T."""
    count = len(clients)
    best = float("inf")
    for cuts in itertools.product(range(len(costs.cuts)), repeat=count):
        phases = [seconds(costs, clients, server, k, cut, 1 / count) for k, cut in enumerate(cuts)]
        work = [steps * own["server"] for own, steps in zip(phases, costs.steps, strict=True)]
        rest = [round_of({**own, "server": 0.0}, steps) for own, steps in zip(phases, costs.steps, strict=True)]
        low, high = max(rest), max(c + count * w for c, w in zip(rest, work, strict=True))
        for _ in range(60):
            middle = (low + high) / 2
            need = sum(w / (middle - c) if middle > c else 2.0 for c, w in zip(rest, work, strict=True) if w)
            low, high = (low, middle) if need <= 1 else (middle, high)
        best = min(best, high)
    return best


def weak(seed, clients=3, count=4):
    """An instance whose server is a bottleneck, so that its parts matter."""
    costs, profiles, server = instance(seed, clients, count)
    return costs, profiles, replace(server, flops=10 ** (10 + seed % 3 / 2))


def test_the_alternation_is_never_better_than_the_optimum_and_seldom_worse():
    gaps = []
    for seed in range(30):
        problem = weak(seed)
        gaps.append(ESFL().plan(*problem).round_time / optimum(*problem))
    assert min(gaps) > 1 - 1e-6
    assert np.median(gaps) < 1.001
    assert max(gaps) < 1.25, "a stop above the optimum, as alternations have"


@pytest.mark.parametrize("seed", range(10))
def test_predicted_times_are_those_of_the_shares(seed):
    costs, clients, server = weak(seed)
    plan = ESFL().plan(costs, clients, server)
    names = [cut.name for cut in costs.cuts]
    expected = [
        round_of(seconds(costs, clients, server, k, names.index(cut), 1 / 3), costs.steps[k], plan.server_shares[k])
        for k, cut in enumerate(plan.cuts)
    ]
    assert plan.predicted == pytest.approx(expected)
    assert sum(plan.server_shares) == pytest.approx(1)
    assert plan.iterations[-1] == pytest.approx(plan.round_time)
    assert list(plan.iterations) == sorted(plan.iterations, reverse=True)


def test_more_than_one_turn_is_taken_where_it_helps():
    assert any(len(ESFL().plan(*weak(seed)).iterations) > 2 for seed in range(30))


def test_memory_limits_hold():
    costs, clients, server = weak(5, clients=2)
    needs = [cut.memory_fixed + costs.batch[0] * cut.memory_per_sample for cut in costs.cuts]
    clients[0] = replace(clients[0], memory=min(needs))
    assert ESFL().plan(costs, clients, server).cuts[0] == costs.cuts[needs.index(min(needs))].name


def test_a_server_that_takes_no_time_is_no_division_by_zero():
    costs, clients, _ = instance(1, clients=2)
    costs = replace(costs, cuts=tuple(replace(cut, server=0.0) for cut in costs.cuts))
    plan = ESFL().plan(costs, clients, ServerProfile(flops=1e12, uplink=1e8, downlink=1e8))
    assert all(0 < time < float("inf") for time in plan.predicted)
