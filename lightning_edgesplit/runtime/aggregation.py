"""The weighted mean of models, of all at once or of one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy

import torch
from torch import Tensor


class RunningMean:
    """Σ_k (n_k / n) w_k, the server's update in FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).

    Tensors are added one by one, so that none but the sum is kept. The sum is in double precision, where the products
    n_k w_k of single-precision weights are exact: the same tensors in the same order give the same bits, whoever adds
    them. What is equal everywhere stays what it is.
    """

    def __init__(self) -> None:
        self._only: Tensor | None = None  # a sum is made of it when there is a second
        self._sum: Tensor | None = None
        self._weight: float = 0

    def add(self, tensor: Tensor, weight: float) -> None:
        """Takes in w_k, and n_k, the samples that client k trained on. The tensor is not changed, nor may others."""
        with torch.no_grad():
            if self._sum is not None:
                self._sum.add_(tensor if tensor.is_floating_point() else tensor.double(), alpha=weight)
            elif self._only is None:
                self._only, self._type = tensor, tensor.dtype
            else:
                self._sum = self._only.to(torch.float64, copy=True).mul_(self._weight)
                self._sum.add_(tensor if tensor.is_floating_point() else tensor.double(), alpha=weight)
                self._only = None
        self._weight += weight

    def copy(self) -> RunningMean:
        """One that goes on from here without changing this one."""
        other = copy(self)
        other._sum = None if self._sum is None else self._sum.clone()
        return other

    def result(self) -> Tensor:
        """The mean, of the tensors' own type. Integers (counters of batch norm) are rounded.

        Raises:
            ValueError: If nothing was added.
        """
        if self._only is not None:
            return self._only.detach().clone()
        if self._sum is None:
            raise ValueError("there is no mean of nothing: no client took part.")
        mean = self._sum / self._weight
        return (mean if self._type.is_floating_point else mean.round()).to(self._type)


class MeanOfModels:
    """The weighted mean of models, each of which is added and forgotten."""

    def __init__(self, names: Iterable[str]) -> None:
        self.means = {name: RunningMean() for name in names}
        self.samples = 0

    def add(self, model: dict[str, Tensor], samples: int) -> None:
        """Takes in a model, by name, and the samples that it was trained on; one without any has no say."""
        if samples:
            self.samples += samples
            for name, mean in self.means.items():
                mean.add(model[name], samples)

    def copy(self) -> MeanOfModels:
        """One that goes on from here without changing this one."""
        other = copy(self)
        other.means = {name: mean.copy() for name, mean in self.means.items()}
        return other


def weighted_mean(tensors: Sequence[Tensor], samples: Sequence[float]) -> Tensor:
    """Σ_k (n_k / n) w_k of tensors that are all there, see `RunningMean`.

    Args:
        tensors: w_k, one per client, all of one shape.
        samples: n_k, the samples that client k trained on in this round.

    Raises:
        ValueError: If there is not one number per tensor.
    """
    mean = RunningMean()
    for tensor, n in zip(tensors, samples, strict=True):
        mean.add(tensor, n)
    return mean.result()
