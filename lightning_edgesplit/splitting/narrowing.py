"""With how many bits trained weights travel at the ends of rounds: which go with fewer, and the bytes that this makes.

`runtime.weights` does it.
"""

from __future__ import annotations

from torch import Tensor

WEIGHT_COMPRESSIONS = ("none", "bfloat16", "int8")
"""How weights may travel."""

_RANGE = 8
"""Bytes of a row's range, two numbers of single precision."""
_TABLE_ROW = 40
"""Bytes that one more tensor, of two dimensions, takes in a frame's table."""


def rows_of(tensor: Tensor) -> int:
    """How many ranges a tensor has as 8-bit integers: one per row (first dimension), one in all for a vector."""
    return tensor.shape[0] if tensor.ndim > 1 else 1


def narrowed_bytes(tensor: Tensor, how: str) -> int:
    """Bytes of a tensor that travels in that way; its own where that would not be fewer, since then it goes as it is.

    Args:
        tensor: A trained weight, or the change of one.
        how: One of `WEIGHT_COMPRESSIONS`.
    """
    if how == "none" or not tensor.is_floating_point():
        return tensor.nbytes
    narrow = 2 * tensor.numel() if how == "bfloat16" else tensor.numel() + _RANGE * rows_of(tensor) + _TABLE_ROW
    return min(narrow, tensor.nbytes)


def narrows(tensor: Tensor, how: str) -> bool:
    """Whether a tensor travels with fewer bits than it has."""
    return narrowed_bytes(tensor, how) < tensor.nbytes
