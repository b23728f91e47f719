from __future__ import annotations

from dataclasses import replace

import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import ASFLCode, ASFLThresholds, ClientProfile, ServerProfile


def drawn(problem, rounds=300, **options):
    """All cuts of client 0 over many rounds."""
    return {ASFLCode(**options).in_round(0, number).plan(*problem).cuts[0] for number in range(rounds)}


def test_of_nine_cuts_the_second_to_the_eighth_are_drawn_as_in_the_published_code():
    problem = instance(2, clients=2, count=10)  # nine, and the end
    assert drawn(problem) == {f"layer{number - 1}" for number in range(2, 9)}


@pytest.mark.parametrize(
    ("cuts", "numbers"),
    [(18, range(4, 17)), (4, range(1, 4)), (3, range(1, 3)), (2, [1]), (1, [1])],  # 2/9 to 8/9 of them, by hand
)
def test_of_other_models_the_cuts_of_that_relative_depth(cuts, numbers):
    assert drawn(instance(2, clients=2, count=cuts + 1)) == {f"layer{number - 1}" for number in numbers}


def test_where_none_of_the_interval_fits_the_nearest_is_taken():
    costs, clients, server = instance(2, clients=1, count=10)
    cuts = tuple(
        replace(cut, memory_fixed=1.0 if i in (0, 8) else 1e9, memory_per_sample=0) for i, cut in enumerate(costs.cuts)
    )
    problem = replace(costs, cuts=cuts), [replace(clients[0], memory=10.0)], server
    assert drawn(problem, first=2, last=4) == {"layer0"}
    assert drawn(problem, first=5, last=8) == {"layer8"}


def test_an_interval_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match="last=2 of policy='asfl-code' must be a whole number from 4 to 9"):
        ASFLCode(first=4, last=2)


@pytest.mark.parametrize(("mbit", "layer"), [(None, 2), (16, 2), (15, 4), (11, 4), (10, 6), (6, 6), (5, 8), (1, 8)])
def test_the_slower_the_link_the_deeper_the_cut(mbit, layer):
    costs, _, _ = instance(2, clients=1, count=10)
    client = ClientProfile("a", flops=1e9, uplink=mbit and mbit * 1e6)
    plan = ASFLThresholds().plan(costs, [client], ServerProfile(flops=1e12))
    assert plan.cuts == (f"layer{layer - 1}",)


def test_the_shared_link_limits_the_speed_and_memory_the_cut():
    costs, _, _ = instance(2, clients=1, count=10)
    client = ClientProfile("a", flops=1e9)
    server = ServerProfile(flops=1e12, uplink=7e6)
    assert ASFLThresholds().plan(costs, [client], server).cuts == ("layer5",)
    cuts = tuple(replace(cut, memory_fixed=float(i), memory_per_sample=0) for i, cut in enumerate(costs.cuts))
    small = replace(client, memory=3.0)
    assert ASFLThresholds().plan(replace(costs, cuts=cuts), [small], server).cuts == ("layer3",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [5, 10, 15]}, "must fall from one to the next"),
        ({"layers": [2, 4]}, "must be one more than thresholds"),
        ({"layers": [2, 4, 6, 10]}, "layers=10 of policy='asfl-thresholds' must be a whole number from 1 to 9"),
        ({"thresholds": ["fast", 10, 5]}, "thresholds='fast' .* must be a number"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ASFLThresholds(**options)
