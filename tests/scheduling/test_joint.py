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
    Exact,
    Fixed,
    InfeasibleError,
    Joint,
    LatencyModel,
    ServerProfile,
    make_policy,
    simulate,
)
from lightning_edgesplit.scheduling.plan import DISCIPLINES, ORDERS
from lightning_edgesplit.scheduling.policies import search
from lightning_edgesplit.scheduling.policies.base import bisect
from lightning_edgesplit.scheduling.simulate import simulated_seconds


def simulated(plan, costs, clients, server) -> float:
    return simulate(LatencyModel(costs, clients, server), plan).round_time


def brute_force(costs, clients, server) -> float:
    """The shortest simulated round of all cuts, disciplines and orders; static shares are those best for the cuts."""
    model, best = LatencyModel(costs, clients, server), float("inf")
    for cuts in itertools.product(range(len(costs.cuts)), repeat=len(clients)):
        base = Fixed(tuple(costs.cuts[cut].name for cut in cuts)).plan(costs, clients, server)
        base = replace(base, shares=tuple(bisect(model, cuts)[1]))
        for disciplines, order in itertools.product(itertools.product(DISCIPLINES, repeat=2), ORDERS):
            best = min(best, simulated_seconds(model, replace(base, disciplines=disciplines, order=order)))
    return best


@pytest.mark.parametrize("seed", range(50))
def test_joint_is_within_a_hundredth_of_brute_force(seed):
    problem = instance(seed, clients=3 if seed % 5 == 0 else 2, count=3)
    assert simulated(Joint().plan(*problem), *problem) <= 1.01 * brute_force(*problem)


@pytest.mark.parametrize("budget", [1, 2000])
@pytest.mark.parametrize("seed", range(15))
def test_joint_is_never_slower_than_edgesplit_or_exact_however_little_it_may_search(seed, budget):
    problem = instance(seed, clients=2 + seed % 7, count=8)
    plan = Joint(budget=budget).plan(*problem)
    others = [simulated(policy.plan(*problem), *problem) for policy in (EdgeSplit(), Exact())]
    assert simulated(plan, *problem) <= min(others)


def test_a_link_that_is_scheduled_is_never_idle_while_one_that_is_divided_is():
    # forward 1 s and 2 s, 2 bytes on an uplink of 1 byte/s, server 1 s, backward 1 s and 2 s: with halves of the link
    # the second ends at 2 + 4 + 1 + 2 = 9 s; let onto the link first, at 2 + 2 + 1 + 2 = 7, and the first at 7 as well
    cut = CutCost("cut", client_forward=1, client_backward=1, server=1, smashed=2, gradient=0, weights=0)
    clients = [ClientProfile("fast", flops=1), ClientProfile("slow", flops=1 / 2)]
    problem = Costs((cut,), (1, 1), (1, 1)), clients, ServerProfile(flops=1, uplink=8)
    halves = Fixed(("cut", "cut")).plan(*problem)
    plan = Joint().plan(*problem)
    assert (simulated(halves, *problem), simulated(plan, *problem)) == (9, 7)
    assert plan.disciplines[0] == "longest_first"


@pytest.mark.parametrize("seed", range(10))
def test_the_plan_says_what_the_simulated_round_says_and_rates_are_those_of_a_client_alone(seed):
    costs, clients, server = instance(seed, clients=4, count=6)
    plan = Joint(budget=2000).plan(costs, clients, server)
    assert plan.predicted == simulate(LatencyModel(costs, clients, server), plan).ends
    assert list(plan.iterations) == sorted(plan.iterations, reverse=True)
    for way, rates in enumerate((plan.uplink, plan.downlink)):
        if plan.disciplines[way] != "static":
            shared = (server.uplink, server.downlink)[way]
            own = [(client.uplink, client.downlink)[way] for client in clients]
            assert rates == tuple(min((r for r in (shared, o) if r), default=None) for o in own)


def test_the_update_stays_exact_unless_more_is_allowed():
    plan = Joint().plan(*instance(1, clients=4, count=6))
    assert (plan.micro_batches, plan.compression, plan.server_model) == ((), "none", "per_client")


@pytest.mark.parametrize("seed", range(8))
def test_what_is_allowed_beyond_that_is_only_used_where_it_helps(seed):
    problem = instance(seed, clients=2 + seed % 3, count=6)
    exact = simulated(Joint(budget=2000).plan(*problem), *problem)
    for wider in (Joint(micro_batches=(1, 4), budget=2000), Joint(compression="int8", budget=2000)):
        assert simulated(wider.plan(*problem), *problem) <= exact


def test_micro_batches_and_int8_are_used_where_the_link_is_slow():
    cut = CutCost("cut", client_forward=1e9, client_backward=1e9, server=1e9, smashed=1e6, gradient=1e6, weights=0)
    problem = Costs((cut,), (8,), (2,)), [ClientProfile("one", flops=1e9)], ServerProfile(flops=1e9, uplink=1e6)
    plan = Joint(micro_batches=(1, 2, 8), compression="int8").plan(*problem)
    assert (plan.micro_batches, plan.compression) == ((8,), "int8")


def test_memory_limits_hold():
    costs, clients, server = instance(5, clients=4, count=6)
    needs = [cut.memory_fixed + costs.batch[0] * cut.memory_per_sample for cut in costs.cuts]
    small = [replace(clients[0], memory=min(needs)), *clients[1:]]
    assert Joint().plan(costs, small, server).cuts[0] == costs.cuts[needs.index(min(needs))].name
    with pytest.raises(InfeasibleError, match="fits no cut"):
        Joint().plan(costs, [replace(clients[0], memory=1.0), *clients[1:]], server)


def test_the_same_input_gives_the_same_plan():
    problem = instance(3, clients=6, count=8)
    assert Joint().plan(*problem) == Joint().plan(*problem)


def test_a_hundred_clients_are_planned_within_the_budget(monkeypatch):
    costs, clients, server = instance(2, clients=100, count=12)
    problem, calls = (replace(costs, steps=(2,) * 100), clients, server), []
    real = search.simulated_seconds
    monkeypatch.setattr(search, "simulated_seconds", lambda *args: calls.append(1) or real(*args))
    plan = Joint(budget=4000).plan(*problem)
    assert 4 <= len(calls) <= 4000 / 200 + 1  # 200 local steps each; the last may go over
    assert simulated(plan, *problem) < simulated(EdgeSplit().plan(*problem), *problem)


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_no_cut_is_left_out_that_could_be_of_use(compression):
    costs, clients, server = instance(6, clients=2, count=6)
    worse = replace(costs.cuts[2], name="worse", server=2 * costs.cuts[2].server, smashed=2 * costs.cuts[2].smashed)
    twin = replace(costs.cuts[3], name="twin")
    costs = replace(costs, cuts=(*costs.cuts[:3], worse, costs.cuts[3], twin, *costs.cuts[4:]))
    found = search.Search("joint", LatencyModel(costs, clients, server)).choices(0, compression)
    names = [costs.cuts[cut].name for cut in found]
    assert "worse" not in names
    assert "twin" not in names
    assert {"layer3", "end"} <= set(names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"disciplines": ("random",)}, r"disciplines=\('random',\) of joint must be some of static, fair"),
        ({"disciplines": ()}, r"disciplines=\(\) of joint"),
        ({"micro_batches": (0, 1)}, r"micro_batches=\(0, 1\) of joint must be whole numbers, each at least 1"),
        ({"compression": "int4"}, r"compression='int4' of joint must be one of none, int8"),
        ({"budget": 0}, "budget=0 of joint must be at least 1"),
    ],
)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Joint(**wrong)


def test_it_is_there_by_name():
    assert make_policy("joint") == Joint()
