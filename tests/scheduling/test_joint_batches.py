from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import (
    ClientProfile,
    Costs,
    CutCost,
    EdgeSplit,
    Fixed,
    Joint,
    LatencyModel,
    Plan,
    ServerProfile,
    make_policy,
    simulate,
)
from lightning_edgesplit.scheduling.bound import lower_bound
from lightning_edgesplit.scheduling.plan import DISCIPLINES, ORDERS
from lightning_edgesplit.scheduling.policies.base import bisect
from lightning_edgesplit.scheduling.policies.overlapped import Overlapped
from lightning_edgesplit.scheduling.simulate import simulated_seconds


def under(plan: Plan, costs: Costs) -> Costs:
    """The oracle's own: a client's batch is that of the plan, its local steps are those of the costs."""
    return replace(costs, batch=plan.batches or costs.batch)


def seconds(plan, costs, clients, server) -> float:
    return simulate(LatencyModel(under(plan, costs), clients, server), replace(plan, batches=())).round_time


def compositions(total: int, parts: int):
    """All ways to write `total` as a sum of so many whole numbers, each at least 1, in all orders."""
    for bars in itertools.combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *bars, total)))


def brute_force(costs, clients, server) -> float:
    """The shortest simulated round of all batches of the same sum, cuts, disciplines and orders."""
    best, names = float("inf"), [cut.name for cut in costs.cuts]
    for batch in compositions(sum(costs.batch), len(clients)):
        own = replace(costs, batch=batch)
        model = LatencyModel(own, clients, server)
        for cuts in itertools.product(range(len(names)), repeat=len(clients)):
            base = Fixed(tuple(names[cut] for cut in cuts)).plan(own, clients, server)
            base = replace(base, shares=tuple(bisect(model, cuts)[1]))
            for disciplines, order in itertools.product(itertools.product(DISCIPLINES, repeat=2), ORDERS):
                best = min(best, simulated_seconds(model, replace(base, disciplines=disciplines, order=order)))
    return best


def small(seed: int):
    costs, clients, server = instance(seed, clients=3 if seed % 4 == 0 else 2, count=3)
    batch = (2, 2, 2) if len(clients) == 3 else (4, 4)
    return replace(costs, batch=batch, steps=tuple(min(own, 4) for own in costs.steps)), clients, server


@pytest.mark.parametrize("seed", [*range(24), 48])
def test_it_is_within_two_hundredths_of_brute_force_over_batches_and_cuts(seed):
    problem = small(seed)
    assert seconds(Joint(batches=True).plan(*problem), *problem) <= 1.02 * brute_force(*problem)


@pytest.mark.parametrize("budget", [1, 3000])
@pytest.mark.parametrize("seed", range(12))
def test_it_is_never_slower_than_with_the_loaders_batches_and_the_global_batch_stays(seed, budget):
    problem = instance(seed, clients=2 + seed % 5, count=6)
    plan = Joint(batches=True, budget=budget).plan(*problem)
    before = Joint(budget=budget).plan(*problem)
    assert before.batches == ()
    assert seconds(plan, *problem) <= seconds(before, *problem)
    assert plan.batches == () or (sum(plan.batches) == sum(problem[0].batch) and min(plan.batches) >= 1)
    assert plan.batches != problem[0].batch, "batches that are the loaders' are not set"


def test_slow_clients_get_smaller_batches():
    # nothing but compute, 1 s per sample of a client of 1 FLOP/s: with 16 samples in all, (12, 3, 1) take 12 s each
    cut = CutCost("end", client_forward=0.5, client_backward=0.5, server=0, smashed=0, gradient=0, weights=0)
    clients = [ClientProfile("a", flops=1.0), ClientProfile("b", flops=1 / 4), ClientProfile("c", flops=1 / 12)]
    problem = Costs((cut,), (5, 5, 6), (1, 1, 1)), clients, ServerProfile(flops=1.0)
    plan = Joint(batches=True).plan(*problem)
    assert (plan.batches, plan.round_time, plan.predicted) == ((12, 3, 1), 12, (12, 12, 12))
    assert Joint().plan(*problem).round_time == 72


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_says_what_a_round_with_its_batches_takes(seed):
    costs, clients, server = instance(seed, clients=4, count=5)
    plan = Joint(batches=True, budget=3000).plan(costs, clients, server)
    oracle = simulate(LatencyModel(under(plan, costs), clients, server), replace(plan, batches=()))
    assert plan.predicted == oracle.ends
    assert simulate(LatencyModel(costs, clients, server), plan) == oracle
    bound = lower_bound(LatencyModel(costs, clients, server), plan)
    assert bound == lower_bound(LatencyModel(under(plan, costs), clients, server), replace(plan, batches=()))


@pytest.mark.parametrize("seed", range(12))
def test_what_fits_no_memory_is_not_planned(seed):
    costs, clients, server = instance(seed, clients=3, count=4)
    fast = replace(costs, batch=(8, 8, 8), steps=(3, 3, 3))
    free = Joint(batches=True, budget=3000).plan(fast, clients, server)
    cuts = [costs[name] for name in free.cuts]
    needs = [
        cut.memory_fixed + b * cut.memory_per_sample for cut, b in zip(cuts, free.batches or (8,) * 3, strict=True)
    ]
    most = max(range(3), key=lambda k: (free.batches or (8,) * 3)[k])
    least = min(cut.memory_fixed + 8 * cut.memory_per_sample for cut in costs.cuts)
    # a hair less than what the largest batch needs, but enough for some cut with the loader's
    tight = [replace(c, memory=max(least, needs[k] * 0.999)) if k == most else c for k, c in enumerate(clients)]
    plan = Joint(batches=True, budget=3000).plan(fast, tight, server)
    own, batch = costs[plan.cuts[most]], (plan.batches or (8,) * 3)[most]
    assert own.memory_fixed + batch * own.memory_per_sample <= tight[most].memory
    assert sum(plan.batches or (24,)) == 24


@pytest.mark.parametrize("seed", range(10))
def test_each_batch_has_a_sample_for_each_of_its_micro_batches(seed):
    costs, clients, server = instance(seed, clients=3, count=4)
    problem = replace(costs, batch=(8, 8, 8), steps=(2, 2, 2)), clients, server
    plan = Joint(batches=True, micro_batches=(1, 2, 6), budget=3000).plan(*problem)
    parts, batches = plan.micro_batches or (1,) * 3, plan.batches or (8,) * 3
    assert all(own <= batch for own, batch in zip(parts, batches, strict=True))
    narrower = Joint(micro_batches=(1, 2, 6), budget=3000).plan(*problem)
    assert seconds(plan, *problem) <= seconds(narrower, *problem)


def test_the_same_input_gives_the_same_plan():
    problem = instance(3, clients=5, count=6)
    assert Joint(batches=True, budget=3000).plan(*problem) == Joint(batches=True, budget=3000).plan(*problem)


def test_one_client_keeps_its_batch():
    assert Joint(batches=True).plan(*instance(1, clients=1)).batches == ()


def test_where_a_client_has_to_come_through_its_samples_a_smaller_batch_makes_more_steps():
    costs = replace(small(1)[0], batch=(4, 4), steps=(3, 3), samples=(10, 12))
    assert costs.with_batch((3, 5)).steps == (4, 3), "⌈10 / 3⌉ and ⌈12 / 5⌉"
    assert replace(costs, most_steps=3).with_batch((1, 7)).steps == (3, 2)
    assert replace(costs, samples=()).with_batch((1, 7)).steps == (3, 3)
    # 1 s per sample and 100 s of latency per step: with samples to come through, few steps are what counts
    cut = CutCost("cut", client_forward=1, client_backward=0, server=0, smashed=0, gradient=0, weights=0)
    clients = [ClientProfile("a", flops=1.0, latency=50.0), ClientProfile("b", flops=1 / 2, latency=50.0)]
    whole = Costs((cut,), (8, 8), (1, 1), samples=(8, 8))
    assert Joint(batches=True).plan(whole, clients, ServerProfile(flops=1.0)).batches == ()
    part = Costs((cut,), (8, 8), (1, 1))
    # forward in b and 2·b' seconds: 11 and 10 are the nearest
    assert Joint(batches=True).plan(part, clients, ServerProfile(flops=1.0)).batches == (11, 5)


def test_costs_with_samples_come_back_from_their_file(tmp_path):
    costs = replace(instance(0)[0], samples=(10, 12, 9), most_steps=2)
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs
    with pytest.raises(ValueError, match="samples has 2 entries and steps 3"):
        replace(costs, samples=(1, 2))


def test_micro_batches_in_flight_are_as_many_as_the_plans_batches_have_samples():
    # 15 samples take the fast one 0.5 s and 24 s on the link; one takes the slow one 2 s and 20 s
    cut = CutCost("cut", client_forward=1, client_backward=1, server=0, smashed=1, gradient=1, weights=0)
    clients = [ClientProfile("fast", flops=60.0, uplink=5.0), ClientProfile("slow", flops=1.0, uplink=0.4)]
    problem = Costs((cut,), (8, 8), (1, 1)), clients, ServerProfile(flops=1e9)
    plan = Overlapped(Joint(batches=True)).plan(*problem)
    assert plan.batches == (15, 1)
    assert plan.micro_batches[0] > 1
    assert plan.micro_batches[1] == 1


def test_a_hundred_clients_are_planned_within_the_budget():
    costs, clients, server = instance(2, clients=100, count=8)
    problem = replace(costs, steps=(2,) * 100), clients, server
    plan = Joint(batches=True, budget=4000).plan(*problem)
    assert sum(plan.batches) == sum(costs.batch)
    assert seconds(plan, *problem) < seconds(Joint(budget=4000).plan(*problem), *problem)
    assert seconds(plan, *problem) < seconds(EdgeSplit().plan(*problem), *problem)


@pytest.mark.parametrize("batches", [(0, 2), (1,)])
def test_batches_that_cannot_be_are_refused(batches):
    plan = Fixed(("end", "end")).plan(*instance(0, clients=2))
    with pytest.raises(ValueError, match="batches"):
        replace(plan, batches=batches)


def test_it_is_there_by_name():
    assert make_policy({"policy": "joint", "batches": True}) == Joint(batches=True)
    with pytest.raises(ValueError, match="batches=3 of joint must be true or false"):
        Joint(batches=3)
