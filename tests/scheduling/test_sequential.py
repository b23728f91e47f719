from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from scheduling_samples import instance, round_of, seconds

from lightning_edgesplit.scheduling import Costs, InfeasibleError, SequentialSplit


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_best_single_one_and_turns_follow_each_other(seed):
    costs, clients, server = instance(seed, clients=3, count=5)
    server = replace(server, flops=10 ** (9 + seed % 3))  # a weak one matters
    turns = {
        cut.name: [round_of(seconds(costs, clients, server, k, at, 1.0), costs.steps[k]) for k in range(3)]
        for at, cut in enumerate(costs.cuts)
        if cut.name != "end"
    }
    best = min(turns, key=lambda name: sum(turns[name]))
    plan = SequentialSplit().plan(costs, clients, server)
    assert plan.cuts == (best,) * 3
    assert plan.predicted == pytest.approx(list(itertools.accumulate(turns[best])))
    assert plan.iterations == pytest.approx([sum(turns[best])])
    assert (plan.server_model, plan.shares) == ("sequential", (1.0, 1.0, 1.0))


def test_who_has_too_little_memory_for_the_nearest_single_cut_is_named_with_what_it_lacks():
    costs, clients, server = instance(1, clients=2, count=3)
    first, second, end = costs.cuts
    # client 0 holds the first cut alone, client 1 the second alone and lacks less for the first than client 0 for that
    first = replace(first, memory_fixed=900, memory_per_sample=0)
    second = replace(second, memory_fixed=1000, memory_per_sample=-1)  # the batch makes the difference
    costs = Costs((first, second, end), (8, 200), costs.steps)
    clients = [replace(clients[0], memory=950), replace(clients[1], memory=850)]
    with pytest.raises(InfeasibleError, match=r"policy='sequential' wants: at 'layer1', .* 'client-0' lacks 42 bytes"):
        SequentialSplit().plan(costs, clients, server)


def test_without_a_cut_nothing_can_be_split():
    costs, clients, server = instance(1, clients=2, count=3)
    with pytest.raises(ValueError, match="policy='sequential' needs a cut"):
        SequentialSplit().plan(replace(costs, cuts=costs.cuts[-1:]), clients, server)
