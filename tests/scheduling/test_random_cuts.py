from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from scheduling_samples import instance

from lightning_edgesplit.scheduling import RandomCuts, for_round, make_policy


def test_the_same_seed_and_round_draw_the_same_and_others_do_not():
    problem = instance(1, clients=6, count=5)

    def drawn(seed, epoch, number):
        return for_round(make_policy({"policy": "random", "seed": seed}), epoch, number).plan(*problem).cuts

    assert drawn(3, 1, 2) == drawn(3, 1, 2)
    assert len({drawn(3, 1, 2), drawn(4, 1, 2), drawn(3, 2, 2), drawn(3, 1, 3)}) == 4


def test_what_a_client_draws_does_not_depend_on_who_else_takes_part():
    costs, clients, server = instance(1, clients=6, count=5)
    everyone = RandomCuts().plan(costs, clients, server).cuts
    some = replace(costs, batch=costs.batch[2:4], steps=costs.steps[2:4])
    assert RandomCuts().plan(some, clients[2:4], server).cuts == everyone[2:4]


def test_every_cut_that_fits_is_as_likely_and_no_other_is_drawn():
    costs, clients, server = instance(1, clients=1, count=5)
    sizes = [0.0, 1e9, 0.0, 0.0, 0.0]  # the second fits nobody
    costs = replace(
        costs,
        cuts=tuple(replace(c, memory_fixed=s, memory_per_sample=0) for c, s in zip(costs.cuts, sizes, strict=True)),
    )
    clients = [replace(clients[0], memory=1e6)]
    policy = RandomCuts(seed=5)
    counts = Counter(policy.in_round(0, number).plan(costs, clients, server).cuts[0] for number in range(2000))
    assert set(counts) == {"layer0", "layer2", "layer3", "end"}
    assert all(abs(count - 500) < 100 for count in counts.values()), counts  # five standard deviations


def test_a_seed_that_is_none_is_refused():
    with pytest.raises(ValueError, match="seed='x' of policy='random' must be a whole number from 0"):
        make_policy({"policy": "random", "seed": "x"})
