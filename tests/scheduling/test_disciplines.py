"""Rounds by hand: who sends, computes and is served when, under every discipline and order."""

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
    InfeasibleError,
    LatencyModel,
    ServerProfile,
    simulate,
)
from lightning_edgesplit.scheduling.bound import lower_bound
from lightning_edgesplit.scheduling.plan import DISCIPLINES, ORDERS
from lightning_edgesplit.scheduling.simulate import simulated_seconds
from lightning_edgesplit.scheduling.trace import Conditions, Trace


def problem(*speeds: float, batch: int = 1, steps: int = 1, uplink=None, downlink=None, **cost: float):
    """A model with one cut, clients of so many FLOP/s, a server of 1 FLOP/s, links of so many bytes/s.

    A sample takes 1 FLOP forward, 1 backward and 1 on the server, and no bytes, unless `cost` says otherwise.
    """
    values = {"client_forward": 1, "client_backward": 1, "server": 1, "smashed": 0, "gradient": 0, "weights": 0, **cost}
    clients = [ClientProfile(f"client-{k}", flops=speed) for k, speed in enumerate(speeds)]
    bits = [None if rate is None else 8 * rate for rate in (uplink, downlink)]
    costs = Costs((CutCost("cut", **values),), (batch,) * len(clients), (steps,) * len(clients))
    return costs, clients, ServerProfile(flops=1, uplink=bits[0], downlink=bits[1])


def simulated(instance_, trace: Trace | None = None, start: float = 0.0, **changes):
    costs, clients, server = instance_
    plan = replace(Fixed(("cut",) * len(clients)).plan(costs, clients, server), **changes)
    return simulate(LatencyModel(costs, clients, server), plan, trace, start)


def bars(simulated_, client: int, phase: str) -> list[tuple[float, float]]:
    own = [bar for bar in simulated_.bars if bar.client == client and bar.phase == phase and not bar.on_server]
    return [(bar.start, bar.end) for bar in own]


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discipline", "uplinks", "ends"),
    [
        # half of 1 byte/s each: 4 s for 2 bytes
        ("static", ([(1, 5)], [(2, 6)]), (7, 9)),
        # one second alone, then half each: the first is through at 4, the second has one byte left
        ("fair", ([(1, 4)], [(2, 5)]), (6, 8)),
        # who has 5 s to go from here overtakes who has 4
        ("longest_first", ([(1, 5)], [(2, 4)]), (7, 7)),
    ],
)
def test_two_clients_on_one_uplink(discipline, uplinks, ends):
    two = problem(1, 0.5, uplink=1, smashed=2)
    round_ = simulated(two, disciplines=(discipline, "static"))
    assert (bars(round_, 0, "uplink"), bars(round_, 1, "uplink")) == uplinks
    assert round_.ends == ends


@pytest.mark.parametrize(
    ("discipline", "downlinks", "ends"),
    [
        ("static", ([(2, 6)], [(3, 7)]), (7, 9)),
        ("fair", ([(2, 5)], [(3, 6)]), (6, 8)),
        ("longest_first", ([(2, 6)], [(3, 5)]), (7, 7)),
    ],
)
def test_two_clients_on_one_downlink(discipline, downlinks, ends):
    two = problem(1, 0.5, downlink=1, gradient=2)  # served 1–2 and 2–3
    round_ = simulated(two, disciplines=("static", discipline))
    assert (bars(round_, 0, "downlink"), bars(round_, 1, "downlink")) == downlinks
    assert round_.ends == ends


def test_who_is_not_let_onto_the_link_waits_for_its_grant():
    three = problem(1, 1, 1, uplink=1, smashed=2)
    round_ = simulated(three, disciplines=("longest_first", "static"))  # equally urgent: in the order of their numbers
    assert [bars(round_, k, "grant") for k in range(3)] == [[], [(1, 3)], [(1, 5)]]
    assert [bars(round_, k, "uplink") for k in range(3)] == [[(1, 3)], [(3, 5)], [(5, 7)]]
    assert round_.ends == (5, 7, 9)


def test_a_clients_own_slow_link_leaves_the_rest_to_the_next_one():
    costs, clients, server = problem(0.5, 1, uplink=3, smashed=6)
    clients[0] = replace(clients[0], uplink=8.0)  # 1 byte/s of the 3
    round_ = simulated((costs, clients, server), disciplines=("longest_first", "static"))
    # the fast one has 3 for itself from 1 to 2 and 2 from then on: 3 of 6 bytes left, 1.5 s more
    assert bars(round_, 0, "uplink") == [(2, 8)]
    assert bars(round_, 1, "uplink") == [(1, 3.5)]


def test_models_share_the_links_too_and_take_their_time_at_both_ends():
    two = problem(1, 1, uplink=1, downlink=1, weights=4)
    round_ = simulated(two, disciplines=("fair", "longest_first"))
    # down one after the other: 0–4, 4–8; steps 4–5–6–7 and 8–9–10–11; up 7–11 and 11–15, not at the same time
    assert [bars(round_, k, "download") for k in range(2)] == [[(0, 4)], [(4, 8)]]
    assert [bars(round_, k, "upload") for k in range(2)] == [[(7, 11)], [(11, 15)]]
    assert round_.aggregation == 4  # 2 clients × 1 weight × 2 FLOP at 1 FLOP/s
    assert round_.round_time == 19


# ---- server ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "ends"), [("arrival", (6, 11, 16)), ("longest_first", (6, 15, 12))])
def test_the_server_serves_who_came_first_or_who_has_the_longest_way_to_go(order, ends):
    # forward 1, 2 and 3 s, backward alike, server 4 s: served 1–5, and then 5–9 and 9–13 whom the order says
    assert simulated(problem(1, 1 / 2, 1 / 3, server=4), order=order).ends == pytest.approx(ends)


def test_a_divided_server_serves_all_at_once_at_their_fractions():
    round_ = simulated(problem(1, 0.5), server_shares=(0.25, 0.5))
    assert bars(round_, 0, "server") == [(1, 5)]
    assert bars(round_, 1, "server") == [(2, 4)]


# ---- micro-batches ---------------------------------------------------------------------------------------------------


def test_micro_batches_overlap_all_forwards_then_the_backwards_in_order():
    one = problem(1, batch=2, uplink=1, downlink=1, smashed=2, gradient=1)
    assert simulated(one).ends == (2 + 4 + 2 + 2 + 2,)
    round_ = simulated(one, micro_batches=(2,))
    assert bars(round_, 0, "forward") == [(0, 1), (1, 2)]
    assert bars(round_, 0, "uplink") == [(1, 3), (3, 5)]
    assert bars(round_, 0, "server") == [(3, 4), (5, 6)]
    assert bars(round_, 0, "downlink") == [(4, 5), (6, 7)]
    assert bars(round_, 0, "backward") == [(5, 6), (7, 8)]
    assert round_.ends == (8,)


def test_a_gradient_that_is_back_early_waits_until_all_forward_passes_are_done():
    round_ = simulated(problem(1, batch=2, client_forward=3), micro_batches=(2,))
    assert bars(round_, 0, "server") == [(3, 4), (6, 7)]
    assert bars(round_, 0, "backward") == [(6, 7), (7, 8)]


def test_a_batch_is_divided_as_evenly_as_it_goes_and_each_part_has_its_own_frame():
    three = problem(1, batch=3, uplink=1, smashed=1, step_up=1)
    assert bars(simulated(three, micro_batches=(2,)), 0, "uplink") == [(2, 5), (5, 7)]  # 2 + 1 samples, 1 byte each
    assert bars(simulated(three, micro_batches=(8,)), 0, "uplink") == [(1, 3), (3, 5), (5, 7)]


def test_the_next_step_begins_when_the_last_backward_pass_is_done():
    round_ = simulated(problem(1, batch=2, steps=2), micro_batches=(2,))
    assert bars(round_, 0, "forward") == [(0, 1), (1, 2), (4, 5), (5, 6)]
    assert round_.ends == (8,)


# ---- compression -----------------------------------------------------------------------------------------------------


def test_int8_sends_a_byte_per_value_and_pays_four_flop_for_each_on_both_sides():
    one = problem(8, uplink=1, downlink=1, client_forward=8, client_backward=16, server=1, smashed=8, gradient=4)
    whole, small = simulated(one), simulated(one, compression="int8")
    assert whole.seconds[0] == {"forward": 1, "uplink": 8, "server": 1, "downlink": 4, "backward": 2}
    # 2 values up and 1 down: 8 and 4 FLOP more on each side
    expected = {"forward": 2, "uplink": 2, "server": 1 + 12, "downlink": 1, "backward": 2.5}
    assert small.seconds[0] == expected


def test_int8_leaves_what_is_not_a_floating_point_number_as_large_as_it_is():
    one = problem(1e9, uplink=1, downlink=1, smashed=8, gradient=8, smashed_int8=5, gradient_int8=3, step_up=1)
    seconds = simulated(one, compression="int8").seconds[0]
    assert (seconds["uplink"], seconds["downlink"]) == (6, 3)


# ---- traces ----------------------------------------------------------------------------------------------------------


def trace(*changes: tuple[float, Conditions], client: str = "client-0") -> Trace:
    times, conditions = zip(*changes, strict=True)
    return Trace((client,), {client: times}, {client: conditions})


def test_a_client_that_gets_slower_in_mid_computation_takes_longer_for_the_rest():
    changes = trace((0, Conditions()), (2, Conditions(slowdown=2)), (5, Conditions(slowdown=1)))
    # 4 s of work: 2 done by 2, 1.5 of the other two by 5, 0.5 more
    assert bars(simulated(problem(1, client_forward=4), changes), 0, "forward") == [(0, 5.5)]


def test_a_link_that_changes_in_mid_transfer_takes_another_time_for_the_rest():
    one = problem(1, uplink=4, smashed=8)
    changes = trace((0, Conditions()), (2, Conditions(uplink=8.0)))  # 4 bytes by then, 1 byte/s from then on
    for discipline in DISCIPLINES:
        assert bars(simulated(one, changes, disciplines=(discipline, "static")), 0, "uplink") == [(1, 6)]


def test_a_client_that_is_away_pauses_and_goes_on_when_it_returns():
    one = problem(1, uplink=1, smashed=2, client_forward=2)
    away, back = Conditions(available=False), Conditions()
    round_ = simulated(one, trace((0, back), (1, away), (3, back), (5, away), (9, back)))
    assert bars(round_, 0, "forward") == [(0, 4)]  # 0–1 and 3–4
    assert bars(round_, 0, "uplink") == [(4, 10)]  # 4–5 and 9–10
    assert round_.ends == (12,)


def test_a_client_that_never_returns_is_an_error_that_names_it():
    away, here = Conditions(available=False), Conditions()
    for when in (0.5, 1.5):  # while it computes, while it sends
        with pytest.raises(InfeasibleError, match="the round of client-0 never ends"):
            simulated(problem(1, uplink=1, smashed=2), trace((0, here), (when, away)))


def test_a_round_may_begin_in_the_middle_of_a_trace():
    changes = trace((0, Conditions(slowdown=5)), (10, Conditions()), (12, Conditions(slowdown=2)))
    assert bars(simulated(problem(1, client_forward=3), changes, start=11), 0, "forward") == [(0, 5)]


@pytest.mark.parametrize(
    ("start", "change"), [(47.65969541523558, 116.67640789100624), (33.98904064162435, 106.03708752908294)]
)
def test_a_change_is_met_whatever_the_rounding(start, change):
    assert start + (change - start) < change  # the trap: seconds since the beginning, turned back into the trace's
    changes = trace((0, Conditions()), (change, Conditions(slowdown=3, uplink=8.0)))
    one = problem(1, client_forward=2 * (change - start), uplink=2, smashed=2)
    round_ = simulated(one, changes, start=start)
    assert bars(round_, 0, "forward") == [(0, pytest.approx(4 * (change - start)))]
    assert round_.seconds[0]["uplink"] == pytest.approx(2)


# ---- identities ------------------------------------------------------------------------------------------------------


def settings(count: int):
    """Every way in which links are shared, arrivals are served and batches divided."""
    both = itertools.product(itertools.product(DISCIPLINES, repeat=2), ORDERS, (1, 3))
    return [{"disciplines": d, "order": o, "micro_batches": (m,) * count} for d, o, m in both]


def plans(seed: int, count: int):
    costs, clients, server = instance(seed, clients=count)
    model, plan = LatencyModel(costs, clients, server), EdgeSplit().plan(costs, clients, server)
    return model, [replace(plan, **changes) for changes in settings(count)]


@pytest.mark.parametrize("seed", range(10))
def test_static_shares_of_links_and_server_are_the_formula(seed):
    costs, clients, server = instance(seed, clients=4)
    plan = replace(EdgeSplit().plan(costs, clients, server), server_shares=(0.25,) * 4)
    assert simulate(LatencyModel(costs, clients, server), plan).ends == pytest.approx(plan.predicted, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_input_gives_the_same_bits(seed):
    model, some = plans(seed, 4)
    for plan in some:
        once = simulate(model, plan)
        assert once == simulate(model, plan)
        assert once.round_time == simulated_seconds(model, plan)


@pytest.mark.parametrize("seed", range(12))
def test_no_round_is_shorter_than_its_lower_bound(seed):
    model, some = plans(seed, 2 + seed % 4)
    for plan in some:
        assert simulate(model, plan).round_time >= lower_bound(model, plan) * (1 - 1e-9)


def test_the_lower_bound_is_reached_by_a_client_alone_and_by_a_link_that_is_never_idle():
    costs, clients, server = instance(3, clients=1)
    plan = replace(Fixed(("layer1",)).plan(costs, clients, server), disciplines=("fair", "longest_first"))
    model = LatencyModel(costs, clients, server)
    assert simulate(model, plan).round_time == pytest.approx(lower_bound(model, plan))
    # three equal ones: 1 s forward, 6 s on the link together, then 1 s server and 1 s backward for the last
    three = problem(1, 1, 1, uplink=1, smashed=2)
    plan = replace(Fixed(("cut",) * 3).plan(*three), disciplines=("longest_first", "static"))
    assert lower_bound(LatencyModel(*three), plan) == simulate(LatencyModel(*three), plan).round_time == 9


def test_the_lower_bound_with_micro_batches_counts_what_cannot_overlap():
    one = problem(1, batch=2, uplink=1, downlink=1, smashed=2, gradient=1)
    plan = replace(Fixed(("cut",)).plan(*one), micro_batches=(2,))
    # 1 s until the first of 4 bytes may go, and 1 s each of server, downlink and backward behind the last
    assert lower_bound(LatencyModel(*one), plan) == simulate(LatencyModel(*one), plan).round_time == 8


@pytest.mark.parametrize("seed", range(6))
def test_waiting_is_never_counted_as_computing(seed):
    model, some = plans(seed, 4)
    costs, clients = model.costs, model.clients
    for plan in some:
        for k, seconds in enumerate(simulate(model, plan).seconds):
            cut = costs[plan.cuts[k]]
            flop = costs.steps[k] * costs.batch[k] * (cut.client_forward + cut.client_backward)
            assert seconds["forward"] + seconds["backward"] == pytest.approx(flop / clients[k].flops)


def test_twice_the_work_takes_twice_the_time():
    model, some = plans(1, 3)
    cuts = tuple(replace(c, client_forward=2 * c.client_forward, server=2 * c.server) for c in model.costs.cuts)
    double = LatencyModel(replace(model.costs, cuts=cuts), model.clients, model.server)
    for plan in some:
        before, after = simulate(model, plan), simulate(double, plan)
        assert after.server_seconds == pytest.approx(2 * before.server_seconds)
        assert [s["forward"] for s in after.seconds] == pytest.approx([2 * s["forward"] for s in before.seconds])
        assert [s["backward"] for s in after.seconds] == pytest.approx([s["backward"] for s in before.seconds])


def test_an_unknown_speed_is_an_error_and_not_0_seconds():
    costs, clients, server = problem(1, 1)
    plan = Fixed(("cut", "cut")).plan(costs, clients, server)
    for unknown in ([clients[0], ClientProfile("b")], server), (clients, ServerProfile()):
        with pytest.raises(ValueError, match="has no `flops`, and this machine's speed was not measured"):
            simulate(LatencyModel(costs, *unknown), plan)
