"""Trained weights on the wire at the ends of rounds, with fewer bits than they have.

The server keeps the aggregate w in full precision. A client gets Q(w), Q being the rounding to bfloat16 or to 8-bit
integers, trains from w̃ = Q(w), and returns the change of its weights, Q(w_k − w̃), so that the server's mean is

    w ← Σ_k (n_k / n) (w + Q(w_k − w̃))

That clients return quantised changes is FedPAQ's (Reisizadeh et al. 2020, arXiv:1909.13014, Algorithm 1). Ours: the way
down is rounded too (theirs is exact), and since a change is relative to what its client really had, that rounding never
gets into w, as in mixed-precision training with a full-precision copy of the weights (Micikevicius et al. 2018,
arXiv:1710.03740, §3.1); Q rounds to the nearest (theirs is unbiased, at random) and has a range per row; the mean has
the weights n_k / n.

What the optimizer does not change goes as it is (`runtime.exchange`): frozen parameters seldom travel, and buffers are
small, and of a batch norm's variance a change that is rounded could make a negative one.

A tensor of another type than its own says how it was narrowed: bfloat16, or uint8 and then the ranges of its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from lightning_edgesplit.runtime.compression import from_levels, squares, to_levels
from lightning_edgesplit.splitting.narrowing import narrows, rows_of


def narrow(tensor: Tensor, how: str) -> list[Tensor]:
    """What travels of a tensor.

    Args:
        tensor: A trained weight, or the change of one.
        how: One of `WEIGHT_COMPRESSIONS`.

    Returns:
        The tensor as it is, where fewer bits would not make it smaller; as bfloat16; or as 8-bit integers, of the same
        shape, and low and scale of each row, [2, rows].
    """
    if not narrows(tensor, how):
        return [tensor]
    if how == "bfloat16":
        return [tensor.to(torch.bfloat16)]
    levels, ranges = to_levels(tensor.reshape(rows_of(tensor), -1))
    # in the memory format that the tensor has: layers may compute with it
    return [torch.empty_like(tensor, dtype=torch.uint8).copy_(levels.view(tensor.shape)), ranges]


def wide(came: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The inverse of `narrow`, as far as there is one, of a tensor of that type."""
    if len(came) == 1:
        return came[0].to(dtype)
    levels, ranges = came
    values = from_levels(levels.reshape(ranges.shape[1], -1), ranges)
    return torch.empty_like(levels, dtype=dtype).copy_(values.view(levels.shape))


def take(rest: Iterator[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The next of the tensors that came, as `narrow` had returned it.

    Args:
        rest: What came.
        dtype: The type that it has at home.

    Raises:
        ValueError: If there is none, or none that can be.
    """
    tensor = next(rest, None)
    if tensor is None:
        raise ValueError("a weight did not come")
    if tensor.dtype == dtype:
        return [tensor]
    if not dtype.is_floating_point or tensor.dtype not in (torch.bfloat16, torch.uint8):
        raise ValueError(f"a weight of type {dtype} came as {tensor.dtype}")
    if tensor.dtype == torch.bfloat16:
        return [tensor]
    ranges = next(rest, None)
    if ranges is None or ranges.shape != (2, rows_of(tensor)):
        raise ValueError("a weight as 8-bit integers came without its ranges")
    return [tensor, ranges]


class Masters:
    """The aggregate that all clients of a round begin with: exact, and as it travels.

    Args:
        tensors: The whole model, by name.
        resting: Names of what goes as it is.
        how: One of `WEIGHT_COMPRESSIONS`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], resting: Collection[str], how: str) -> None:
        self._tensors, self._how = tensors, how
        self._narrowed = {name for name, tensor in tensors.items() if name not in resting and narrows(tensor, how)}
        self._sent: dict[str, list[Tensor]] = {}

    def sent(self, name: str) -> list[Tensor]:
        """What clients are sent of the tensor of that name; made when it is asked for first."""
        if name not in self._narrowed:
            return [self._tensors[name]]
        if name not in self._sent:
            self._sent[name] = narrow(self._tensors[name], self._how)
        return self._sent[name]

    def model_of(self, name: str, rest: Iterator[Tensor]) -> Tensor:
        """A client's tensor of that name, of which the next in `rest` came: itself, or its narrowed change.

        Where clients begin with less than the master, it counts as the master and the change.
        """
        master = self._tensors[name]
        came = take(rest, master.dtype)
        if name not in self._narrowed:
            return came[0]
        own = wide(came, master.dtype)
        return master + (own if came[0].dtype != master.dtype else own - wide(self.sent(name), master.dtype))


class Begun:
    """What a client began its round with, of the weights that came narrowed: as they came, which takes less memory.

    Args:
        how: One of `WEIGHT_COMPRESSIONS`.
    """

    def __init__(self, how: str = "none") -> None:
        self._how = how
        self._came: dict[str, list[Tensor]] = {}

    def take(self, name: str, rest: Iterator[Tensor], dtype: torch.dtype) -> Tensor:
        """The next weight that came.

        Raises:
            ValueError: If it cannot be one of that type.
        """
        if self._how == "none":
            return next(rest)
        came = take(rest, dtype)
        if came[0].dtype != dtype:
            self._came[name] = came
        return wide(came, dtype)

    def returned(self, weights: Mapping[str, Tensor]) -> tuple[list[Tensor], float | None]:
        """What goes back at the end of the round: of what came narrowed the change, narrowed in the same way.

        Args:
            weights: By name, as they are now.

        Returns:
            The tensors, and ‖d − d̂‖ / ‖d‖ over all changes d; None: there is none.
        """
        tensors: list[Tensor] = []
        lost = norm = 0.0
        for name, weight in weights.items():
            came = self._came.get(name)
            if came is None:
                tensors.append(weight)
                continue
            change = weight - wide(came, weight.dtype)
            sent = narrow(change, self._how)
            squared = squares([change], [wide(sent, weight.dtype)])
            lost, norm = lost + squared[0], norm + squared[1]
            tensors += sent
        return tensors, (lost / norm) ** 0.5 if norm else None
