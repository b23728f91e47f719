"""A batch as a list of leaves: which of them travel, and which stay on the client as bare shapes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.tree import Structure, flatten, tensors_of


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor with at least one dimension.

    Raises:
        ValueError: If the batch holds no such tensor.
    """
    for leaf in tensors_of(batch):
        if leaf.ndim:
            return len(leaf)
    raise ValueError("the batch holds no tensor with a batch dimension: a client cannot count its samples.")


def first_samples(batch: Any, count: int) -> Any:
    """The first `count` samples of a batch: all that has the batch's length is sliced, the rest is kept."""
    size = batch_size(batch)
    leaves, structure = flatten(batch)
    return structure.build(x[:count] if isinstance(x, Tensor) and x.ndim and len(x) == size else x for x in leaves)


def shell_of(leaf: Tensor) -> Tensor:
    """A tensor of the same shape and type without data, on the meta device."""
    return torch.empty_like(leaf, device="meta")


class Withheld:
    """Stands on the server for a batch leaf that is no tensor and stays on the client: any use is an error."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__dict__["name"]
        raise ImpossibleCutError(
            f"the batch's {name!r} is needed behind the cut, and what is no tensor stays on the client: name in"
            " `private` what has to stay, and numbers and texts outside it are sent"
        )

    __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = __getitem__ = __contains__ = __str__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __call__ = __getattr__ = __format__ = _refuse  # type: ignore[assignment]
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _refuse
    __hash__ = _refuse  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Withheld:
        return self


PLAIN = (bool, int, float, str, type(None))
"""What may go over the wire beside tensors."""


def server_leaves(leaves: Sequence[Any], names: Sequence[str], sent: Sequence[int]) -> list[Any]:
    """The leaves as a server has them: those of `sent` as they are, shells and `Withheld` for the others."""
    return [
        leaf if i in sent or leaf is None else shell_of(leaf) if isinstance(leaf, Tensor) else Withheld(names[i])
        for i, leaf in enumerate(leaves)
    ]


def numbers_of(private: Sequence[str], structure: Structure) -> frozenset[int]:
    """Numbers of the leaves that `private` names, by themselves or by a container that holds them.

    Raises:
        ValueError: If a name is not in the batch.
    """
    paths = structure.paths()
    chosen: set[int] = set()
    for name in private:
        found = {i for i, path in enumerate(paths) if path == str(name) or path.startswith(f"{name}.")}
        if not found:
            raise ValueError(f"private={name!r} names nothing in the batch: its leaves are {', '.join(paths)}.")
        chosen |= found
    return frozenset(chosen)


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
