"""A batch as a list of leaves: which of them travel, and which stay on the client as bare shapes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


def flatten(batch: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves of a batch (tensor, tuple, list, dict, nested) and its structure."""
    return tree_flatten(batch)


def unflatten(leaves: list[Any], spec: TreeSpec) -> Any:
    """The inverse of `flatten`."""
    return tree_unflatten(leaves, spec)


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor with at least one dimension.

    Raises:
        ValueError: If the batch holds no such tensor.
    """
    for leaf in flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError("the batch holds no tensor with a batch dimension: a client cannot count its samples.")


def first_samples(batch: Any, count: int) -> Any:
    """The first `count` samples of a batch: every tensor of the batch's length is sliced, the rest is kept."""
    size = batch_size(batch)
    leaves, spec = flatten(batch)
    sliced = [x[:count] if isinstance(x, Tensor) and x.ndim and len(x) == size else x for x in leaves]
    return unflatten(sliced, spec)


def shell_of(leaf: Tensor) -> Tensor:
    """A tensor of the same shape and type without data, on the meta device."""
    return torch.empty_like(leaf, device="meta")


def step_arguments(module: nn.Module, batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """What ``training_step`` is called with: Lightning passes ``batch_idx`` only to those who ask for it."""
    parameters = inspect.signature(module.training_step).parameters.values()  # type: ignore[operator,arg-type]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_index = len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return (batch, batch_idx) if takes_index else (batch,)


def loss_of(output: Any) -> Tensor:
    """The loss in what ``training_step`` returned.

    Raises:
        TypeError: If there is none.
    """
    loss = output.get("loss") if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"training_step returned {type(output).__name__} without a loss: return the loss tensor, or a dict with the"
            " key 'loss'. A step that skips batches by returning None cannot be split."
        )
    return loss
