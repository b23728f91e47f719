"""What happens in one training step: the tree of module calls, and which tensors live across the end of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_edgesplit.splitting.tree import tensors_of


@dataclass(eq=False)
class Value:
    """A tensor that the step made or was given.

    Attributes:
        made_by: Name of the operation, or of the leaf, parameter or buffer.
        born: Number of the operation that made it; 0 for what the step was given.
        uses: Numbers of the operations that read it.
        leaves: Numbers of the batch leaves that its value depends on.
        content: Those of them that it is made of, other than as an index, a mask or a length.
        trained: Whether its value depends on a parameter or a buffer.
        random: Whether its value depends on a random number.
        sources: What it was made of, directly.
    """

    made_by: str
    born: int = 0
    uses: list[int] = field(default_factory=list, repr=False)
    leaves: frozenset[int] = frozenset()
    content: frozenset[int] = frozenset()
    trained: bool = False
    random: bool = False
    sources: list[Value] = field(default_factory=list, repr=False)

    def used_within(self, begin: float, end: float) -> bool:
        """Whether an operation after `begin`, up to `end`, read it."""
        return any(begin < time <= end for time in self.uses)

    @property
    def first_use(self) -> float:
        """Number of the first operation that read it; infinite if none did."""
        return self.uses[0] if self.uses else float("inf")

    @property
    def last_use(self) -> int:
        """Number of the last operation that read it; 0 if none did."""
        return self.uses[-1] if self.uses else 0


@dataclass(eq=False)
class Call:
    """One call of a module: its name, its caller (None: the step itself), and the operations that it spans."""

    name: str
    number: int
    parent: Call | None
    begin: int
    end: int = 0
    output: Any = field(default=None, repr=False)


READS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__float__", "__int__", "__index__"}
"""Functions that read data though they return no tensor; others of that kind ask for shapes, types and so on."""

_SHAPED_BY_DATA = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "_pack_padded_sequence"}


_CONSTANT = {"zeros", "ones", "empty", "arange", "zeros_like", "ones_like", "empty_like"}
"""Functions whose results hold nothing of their arguments but the shape."""

_LOOK_UP = {"embedding", "embedding_bag", "__getitem__", "index_select", "gather", "take"}
"""Functions in which whole numbers choose rows of a parameter; elsewhere they are lengths, masks or indices."""


def needs_data(function: Any, args: Any) -> bool:
    """Whether a function of torch cannot run without its tensors' data: a shape is not enough."""
    name = getattr(function, "__name__", "")
    if name == "__getitem__":
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_of(args[1:]))
    return name in READS or name in _SHAPED_BY_DATA


class Inside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, of what runs inside an operation, the draws from a random generator, and FLOP."""

    draws = 0
    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation."""
        self.draws += torch.Tag.nondeterministic_seeded in func.tags
        output = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=output)
        return output


class Recorder(TorchFunctionMode):
    """Records one training step of a module that may be spoilt (a copy: its hooks stay on it).

    Calls of the Python API are watched, not those of the dispatcher: there, a view that Python still holds is copied
    on its way up, and what a later operation reads is another object.

    Attributes:
        calls: The module calls, in the order in which they ended.
        values: By ``id`` of the tensor. Recorded tensors are kept alive, so that an ``id`` stays unique.
        random: Numbers of the operations that drew random numbers.
        reads: Numbers of the operations that need data, not shapes alone (``.item()``, ``nonzero``).
        inputs: For every batch leaf, the number of the first operation that combined it, or what was made of it without
            a parameter, with a parameter: what a model takes in, other than a mask or an index.
        flops: FLOP up to and with each operation.
    """

    def __init__(self, module: nn.Module, leaves: Iterable[Any]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.values: dict[int, Value] = {}
        self.random: list[int] = []
        self.reads: list[int] = []
        self.inputs: dict[int, int] = {}
        self.flops: list[int] = [0]
        self.time = 0
        self._kept: list[Tensor] = []
        self._open: list[Call] = []
        self._counts: dict[str, int] = {}
        self.leaves = list(leaves)
        for number, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                self._remember(
                    leaf, Value(f"batch leaf {number}", leaves=frozenset([number]), content=frozenset([number]))
                )
        self.parameters = {name: self._remember(p, Value(name, trained=True)) for name, p in module.named_parameters()}
        self.buffers = {name: self._remember(b, Value(name, trained=True)) for name, b in module.named_buffers()}
        self.trainable = {name: p.requires_grad for name, p in module.named_parameters()}
        self._weights = {id(value) for value in self.parameters.values()}
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
        with Inside() as inside:  # type: ignore[no-untyped-call]
            output = func(*args, **kwargs)
        self.flops.append(self.flops[-1] + inside.flops)
        made = tensors_of(output)
        name = getattr(func, "__name__", str(func))
        if not made and name not in READS and name != "__setitem__":
            return output
        read = tensors_of([args, kwargs])
        known = [self._read(tensor) for tensor in read]
        if needs_data(func, args):
            self.reads.append(self.time)
        if inside.draws:
            self.random.append(self.time)
        if any(id(v) in self._weights for v in known):
            for own, tensor in zip(known, read, strict=True):
                if not own.trained and (tensor.is_floating_point() or name in _LOOK_UP):
                    for leaf in own.content:
                        self.inputs.setdefault(leaf, self.time)
        for tensor in [*made, args[0]] if name == "__setitem__" else made:
            value = self.values.get(id(tensor))
            if value is None:
                value = self._remember(tensor, Value(name, born=self.time))
            elif not value.born:
                continue  # a parameter, buffer or batch leaf written in place stays what it is
            made_of = known
            if name == "_pack_padded_sequence" and tensor is made[1]:
                made_of = [self.values[id(args[1])]]  # how many sequences go on at each step: that is in the lengths
            if name not in _CONSTANT:
                value.leaves = value.leaves.union(*(v.leaves for v in made_of))
                floats = [v for v, t in zip(known, read, strict=True) if v in made_of and t.is_floating_point()]
                value.content = value.content.union(*(v.content for v in floats or made_of))
            value.trained |= any(v.trained for v in made_of)
            value.random |= bool(inside.draws) or any(v.random for v in made_of)
            value.sources += [v for v in made_of if v is not value]
        return output

    def _read(self, tensor: Tensor) -> Value:
        value = self.values.get(id(tensor))
        if value is None:  # a constant outside parameters and buffers, or made where this mode cannot look
            made = tensor.grad_fn is not None
            value = self._remember(tensor, Value("constant", born=self.time if made else 0, trained=made))
        value.uses.append(self.time)
        return value
