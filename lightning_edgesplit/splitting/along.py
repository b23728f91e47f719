"""Follows a step along a path of module calls, and watches what happens between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import PLAIN, Withheld, shell_of
from lightning_edgesplit.splitting.record import needs_data
from lightning_edgesplit.splitting.tree import flatten, tensors_of

DTYPES = {str(x).removeprefix("torch."): x for x in vars(torch).values() if isinstance(x, torch.dtype)}


@contextmanager
def patched(modules: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replaces ``forward`` on these instances, and restores it."""
    saved = {module: module.__dict__.get("forward") for module in modules}
    for module in modules:
        module.__dict__["forward"] = modules[module]
    try:
        yield
    finally:
        for module, forward in saved.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


class Along:
    """Follows a step along a path of module calls, and lets `visit` decide what each of them returns.

    Args:
        module: The LightningModule.
        path: Names of the modules that are called, outermost calls only, in their order.
        visit: Called with the number of the call and a function that runs it.

    Attributes:
        position: Calls so far.
        inside: Whether one of them is running.
    """

    def __init__(self, module: nn.Module, path: Sequence[str], visit: Callable[[int, Callable[[], Any]], Any]) -> None:
        self._modules = [module.get_submodule(name) for name in path]
        self._name, self._visit = path[-1], visit
        self.position, self.inside = 0, False

    @property
    def ended(self) -> bool:
        """Whether the last call has come."""
        return self.position == len(self._modules)

    def patched(self) -> AbstractContextManager[None]:
        """While this is open, the modules are replaced."""
        return patched({m: partial(self._call, m, m.forward) for m in dict.fromkeys(self._modules)})

    def _call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.inside or self.ended:
            return forward(*args, **kwargs)
        if self._modules[self.position] is not module:
            raise ImpossibleCutError(
                f"the modules before the cut {self._name!r} are called in another order than on the sample batch: the"
                " step's path depends on the data. Choose a cut before that."
            )
        number, self.position, self.inside = self.position, self.position + 1, True
        try:
            return self._visit(number, partial(forward, *args, **kwargs))
        finally:
            self.inside = False


class Between(TorchFunctionMode):
    """Watches functions outside the modules of a path.

    ``.item()`` cannot run on a tensor without data, nor can ``nonzero``. Where this side has the data, what such
    functions gave is noted for the other side; where it has shells, they are answered with what the other side noted.

    Args:
        along: Where the step is.
        records: Calls of the path, first and last, between which functions are noted; None: nowhere.
        answers: The same for functions to be answered.
        shells: Whether functions that are answered for may meet real tensors too, which then count as shells.

    Attributes:
        noted: What was noted.
        received: What the other side noted.
    """

    def __init__(
        self,
        along: Along,
        records: range | None = None,
        answers: range | None = None,
        received: Sequence[Any] = (),
        shells: bool = False,
    ) -> None:
        super().__init__()
        self._along, self._records, self._answers, self._shells = along, records or (), answers or (), shells
        self.noted: list[Any] = []
        self.received = iter(received)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation, notes it, or answers for it."""
        kwargs = kwargs or {}
        if self._along.inside:
            return func(*args, **kwargs)
        if self._along.position in self._answers:
            return self._answer(func, args, kwargs)
        output = func(*args, **kwargs)
        if self._along.position in self._records and needs_data(func, args):
            several = isinstance(output, tuple)
            self.noted.append([several, [described(x) for x in (output if several else [output])]])
        return output

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        shells = any(x.is_meta for x in tensors_of([args, kwargs]))
        if needs_data(func, args):
            noted = next(self.received, None)
            if noted is None:
                raise ImpossibleCutError(f"{func.__name__} needs data here that only the other side has")
            several, leaves = noted
            if not shells:
                return func(*args, **kwargs)
            answers = [imagined(x, func.__name__) for x in leaves]
            if func.__name__ == "_pack_padded_sequence":
                answers[1] = torch.zeros_like(answers[1], device="cpu")  # PackedSequence insists
            return tuple(answers) if several else answers[0]
        if shells and self._shells:
            leaves, structure = flatten([list(args), kwargs])
            args, kwargs = structure.build(shell_of(x) if isinstance(x, Tensor) else x for x in leaves)
        return func(*args, **kwargs)


def described(leaf: Any) -> Any:
    """A leaf as the other side is told of it: see `Passed.outputs`."""
    if isinstance(leaf, Tensor):
        return [str(leaf.dtype).removeprefix("torch."), *leaf.shape]
    return {"is": leaf} if isinstance(leaf, PLAIN) else None


def imagined(leaf: Any, path: str) -> Any:
    """A shell of a described tensor; a plain value; or what any use of is an error."""
    if isinstance(leaf, list):
        return torch.empty(leaf[1:], dtype=DTYPES[leaf[0]], device="meta")
    return leaf["is"] if isinstance(leaf, dict) else Withheld(f"output of {path}")
