"""Means over seeds, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_QUANTILES = (
    12.706204736, 4.302652730, 3.182446305, 2.776445105, 2.570581836, 2.446911851, 2.364624252, 2.306004135,
    2.262157163, 2.228138852, 2.200985160, 2.178812830, 2.160368656, 2.144786688, 2.131449546, 2.119905299,
    2.109815578, 2.100922040, 2.093024054, 2.085963447, 2.079613845, 2.073873068, 2.068657610, 2.063898562,
    2.059538553, 2.055529439, 2.051830516, 2.048407142, 2.045229642, 2.042272456,
)  # fmt: skip
"""t_0.975 for 1 to 30 degrees of freedom."""

_NORMAL = 1.959963985  # z_0.975


@dataclass(frozen=True)
class Summary:
    """Some numbers, one per seed, in short.

    Attributes:
        mean: Their mean.
        std: Their standard deviation (n − 1); None of a single one.
        half: Half the width of the mean's 95 % confidence interval (Student's t); None of a single one.
        count: How many there are.
    """

    mean: float
    std: float | None
    half: float | None
    count: int


def summary(values: Sequence[float]) -> Summary | None:
    """Mean, standard deviation and confidence interval; None of no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(mean, None, None, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Summary(mean, std, quantile(n - 1) * std / math.sqrt(n), n)


def quantile(freedom: int) -> float:
    """t_0.975 with so many degrees of freedom: from a table, beyond 30 by its expansion around the normal quantile.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5; its error there is below 1e-6.
    """
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    z, v = _NORMAL, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
