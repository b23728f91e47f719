from __future__ import annotations

import math
import random

import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import ClientProfile, Costs, CutCost, InfeasibleError, LatencyModel, ServerProfile

CUT = CutCost(
    "layer", client_forward=2e6, client_backward=4e6, server=9e6, smashed=1000.0, gradient=800.0, weights=50_000.0,
    step_up=200.0, step_down=100.0, memory_fixed=1e6, memory_per_sample=1e4,
)  # fmt: skip
END = CutCost("end", client_forward=5e6, client_backward=10e6, server=0.0, smashed=0.0, gradient=0.0, weights=90_000.0)


def model(client: ClientProfile, server: ServerProfile, batch: int = 10, steps: int = 7, clients: int = 2):
    return LatencyModel(Costs((CUT, END), (batch,) * clients, (steps,) * clients), [client] * clients, server)


def test_a_round_takes_what_the_formula_says():
    client = ClientProfile("a", flops=1e9, uplink=4e6, latency=0.02)
    server = ServerProfile(flops=1e11, uplink=8e6, downlink=16e6)
    up, down = 0.25 * 8e6 / 8, 0.25 * 16e6 / 8  # bytes/s at a quarter of the links; its own uplink would allow more
    step = (
        10 * 2e6 / 1e9 + (10 * 1000 + 200) / up + 0.02 + 10 * 9e6 / (1e11 / 2) + (10 * 800 + 100) / down + 0.02
        + 10 * 4e6 / 1e9
    )  # fmt: skip
    expected = 7 * step + 50_000 / up + 50_000 / down + 2 * 0.02
    assert model(client, server).round_time(0, 0, 0.25) == pytest.approx(expected, rel=1e-12)


def test_the_whole_model_on_the_client_sends_nothing_in_a_step_and_needs_no_server():
    client, server = ClientProfile("a", flops=1e9, latency=0.02), ServerProfile(uplink=8e6)
    expected = 7 * 10 * 15e6 / 1e9 + 90_000 / (0.5 * 1e6) + 2 * 0.02
    assert model(client, server).round_time(0, 1, 0.5) == pytest.approx(expected, rel=1e-12)


def test_a_client_has_no_more_than_its_own_rate_whatever_its_share():
    client = ClientProfile("a", flops=1e9, uplink=1e6)
    both = [model(client, ServerProfile(flops=1e11, uplink=up)).round_time(0, 0, 0.9) for up in (1e8, 1e9)]
    assert both[0] == pytest.approx(both[1], rel=1e-12)


def test_measured_seconds_stand_in_for_flops_and_are_stretched_by_the_slowdown():
    cut = CutCost(
        "layer", 1.0, 1.0, 1.0, 0.0, 0.0, 0.0,
        client_forward_seconds=0.01, client_backward_seconds=0.02, server_seconds=0.03,
    )  # fmt: skip
    costs = Costs((cut,), (2,), (5,))
    times = LatencyModel(costs, [ClientProfile("a", slowdown=4)], ServerProfile())
    assert times.round_time(0, 0, 1.0) == pytest.approx(5 * 2 * (4 * 0.03 + 0.03))


def test_a_speed_that_is_neither_given_nor_measured_is_asked_for():
    with pytest.raises(ValueError, match="client 'a' has no `flops`"):
        model(ClientProfile("a"), ServerProfile(flops=1e9)).round_time(0, 0, 1.0)
    with pytest.raises(ValueError, match="the server has no `flops`"):
        model(ClientProfile("a", flops=1e9), ServerProfile()).round_time(0, 0, 1.0)


@pytest.mark.parametrize("seed", range(40))
def test_the_least_share_is_where_the_round_takes_just_as_long(seed):
    costs, clients, server = instance(seed)
    times, rng = LatencyModel(costs, clients, server), random.Random(seed)
    for k in range(len(clients)):
        for cut in range(len(costs.cuts)):
            share = 10 ** rng.uniform(-3, 0)
            target = times.round_time(k, cut, share)
            least = float(times.least_shares(target)[k, cut])
            assert least <= share * (1 + 1e-6)
            assert times.round_time(k, cut, max(least, 1e-12)) <= target * (1 + 1e-6)
            if least > 1e-9:  # with less it takes longer, unless its own rate was the limit
                assert times.round_time(k, cut, 0.99 * least) > target * (1 - 1e-9)


def test_what_even_the_whole_link_cannot_reach_needs_an_infinite_share():
    times = model(ClientProfile("a", flops=1e9, uplink=1e6), ServerProfile(flops=1e11, uplink=1e8))
    assert math.isinf(times.least_shares(0.99 * times.round_time(0, 0, 1.0))[0, 0])
    assert math.isfinite(times.least_shares(1.01 * times.round_time(0, 0, 1.0))[0, 0])


def test_memory_rules_out_cuts_and_says_so_when_none_is_left():
    assert model(ClientProfile("a", flops=1e9, memory=1.2e6), ServerProfile()).fits(0) == [0, 1]
    assert model(ClientProfile("a", flops=1e9, memory=1.0e6), ServerProfile()).fits(0) == [1]
    tight = LatencyModel(Costs((CUT,), (10,), (1,)), [ClientProfile("tiny", flops=1, memory=1e6)], ServerProfile())
    with pytest.raises(InfeasibleError, match=r"memory=1e\+06 bytes of client 'tiny' fits no cut.*1100000 bytes"):
        tight.fits(0)
