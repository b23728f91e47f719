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
    LatencyModel,
    ServerProfile,
    simulate,
)


def problem():
    """Two clients, one sample, rates of 1: forward 1 s and 3 s, server 4 s, nothing else but 1 s down and 1 s back."""
    cut = CutCost("cut", client_forward=1, client_backward=1, server=4, smashed=0, gradient=1, weights=0)
    clients = [ClientProfile("fast", flops=1), ClientProfile("slow", flops=1 / 3)]
    server = ServerProfile(flops=1, downlink=16)  # 8 bit/s, 1 byte/s, for each
    return Costs((cut,), (1, 1), (2, 1)), clients, server


def bars(simulated, client: int, phase: str) -> list[tuple[float, float]]:
    return [
        (bar.start, bar.end)
        for bar in simulated.bars
        if bar.client == client and bar.phase == phase and not bar.on_server
    ]


def test_who_comes_second_waits_until_the_server_is_free():
    costs, clients, server = problem()
    plan = Fixed(("cut", "cut")).plan(costs, clients, server)
    simulated = simulate(LatencyModel(costs, clients, server), plan)
    # by hand: fast is served 1–5, has its gradient at 6, is back at 7, forward to 8; slow came at 3, is served 5–9,
    # has its gradient at 10 and is done at 13; fast is served again 9–13, gradient at 14, done at 15
    assert bars(simulated, 0, "server") == [(1, 5), (9, 13)]
    assert bars(simulated, 0, "wait") == [(8, 9)]
    assert bars(simulated, 1, "wait") == [(3, 5)]
    assert bars(simulated, 1, "server") == [(5, 9)]
    assert simulated.ends == (15, 13)
    assert simulated.server_seconds == 12


def test_in_a_fixed_order_the_server_waits_for_the_one_whose_turn_it_is():
    costs, clients, server = problem()
    clients.reverse()  # the slow one first
    costs = Costs(costs.cuts, (1, 1), (1, 2))
    plan = replace(Fixed(("cut", "cut")).plan(costs, clients, server), order="in_order")
    simulated = simulate(LatencyModel(costs, clients, server), plan)
    assert bars(simulated, 0, "server") == [(3, 7)]
    assert bars(simulated, 1, "wait") == [(1, 7)]
    assert bars(simulated, 1, "server") == [(7, 11), (14, 18)]


@pytest.mark.parametrize("seed", range(10))
def test_with_a_server_that_takes_no_time_it_is_the_formula(seed):
    costs, clients, _ = instance(seed, clients=4)
    server = ServerProfile(flops=1e30, uplink=1e8, downlink=1e8)
    plan = EdgeSplit().plan(costs, clients, server)
    simulated = simulate(LatencyModel(costs, clients, server), plan)
    assert simulated.ends == pytest.approx(plan.predicted, rel=1e-9)


def test_a_clients_phases_follow_each_other_without_a_gap():
    costs, clients, server = instance(7, clients=4)
    simulated = simulate(LatencyModel(costs, clients, server), EdgeSplit().plan(costs, clients, server))
    for k, end in enumerate(simulated.ends):
        own = sorted((b.start, b.end) for b in simulated.bars if b.client == k and not b.on_server)
        assert own[0][0] == 0
        assert own[-1][1] == end
        assert all(one[1] == pytest.approx(two[0]) for one, two in itertools.pairwise(own))
        assert sum(simulated.seconds[k].values()) == pytest.approx(end)
