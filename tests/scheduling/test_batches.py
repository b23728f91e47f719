from __future__ import annotations

import itertools
import random

import pytest

from lightning_edgesplit.scheduling.policies.batches import apportion, shifts


@pytest.mark.parametrize("seed", range(40))
def test_no_sample_is_better_placed_with_another_client(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 5)
    weights = [10 ** rng.uniform(-2, 2) for _ in range(count)]
    least = [rng.randint(1, 4) for _ in range(count)]
    most = [low + rng.randint(0, 20) for low in least]
    total = rng.randint(sum(least), sum(most))
    found = apportion(weights, total, least, most)
    assert sum(found) == total
    assert all(low <= own <= high for own, low, high in zip(found, least, most, strict=True))
    # the oracle: in proportion means that Σ b²/w is least; with one sample moved it is no less, but for the rounding
    for giver, taker in itertools.permutations(range(count), 2):
        if found[giver] > least[giver] and found[taker] < most[taker]:
            assert found[giver] / weights[giver] - 1 / weights[giver] <= (found[taker] + 1) / weights[taker] + 1e-9


def test_a_proportion_that_is_whole_is_met():
    assert apportion([1.0, 2.0, 5.0], 16, [1, 1, 1], [99, 99, 99]) == (2, 4, 10)
    assert apportion([1.0, 2.0, 5.0], 16, [1, 1, 1], [99, 99, 7]) == (3, 6, 7)


def test_what_is_left_of_rounding_goes_to_the_largest_fractions_then_to_the_first():
    assert apportion([1.0, 1.0, 1.0], 4, [1, 1, 1], [9, 9, 9]) == (2, 1, 1)


@pytest.mark.parametrize(("total", "least", "most"), [(1, [1, 1], [9, 9]), (19, [1, 1], [9, 9]), (5, [1, 4], [9, 3])])
def test_bounds_that_allow_no_such_sum_have_no_answer(total, least, most):
    assert apportion([1.0, 1.0], total, least, most) is None


def test_shifts_halve_what_goes_from_one_to_another_within_the_bounds():
    # 0 gives first and takes last: of its 6 samples it may give 5, of which 1 may take 4
    assert list(shifts([6, 2], [0, 1], [1, 2], [8, 6])) == [(2, 6), (4, 4), (5, 3)]
    assert list(shifts([3, 3], [1, 0], [3, 2], [9, 4])) == [(4, 2)]
