"""What happens in one training step: the tree of module calls, and which tensors live across the end of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Value:
    """A tensor that the step made or was given.

    Attributes:
        made_by: Name of the operation, or of the leaf, parameter or buffer.
        born: Number of the operation that made it; 0 for what the step was given.
        last_use: Number of the last operation that read it.
        first_use: Number of the first operation that read it; 0: never read.
        leaves: Numbers of the batch leaves that its value depends on.
        trained: Whether its value depends on a parameter or a buffer.
        random: Whether its value depends on a random number.
    """

    made_by: str
    born: int = 0
    last_use: int = 0
    first_use: int = 0
    leaves: frozenset[int] = frozenset()
    trained: bool = False
    random: bool = False


@dataclass(eq=False)
class Call:
    """One call of a module: its name, its caller (None: the step itself), and the operations that it spans."""

    name: str
    number: int
    parent: Call | None
    begin: int
    end: int = 0
    output: Any = field(default=None, repr=False)


_READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__float__", "__int__", "__index__"}
"""Functions that read data though they return no tensor; others of that kind ask for shapes, types and so on."""


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that draw from a random generator."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation."""
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class Recorder(TorchFunctionMode):
    """Records one training step of a module that may be spoilt (a copy: its hooks stay on it).

    Calls of the Python API are watched, not those of the dispatcher: there, a view that Python still holds is copied
    on its way up, and what a later operation reads is another object.

    Attributes:
        calls: The module calls, in the order in which they ended.
        values: By ``id`` of the tensor. Recorded tensors are kept alive, so that an ``id`` stays unique.
        random: Numbers of the operations that drew random numbers.
    """

    def __init__(self, module: nn.Module, leaves: Iterable[Any]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.values: dict[int, Value] = {}
        self.random: list[int] = []
        self.time = 0
        self._kept: list[Tensor] = []
        self._open: list[Call] = []
        self._counts: dict[str, int] = {}
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._remember(leaf, Value(f"batch leaf {number}", leaves=frozenset([number])))
        self.parameters = {name: self._remember(p, Value(name, trained=True)) for name, p in module.named_parameters()}
        self.buffers = {name: self._remember(b, Value(name, trained=True)) for name, b in module.named_buffers()}
        for name, child in module.named_modules():
            if name:
                child.register_forward_pre_hook(self._begin(name), with_kwargs=True)
                child.register_forward_hook(self._end, always_call=False)

    def _remember(self, tensor: Tensor, value: Value) -> Value:
        self._kept.append(tensor)
        self.values[id(tensor)] = value
        return value

    def _begin(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._counts[name] = self._counts.get(name, 0) + 1
            parent = self._open[-1] if self._open else None
            self._open.append(Call(name, self._counts[name], parent, begin=self.time))

        return hook

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._open.pop()
        call.end, call.output = self.time, output
        self.calls.append(call)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and notes what it read and made."""
        kwargs = kwargs or {}
        self.time += 1
        with Draws() as draws:  # type: ignore[no-untyped-call]
            output = func(*args, **kwargs)
        made = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        name = getattr(func, "__name__", str(func))
        if not made and name not in _READS and name != "__setitem__":
            return output
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = [self._read(tensor) for tensor in read]
        if draws.count:
            self.random.append(self.time)
        for tensor in [*made, args[0]] if name == "__setitem__" else made:
            value = self.values.get(id(tensor))
            if value is None:
                value = self._remember(tensor, Value(name, born=self.time, last_use=self.time))
            elif not value.born:
                continue  # a parameter, buffer or batch leaf written in place stays what it is
            value.leaves = value.leaves.union(*(v.leaves for v in known))
            value.trained |= any(v.trained for v in known)
            value.random |= bool(draws.count) or any(v.random for v in known)
        return output

    def _read(self, tensor: Tensor) -> Value:
        value = self.values.get(id(tensor))
        if value is None:  # a constant outside parameters and buffers, or made where this mode cannot look
            made = tensor.grad_fn is not None
            value = self._remember(tensor, Value("constant", born=self.time if made else 0, trained=made))
        value.first_use = value.first_use or self.time
        value.last_use = self.time
        return value
