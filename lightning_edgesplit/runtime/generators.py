"""The random generators of a process as plain numbers and tensors, so that a resumed client goes on where it was."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

COUNT = 3
"""Tensors in what `read` returns."""


def read() -> tuple[dict[str, Any], list[Tensor]]:
    """The states of torch's, numpy's and Python's generator: numbers, and `COUNT` tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, own_gauss = random.getstate()
    about = {"numpy": [int(position), int(has_gauss), float(gauss)], "python": [version, own_gauss]}
    return about, [torch.get_rng_state(), torch.tensor(np.asarray(keys, dtype=np.int64)), torch.tensor(words)]


def write(about: dict[str, Any], tensors: Sequence[Tensor]) -> None:
    """Sets the generators to states that `read` returned."""
    own, keys, words = tensors
    torch.set_rng_state(own)
    position, has_gauss, gauss = about["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, own_gauss = about["python"]
    random.setstate((version, tuple(words.tolist()), own_gauss))
