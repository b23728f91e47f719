from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from lightning_edgesplit.comparing.statistics import quantile, summary


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 30, 31, 50, 200])
def test_so_much_of_students_t_lies_below_the_quantile(freedom):
    t = quantile(freedom)
    x = np.linspace(0, t, 200_001)
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(log) * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert 0.5 + np.trapezoid(density, x) == pytest.approx(0.975, abs=2e-6)


def test_a_summary_is_that_of_the_standard_library():
    values = [3.0, 4.5, 7.25, 1.0]
    made = summary(values)
    assert made.mean == pytest.approx(statistics.mean(values))
    assert made.std == pytest.approx(statistics.stdev(values))
    assert made.half == pytest.approx(3.182446305 * statistics.stdev(values) / 2, rel=1e-9)
    assert summary([]) is None
    assert summary([2.0]).std is None
