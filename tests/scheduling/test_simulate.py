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


@pytest.mark.parametrize(
    ("turns", "fast", "slow", "ends"),
    [
        # slow is served 3–7, has its gradient at 8 and is done at 11; fast, there since 1, is served 7–11, has its
        # gradient at 12, comes again at 14, is served until 18, has its gradient at 19 and is done at 20
        ((1, 0), [(7, 11), (14, 18)], [(3, 7)], (20, 11)),
        # fast is served 1–5, comes again at 8 and is served until 12, done at 14; meanwhile slow, there since 3, waits
        # although the server is idle from 5 to 8
        ((0, 1), [(1, 5), (8, 12)], [(12, 16)], (14, 20)),
    ],
)
def test_one_server_side_model_serves_all_steps_of_a_client_before_the_next_ones(turns, fast, slow, ends):
    costs, clients, server = problem()
    plan = Fixed(("cut", "cut")).plan(costs, clients, server)
    simulated = simulate(LatencyModel(costs, clients, server), replace(plan, server_model="splitfed-v2", turns=turns))
    assert bars(simulated, 0, "server") == fast
    assert bars(simulated, 1, "server") == slow
    assert simulated.ends == ends


def test_one_server_side_model_is_not_averaged_and_not_in_two_steps_at_once():
    costs, clients, server = problem()
    costs = replace(costs, cuts=(replace(costs.cuts[0], weights=4), CutCost("end", 1, 1, 0, 0, 0, weights=400)))
    plan = Fixed(("cut", "cut")).plan(costs, clients, server)
    plan = replace(plan, server_model="splitfed-v2", turns=(0, 1), server_shares=(0.5, 0.5))
    simulated = simulate(LatencyModel(costs, clients, server), plan)
    assert simulated.aggregation == 2 * 2 * 1  # 2 FLOP for each client's one weight (4 bytes), at 1 FLOP/s
    assert bars(simulated, 0, "server") == [(5, 9), (12, 16)]  # each begins 4 s later, for its weights
    assert bars(simulated, 1, "server") == [(16, 20)]


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


def two_clients(**plan):
    """Forward 1 s and 2 s, up 1 s, server 1 s forward and 2 s backward, down 2 s, backward 1 s and 2 s; download and
    upload 1 s; each client with its own link, so that shares do not matter; one local step."""
    cut = CutCost("cut", 1, 1, server=3, smashed=1, gradient=2, weights=1, server_forward=1)
    clients = [ClientProfile("a", flops=1, uplink=8, downlink=8), ClientProfile("b", flops=0.5, uplink=8, downlink=8)]
    costs, server = Costs((cut,), (1, 1), (1, 1)), ServerProfile(flops=1)
    model = LatencyModel(costs, clients, server)
    return simulate(model, replace(Fixed(("cut", "cut")).plan(costs, clients, server), **plan))


def test_with_a_sequential_server_model_the_next_client_begins_when_the_one_before_has_ended():
    simulated = two_clients(server_model="sequential")
    # a: download 0–1, forward to 2, up to 3, served to 6, down to 8, backward to 9, upload to 10; b: 12 s from there
    assert simulated.ends == (10, 22)
    assert bars(simulated, 1, "download") == [(10, 11)]
    assert bars(simulated, 1, "wait") == []


def test_a_shared_server_model_waits_for_all_and_steps_once():
    simulated = two_clients(server_model="shared")
    # a arrives at 3, b at 4; forward and backward of both, 2·(1 + 2) s, to 10; a: down to 12, backward to 13, upload to
    # 14; b: backward to 14, upload to 15
    assert bars(simulated, 0, "wait") == [(3, 4)]
    assert bars(simulated, 0, "server") == bars(simulated, 1, "server") == [(4, 10)]
    assert simulated.ends == (14, 15)
    assert simulated.server_seconds == 6


def test_aggregated_gradients_are_computed_once_and_sent_to_all_at_once():
    simulated = two_clients(server_model="shared", aggregated=0.5)
    # forward 2 s; backward of half the samples once instead of twice, 4·(1/2 + 1/2·1/2) = 3 s: to 9; broadcast of half
    # the gradient, 1 s, to 10; the other half, 1 s, to 11; backward and upload as before
    assert bars(simulated, 0, "server") == [(4, 9)]
    assert bars(simulated, 0, "downlink") == [(9, 10), (10, 11)]
    assert simulated.ends == (13, 14)
    assert two_clients(server_model="shared", aggregated=1.0).ends == (12, 13)  # 2 + 2 s to 8, broadcast to 10


def test_parts_of_the_servers_speed_are_had_side_by_side():
    simulated = two_clients(server_shares=(0.75, 0.25))
    assert bars(simulated, 0, "server") == [(3, 7)]
    assert bars(simulated, 1, "server") == [(4, 16)]
    assert simulated.ends == (7 + 2 + 1 + 1, 16 + 2 + 2 + 1)


def test_a_radio_rate_limits_the_uplink_and_nothing_else():
    simulated = two_clients(server_shares=(0.5, 0.5), channel_rates=(4.0, 80.0))
    assert bars(simulated, 0, "uplink") == [(2, 4)]  # half a byte per second
    assert bars(simulated, 0, "upload") == [(13, 15)]
    assert bars(simulated, 1, "uplink") == [(3, 4)], "its own link is slower than the radio"
    assert bars(simulated, 0, "download") == [(0, 1)]


def test_a_server_model_that_all_share_works_for_each_client_behind_its_own_cut():
    shallow = CutCost("shallow", client_forward=1, client_backward=1, server=4, smashed=0, gradient=0, weights=8)
    deep = CutCost("deep", client_forward=2, client_backward=2, server=1, smashed=0, gradient=0, weights=24)
    clients = [ClientProfile("near", flops=1), ClientProfile("far", flops=1 / 3)]
    costs, server = Costs((shallow, deep), (1, 1), (2, 1)), ServerProfile(flops=1)
    plan = replace(Fixed(("shallow", "deep")).plan(costs, clients, server), server_model="shared")
    simulated = simulate(LatencyModel(costs, clients, server), plan)
    # by hand: near is there at 1, far at 6; the server works 4 + 1 s for both; near, back at 12, is there again at 13
    # and has the server, for its own 4 s, alone; far is done at 11 + 6
    assert bars(simulated, 0, "server") == [(6, 11), (13, 17)]
    assert bars(simulated, 1, "server") == [(6, 11)]
    assert bars(simulated, 0, "wait") == [(1, 6)]
    assert simulated.ends == (18, 17)
    assert simulated.server_seconds == 9
    assert simulated.aggregation == 2 * 2 * 24 / 4  # the larger side, of both
