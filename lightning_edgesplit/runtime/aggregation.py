"""The weighted mean of models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def weighted_mean(tensors: Sequence[Tensor], samples: Sequence[float]) -> Tensor:
    """Σ_k (n_k / n) w_k, the server's update in FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).

    Args:
        tensors: w_k, one per client, all of one shape. Integers (counters of batch norm) are averaged in double
            precision and rounded, so that what is equal everywhere stays what it is.
        samples: n_k, the samples that client k trained on in this round.

    Raises:
        ValueError: If there is not one number per tensor.
    """
    shares = [n / sum(samples) for n in samples]
    exact = tensors[0].is_floating_point()
    terms = [share * (w if exact else w.double()) for share, w in zip(shares, tensors, strict=True)]
    mean = sum(terms[1:], start=terms[0])
    return mean if exact else mean.round().to(tensors[0].dtype)
