"""Nested containers as a list of leaves and back: batches, and what modules return.

torch's own pytrees leave dataclasses, ``PackedSequence`` and dictionaries of other classes (as Hugging Face has them)
whole unless each class is registered with torch for good. Here they are opened without touching torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Structure:
    """What is left of a nested container without its leaves.

    Attributes:
        kind: ``"leaf"``, ``"list"``, ``"tuple"``, ``"named"`` (a named tuple), ``"map"`` or ``"fields"`` (a dataclass).
        shell: A copy of the container, for its class and whatever else it holds.
        keys: Names of the children.
        children: Their structures.
    """

    kind: str
    shell: Any = None
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()

    def build(self, leaves: Iterable[Any]) -> Any:
        """The container with these leaves."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        values = [child._build(leaves) for child in self.children]
        if self.kind == "list":
            return values
        if self.kind == "tuple":
            return tuple(values)
        if self.kind == "named":  # past __new__, where PackedSequence asks for the lengths of data that may be a shell
            return tuple.__new__(self.shell, values)
        new = copy.copy(self.shell)
        for key, value in zip(self.keys, values, strict=True):
            if self.kind == "map":
                new[key] = value
            else:
                object.__setattr__(new, key, value)  # a frozen dataclass as well
        return new

    def containers(self) -> Iterator[type]:
        """The classes of all containers, from the outside in."""
        if self.kind != "leaf":
            yield list if self.kind == "list" else self.shell if isinstance(self.shell, type) else type(self.shell)
        for child in self.children:
            yield from child.containers()

    def described(self) -> list[Any]:
        """Kinds, classes and keys in plain texts: equal for containers that are built alike."""
        kind = next(self.containers(), None)
        name = "" if kind is None else f"{kind.__module__}.{kind.__qualname__}"
        return [self.kind, name, [repr(key) for key in self.keys], [child.described() for child in self.children]]

    def paths(self, at: str = "") -> list[str]:
        """A name for every leaf: ``image``, ``0``, ``inputs.0.mask``; a bare leaf is named ``batch``."""
        if self.kind == "leaf":
            return [at or "batch"]
        names = []
        for key, child in zip(self.keys, self.children, strict=True):
            names += child.paths(f"{at}.{key}" if at else str(key))
        return names


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of a list, tuple, named tuple, mapping or dataclass, nested as deep as may be, and its structure.

    Tensors are leaves, and so is everything that is no container; None is one too.
    """
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves alone."""
    return flatten(tree)[0]


def tensors_of(tree: Any) -> list[Tensor]:
    """The leaves that are tensors."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor)]


def _flatten(tree: Any, leaves: list[Any]) -> Structure:
    if isinstance(tree, Mapping):
        keys = tuple(tree)
        return Structure("map", _hollow(tree), keys, tuple(_flatten(tree[key], leaves) for key in keys))
    if isinstance(tree, tuple) and not isinstance(tree, torch.Size):
        kind = "named" if hasattr(tree, "_fields") else "tuple"
        keys = tree._fields if hasattr(tree, "_fields") else tuple(range(len(tree)))
        return Structure(kind, type(tree), keys, tuple(_flatten(x, leaves) for x in tree))
    if type(tree) is list:
        return Structure("list", None, tuple(range(len(tree))), tuple(_flatten(x, leaves) for x in tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        keys = tuple(field.name for field in fields(tree) if hasattr(tree, field.name))
        children = tuple(_flatten(getattr(tree, key), leaves) for key in keys)
        return Structure("fields", _hollow(tree), keys, children)
    leaves.append(tree)
    return Structure("leaf")


def _hollow(container: Any) -> Any:
    """A shallow copy that holds none of the leaves, so that a kept structure keeps no batch alive."""
    hollow = copy.copy(container)
    if isinstance(hollow, Mapping):
        for key in list(hollow):
            hollow[key] = None  # type: ignore[index]
    else:
        for field in fields(hollow):
            object.__setattr__(hollow, field.name, None)
    return hollow
