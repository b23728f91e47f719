from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scheduling_samples import instance, seconds

from lightning_edgesplit.scheduling import (
    ESFL,
    ClientProfile,
    Costs,
    CutCost,
    EdgeSplit,
    Fixed,
    LatencyModel,
    Overlapped,
    RandomCuts,
    ServerProfile,
    for_round,
    make_policy,
    simulate,
    with_fixed,
)


def test_two_halves_in_flight_by_hand():
    """Forward 2 s, uplink 2 s, server 0, downlink 2 s, backward 2 s; a step of 8 s in one piece.

    In halves: forward 0–1 and 1–2; up 1–2 and 2–3; down 2–3 and 3–4; backward 3–4 and 4–5.
    """
    cut = CutCost("cut", client_forward=1, client_backward=1, server=0, smashed=1, gradient=1, weights=0)
    costs, client = Costs((cut,), (2,), (1,)), ClientProfile("a", flops=1)
    server = ServerProfile(flops=1, uplink=8, downlink=8)
    assert Fixed(("cut",)).plan(costs, [client], server).predicted == (8,)
    plan = Overlapped(Fixed(("cut",))).plan(costs, [client], server)
    assert plan.micro_batches == (2,)
    assert plan.predicted == (5,)
    assert plan.policy == "fixed+pipar"


@pytest.mark.parametrize("seed", range(15))
def test_the_number_of_micro_batches_is_the_best_of_all_up_to_the_one_of_the_formula(seed):
    costs, clients, server = instance(seed, clients=3, count=4)
    base = EdgeSplit().plan(costs, clients, server)
    most = []
    for k, name in enumerate(base.cuts):
        t = seconds(costs, clients, server, k, [c.name for c in costs.cuts].index(name), base.shares[k])
        enough = math.ceil((t["uplink"] + t["server"] + t["downlink"]) / min(t["forward"], t["backward"])) + 1
        most.append(1 if name == "end" else min(enough, 16, costs.batch[k]))
    model = LatencyModel(costs, clients, server)
    times = {
        tuple(min(parts, own) for own in most): simulate(
            model, replace(base, micro_batches=tuple(min(parts, own) for own in most))
        ).round_time
        for parts in range(1, max(most) + 1)
    }
    plan = make_policy("edgesplit+pipar").plan(costs, clients, server)
    assert simulate(model, plan).round_time == pytest.approx(min(times.values()))
    assert plan.micro_batches == () or times[plan.micro_batches] == min(times.values())
    assert (plan.cuts, plan.shares) == (base.cuts, base.shares)


def test_a_cap_holds_and_nothing_overlaps_under_one():
    problem = instance(3, clients=3, count=4)
    assert max(Overlapped(EdgeSplit(), micro_batches=3).plan(*problem).micro_batches, default=1) <= 3
    capped = make_policy({"policy": "edgesplit+pipar", "micro_batches": 1}).plan(*problem)
    assert capped.micro_batches in ((), (1, 1, 1))
    with pytest.raises(ValueError, match=r"micro_batches=0 of policy='edgesplit\+pipar' must be a whole number from 1"):
        Overlapped(EdgeSplit(), micro_batches=0)


def test_overlap_helps_somewhere_and_harms_nowhere():
    gains = []
    for seed in range(15):
        problem = instance(seed, clients=3, count=4)
        model = LatencyModel(*problem)
        for policy in (EdgeSplit(), ESFL()):
            one, many = policy.plan(*problem), Overlapped(policy).plan(*problem)
            gains.append(simulate(model, one).round_time / simulate(model, many).round_time)
    assert min(gains) >= 1
    assert max(gains) > 1.2


def test_the_policy_inside_is_told_the_round_and_its_fixed_cuts_can_be_changed():
    problem = instance(1, clients=6, count=5)
    inside, outside = RandomCuts(seed=2), make_policy({"policy": "random+pipar", "seed": 2})
    assert for_round(outside, 1, 3).plan(*problem).cuts == inside.in_round(1, 3).plan(*problem).cuts
    assert outside.cuts is None
    fixed = with_fixed(Overlapped(Fixed(("a", "b"))), lambda own: replace(own, cuts=own.cuts[1:]))
    assert fixed.cuts == ("b",)
    assert with_fixed(inside, lambda own: replace(own, cuts=())) is inside
