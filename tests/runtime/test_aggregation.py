from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from lightning_edgesplit.runtime.aggregation import MeanOfModels, RunningMean, weighted_mean
from lightning_edgesplit.runtime.states import MeanOfStates


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_is_the_exact_one_to_rounding(kind):
    tensors, samples = [torch.randn(5, 3, dtype=torch.float64).to(kind) for _ in range(4)], [3, 1, 7, 2]
    mean = weighted_mean(tensors, samples)
    assert mean.dtype == kind
    exact = [
        float(sum(n * Fraction(float(w)) for n, w in zip(samples, column, strict=True)) / sum(samples))
        for column in zip(*(tensor.flatten() for tensor in tensors), strict=True)
    ]
    expected = torch.tensor(exact, dtype=torch.float64).reshape(5, 3)
    rounding = 8 if kind is torch.float64 else 1  # nothing is lost of shorter types before the mean is rounded
    torch.testing.assert_close(mean, expected.to(kind), rtol=rounding * torch.finfo(kind).eps, atol=0)


@pytest.mark.parametrize("tensor", [torch.randn(7), torch.randn(7, dtype=torch.float64), torch.tensor(3)])
def test_one_tensor_is_its_own_mean_and_stays_as_it_was(tensor):
    before = tensor.clone()
    mean = weighted_mean([tensor], [3])
    mean.add_(1)
    assert torch.equal(tensor, before)
    assert torch.equal(mean, before + 1)


def test_counters_are_rounded_and_what_is_equal_stays():
    assert weighted_mean([torch.tensor(4), torch.tensor(7)], [1, 1]).item() == 6
    assert weighted_mean([torch.tensor(10**9 + 1)] * 3, [3, 5, 7]).item() == 10**9 + 1


def test_a_copy_goes_on_alone():
    mean = RunningMean()
    for value in (1.0, 2.0):
        mean.add(torch.tensor([value]), 1)
    other = mean.copy()
    other.add(torch.tensor([30.0]), 1)
    assert mean.result().item() == 1.5
    assert other.result().item() == 11


def test_a_model_without_samples_has_no_say():
    mean = MeanOfModels(["a"])
    mean.add({"a": torch.tensor([float("nan")])}, 0)
    assert not mean.samples
    mean.add({"a": torch.tensor([2.0])}, 4)
    assert mean.means["a"].result().item() == 2


def test_states_are_averaged_over_those_that_have_the_entry():
    mean = MeanOfStates()
    mean.add({"a": {"step": 3, "m": torch.tensor([1.0])}}, 1)
    mean.add({"a": {"step": 5, "m": None}, "b": {"m": torch.tensor([4.0])}}, 2)
    mean.add({"a": {"step": 5, "m": torch.tensor([4.0])}}, 2)
    assert mean.result() == {"a": {"step": 3, "m": torch.tensor([3.0])}, "b": {"m": torch.tensor([4.0])}}


def test_there_is_no_mean_of_nothing():
    with pytest.raises(ValueError, match="no client took part"):
        RunningMean().result()
