from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import (
    ClientProfile,
    Costs,
    EdgeSplit,
    Exact,
    FedAvg,
    Fixed,
    InfeasibleError,
    Uniform,
    make_policy,
)


def seconds(costs: Costs, clients, server, k: int, cut: int, share: float) -> float:
    """The oracle's own formula (see `test_latency` for ours)."""
    cost, client, batch, steps = costs.cuts[cut], clients[k], costs.batch[k], costs.steps[k]
    rates = []
    for link, own in ((server.uplink, client.uplink), (server.downlink, client.downlink)):
        limits = [x for x in (share * link if link else None, own) if x]
        rates.append(min(limits) / 8 if limits else float("inf"))
    split = cost.name != "end"
    step = batch * (cost.client_forward + cost.client_backward) / client.flops
    step += (batch * cost.smashed + cost.step_up) / rates[0] + (batch * cost.gradient + cost.step_down) / rates[1]
    step += (batch * cost.server / server.flops * len(clients) + 2 * client.latency) if split else 0.0
    return steps * step + cost.weights / rates[0] + cost.weights / rates[1] + 2 * client.latency


def brute_force(costs, clients, server) -> float:
    """All combinations of cuts; for each the shares by bisection on T and, within it, on each client's share."""

    def least_share(k, cut, target):
        if seconds(costs, clients, server, k, cut, 1.0) > target:
            return 2.0
        low, high = 1e-9, 1.0
        for _ in range(40):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if seconds(costs, clients, server, k, cut, middle) <= target else (middle, high)
        return high

    best = float("inf")
    for cuts in itertools.product(range(len(costs.cuts)), repeat=len(clients)):
        low, high = 0.0, max(seconds(costs, clients, server, k, c, 1 / len(clients)) for k, c in enumerate(cuts))
        for _ in range(40):
            middle = (low + high) / 2
            enough = sum(least_share(k, cut, middle) for k, cut in enumerate(cuts)) <= 1 + 1e-9
            low, high = (low, middle) if enough else (middle, high)
            if low > best:
                break
        best = min(best, high)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_exact_equals_brute_force(seed):
    problem = instance(seed, clients=2 + seed % 2, count=3)
    plan = Exact().plan(*problem)
    assert plan.round_time == pytest.approx(brute_force(*problem), rel=1e-4)


@pytest.mark.parametrize("seed", range(60))
def test_edgesplit_is_never_better_than_exact_and_never_worse_than_uniform(seed):
    problem = instance(seed, clients=2 + seed % 7, count=6)
    exact, edgesplit, uniform = (policy.plan(*problem).round_time for policy in (Exact(), EdgeSplit(), Uniform()))
    assert exact * (1 - 1e-6) <= edgesplit <= uniform * (1 + 1e-9)


def test_edgesplit_reports_its_iterations_each_better_than_the_one_before():
    plans = [EdgeSplit().plan(*instance(seed, clients=5, count=6)) for seed in range(30)]
    assert all(list(plan.iterations) == sorted(plan.iterations, reverse=True) for plan in plans)
    assert all(plan.iterations[-1] == pytest.approx(plan.round_time) for plan in plans)
    assert any(len(plan.iterations) > 2 for plan in plans)


@pytest.mark.parametrize("policy", [FedAvg(), Uniform(), EdgeSplit(), Exact()])
def test_shares_are_never_more_than_the_links_and_rates_follow_from_them(policy):
    for seed in range(10):
        costs, clients, server = instance(seed, clients=4)
        plan = policy.plan(costs, clients, server)
        assert sum(plan.shares) <= 1 + 1e-9
        for share, client, rate in zip(plan.shares, clients, plan.downlink, strict=True):
            assert rate == pytest.approx(min(share * server.downlink, client.downlink or float("inf")))


def test_uniform_is_the_best_single_cut():
    costs, clients, server = instance(3, clients=4, count=6)
    each = [max(seconds(costs, clients, server, k, cut, 0.25) for k in range(4)) for cut in range(6)]
    plan = Uniform().plan(costs, clients, server)
    assert plan.cuts == (costs.cuts[each.index(min(each))].name,) * 4
    assert plan.round_time == pytest.approx(min(each))


def test_memory_limits_hold():
    costs, clients, server = instance(5, clients=4, count=6)
    needs = [cut.memory_fixed + costs.batch[0] * cut.memory_per_sample for cut in costs.cuts]
    clients[0] = replace(clients[0], memory=min(needs))
    for policy in (EdgeSplit(), Exact()):
        assert policy.plan(costs, clients, server).cuts[0] == costs.cuts[needs.index(min(needs))].name


def test_policies_that_leave_no_choice_say_whose_memory_is_too_small():
    costs, clients, server = instance(5, clients=2, count=6)
    deep = costs.cuts[-1].memory_fixed
    costs = replace(costs, cuts=(replace(costs.cuts[0], memory_per_sample=0.0), costs.cuts[-1]))
    first_only = replace(clients[0], memory=(deep + costs.cuts[0].memory_fixed) / 2)
    with pytest.raises(InfeasibleError, match="of client 'client-0' does not hold the whole model"):
        FedAvg().plan(costs, [first_only, clients[1]], server)
    costs = replace(costs, cuts=(replace(costs.cuts[0], memory_per_sample=1e9), costs.cuts[1]))
    with pytest.raises(InfeasibleError, match="of client 'client-0' fits no cut"):
        Uniform().plan(costs, [first_only, clients[1]], server)


def test_a_fixed_cut_that_is_unknown_or_does_not_fit_is_refused():
    costs, clients, server = instance(1, clients=2)
    with pytest.raises(ValueError, match="cuts='layer9' is unknown: choose from layer0"):
        Fixed(("layer0", "layer9")).plan(costs, clients, server)
    small = [replace(clients[0], memory=10.0 + costs.cuts[0].memory_fixed + 32 * 1e6), clients[1]]
    assert Fixed(("layer0", "end")).plan(costs, small, server).cuts == ("layer0", "end")
    with pytest.raises(ValueError, match="sum of at most 1"):
        Fixed(("layer0", "end"), shares=(0.7, 0.7))


def test_a_thousand_clients_are_planned():
    costs, clients, server = instance(2, clients=1000, count=20)
    plan = Exact().plan(costs, clients, server)
    assert sum(plan.shares) == pytest.approx(1)
    assert plan.round_time <= Uniform().plan(costs, clients, server).round_time


def test_an_unknown_policy_is_refused_with_the_names_there_are():
    with pytest.raises(
        ValueError, match=r"policy='fastest' is unknown: use one of fedavg, sequential, uniform, .*, joint \(each"
    ):
        make_policy("fastest")
    with pytest.raises(TypeError, match="policy=3 must be one of"):
        make_policy(3)  # type: ignore[arg-type]


def test_a_link_without_limit_is_not_divided():
    costs, clients, server = instance(4, clients=3)
    free = replace(server, uplink=None, downlink=None)
    own = [ClientProfile(name=c.name, flops=c.flops) for c in clients]
    assert Exact().plan(costs, own, free).uplink == (None, None, None)
