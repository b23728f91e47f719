from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from scheduling_samples import instance, round_of, seconds

from lightning_edgesplit.scheduling import ASFL, Exact, LatencyModel, simulate


def least_time(costs, clients, server, taking) -> float:
    """Brute force: all cuts of these clients, and for each the shares by bisection on T and on every share."""

    def time(k, cut, share):
        return round_of(seconds(costs, clients, server, k, cut, share), costs.steps[k], 1 / len(taking))

    def share(k, cut, target):
        if time(k, cut, 1.0) > target:
            return 2.0
        low, high = 1e-9, 1.0
        for _ in range(40):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if time(k, cut, middle) <= target else (middle, high)
        return high

    best = float("inf")
    for cuts in itertools.product(range(len(costs.cuts)), repeat=len(taking)):
        low, high = 0.0, max(time(k, cut, 1 / len(taking)) for k, cut in zip(taking, cuts, strict=True))
        for _ in range(40):
            middle = (low + high) / 2
            enough = sum(share(k, cut, middle) for k, cut in zip(taking, cuts, strict=True)) <= 1 + 1e-9
            low, high = (low, middle) if enough else (middle, high)
            if low > best:
                break
        best = min(best, high)
    return best


@pytest.mark.parametrize("seed", [*range(10), 89, 390])  # in the last two the choice hangs on the server's parts
def test_who_takes_part_and_how_is_the_best_of_all_ways_to_choose(seed):
    costs, clients, server = instance(seed, clients=3, count=3)
    problem = costs, clients, replace(server, flops=server.flops / 10 ** (seed % 4))  # a weak one matters
    times = {taking: least_time(*problem, taking) for taking in itertools.combinations(range(3), 2)}
    plan = ASFL(least=2 / 3).plan(*problem)
    assert len(plan.left_out) == 1
    assert plan.round_time == pytest.approx(min(times.values()), rel=1e-4)
    taking = tuple(k for k in range(3) if k not in plan.left_out)
    assert times[taking] == pytest.approx(min(times.values()), rel=1e-4)
    assert [plan.shares[k] for k in plan.left_out] == [0.0]


@pytest.mark.parametrize("seed", range(4))
def test_with_a_deadline_as_many_take_part_as_can_keep_it(seed):
    problem = instance(seed, clients=3, count=3)
    least = [
        min(least_time(*problem, taking) for taking in itertools.combinations(range(3), count)) for count in (1, 2, 3)
    ]
    for taking, deadline in ((3, least[2] * 1.01), (2, least[1] * 1.01), (1, least[0] * 1.01), (1, least[0] / 2)):
        if taking == 3 or deadline < least[taking] * 0.99:  # else more can keep it as well
            plan = ASFL(least=0.0, deadline=deadline).plan(*problem)
            assert 3 - len(plan.left_out) == taking
            assert plan.round_time == pytest.approx(least[taking - 1], rel=1e-4)
    assert len(ASFL(least=0.5, deadline=0.0).plan(*problem).left_out) == 1, (
        "half of three is two, whatever the deadline"
    )


def test_with_all_of_them_it_is_the_exact_optimum():
    problem = instance(3, clients=5, count=5)
    plan, exact = ASFL(least=1.0).plan(*problem), Exact().plan(*problem)
    assert plan.left_out == ()
    assert plan.round_time == pytest.approx(exact.round_time, rel=1e-6)


def test_the_simulated_round_is_one_of_those_who_take_part():
    costs, clients, server = instance(3, clients=4, count=5)
    clients[2] = replace(clients[2], flops=1e3)
    plan = ASFL().plan(costs, clients, server)
    assert plan.left_out == (2,)
    assert (plan.predicted[2], plan.uplink[2]) == (0.0, None)
    ends = simulate(LatencyModel(costs, clients, server), plan).ends
    assert [k for k, end in enumerate(ends) if end == 0] == [2]


def test_a_hundred_clients_are_chosen_from():
    plan = ASFL(least=0.3).plan(*instance(2, clients=100, count=10))
    assert len(plan.left_out) == 70
    assert sum(plan.shares) == pytest.approx(1)


@pytest.mark.parametrize("options", [{"least": 1.5}, {"least": -0.1}, {"deadline": "soon"}])
def test_a_fraction_or_deadline_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* of policy='asfl' must be a number from 0"):
        ASFL(**options)
