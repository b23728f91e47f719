"""A name for the question that `find_cuts` answers: it changes whenever the answer could.

What steers a training step is more than the module's class: files that its own file imports, attributes that a
``forward`` reads, globals, a precision plugin. Whatever could matter is taken in, at the price of asking anew once too
often; what cannot be described lastingly (a class typed at a prompt) has no fingerprint at all.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.splitting.batch import PLAIN
from lightning_edgesplit.splitting.tree import flatten

THINGS = 300_000
"""Values and files that are looked at before a module counts as too large to describe."""

NESTED = 3
"""How deep objects of installed packages' classes (configurations, loggers) are opened inside each other."""


class NoFingerprintError(Exception):
    """Something steers the step that cannot be described lastingly."""


def fingerprint(
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None,
    context: Callable[[], AbstractContextManager[Any]],
    asked: Mapping[str, Any],
) -> str:
    """SHA-256 of all that the answer of `find_cuts` depends on, except values of weights and of the batch.

    Args:
        module: The LightningModule.
        batch: What its step will be run on.
        optimizer: Its optimizer.
        context: What is opened around every forward pass.
        asked: All other arguments of `find_cuts`, as plain values.

    Raises:
        NoFingerprintError: If there is none.
    """
    known = _Known()
    parts = {
        "versions": [_own_version(), torch.__version__, sys.version],
        "package": [_digest(path.read_bytes()) for path in sorted(Path(__file__).parent.glob("*.py"))],
        "machine": [platform.machine(), str(torch.get_default_dtype()), torch.get_float32_matmul_precision()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "module": _module(known, module),
        "batch": _batch(known, batch),
        "optimizer": None if optimizer is None else _optimizer(known, module, optimizer),
        "asked": {name: known.value(value) for name, value in asked.items()},
        "context": _context(known, context),
    }
    return _digest(json.dumps([parts, known.sources.digests]).encode())


def _own_version() -> str:
    try:
        return importlib.metadata.version("lightning-edgesplit")
    except importlib.metadata.PackageNotFoundError:  # run from its folder
        return "none"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _module(known: _Known, module: nn.Module) -> list[Any]:
    first: dict[int, str] = {}
    parts: list[Any] = [re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))]
    for name, child in module.named_modules(remove_duplicate=False):
        if id(child) in first:
            parts.append([name, first[id(child)]])
            continue
        first[id(child)] = name
        parts.append([name, known.value(type(child)), child.training, known.attributes(child)])
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            shared = first.setdefault(id(tensor), name)
            memory = tensor.untyped_storage().data_ptr() if tensor.device.type != "meta" else 0
            if memory:  # of views, and of flat buffers that hold several parameters
                shared += " " + first.setdefault(-memory, name)
            parts.append([name, shared, _tensor(tensor)])
    return parts


def _tensor(tensor: Tensor) -> list[Any]:
    layout = list(tensor.stride()) if tensor.layout == torch.strided else str(tensor.layout)
    kind = type(tensor).__qualname__
    return [kind, list(tensor.shape), str(tensor.dtype), str(tensor.device), layout, tensor.requires_grad]


def _batch(known: _Known, batch: Any) -> list[Any]:
    leaves, structure = flatten(batch)
    kinds: list[Any] = [structure.described()]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            kinds.append(_tensor(leaf))
        elif isinstance(leaf, PLAIN) and not isinstance(leaf, bool):
            kinds.append(type(leaf).__name__)  # texts and numbers change from batch to batch
        else:
            kinds.append(known.value(leaf))
    return [*kinds, [known.value(container) for container in structure.containers()]]


def _optimizer(known: _Known, module: nn.Module, optimizer: Optimizer) -> list[Any]:
    """Class and groups; of a number only whether it is zero (a momentum makes a state, its size does not)."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups = [
        [
            [names.get(id(p), _tensor(p)) for p in group["params"]],
            [[key, value if isinstance(value, str) else _truth(value)] for key, value in sorted(group.items())],
        ]
        for group in optimizer.param_groups
    ]
    return [known.value(type(optimizer)), groups]


def _truth(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return bool(value)
    return [_truth(x) for x in value] if isinstance(value, tuple) else type(value).__name__


def _context(known: _Known, context: Callable[[], AbstractContextManager[Any]]) -> list[Any]:
    """Who opens it, and what is in force inside."""
    owner = getattr(context, "__self__", None)
    if owner is None:
        who = known.value(context)
    else:
        plain = {k: v for k, v in vars(owner).items() if isinstance(v, PLAIN)} if hasattr(owner, "__dict__") else {}
        who = [known.value(type(owner)), getattr(context, "__name__", ""), known.value(plain)]
    with context():
        inside = [
            torch.is_autocast_enabled("cpu"),
            str(torch.get_autocast_dtype("cpu")),
            str(torch.get_default_dtype()),
        ]
    return [who, inside]


class _Known:
    """Describes values in lists of plain strings and numbers, and collects the sources of their classes.

    Attributes:
        sources: The files.
    """

    def __init__(self) -> None:
        self.sources = _Sources()
        self._done: dict[int, tuple[Any, Any]] = {}  # kept beside its description, so that an id stays unique
        self._open: set[int] = set()
        self._count = 0
        self._depth = 0

    def value(self, value: Any) -> Any:
        """A description that is the same for equal values in another process."""
        self._count += 1
        if self._count > THINGS:
            raise NoFingerprintError(f"the module holds more than {THINGS} values")
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, (complex, bytes, slice, range, torch.dtype, torch.device, torch.Size)):
            return repr(value)
        if isinstance(value, Enum):
            return [type(value).__qualname__, value.name]
        if isinstance(value, types.ModuleType):
            return value.__name__
        if id(value) in self._open:
            return "itself"
        if id(value) not in self._done:
            self._open.add(id(value))
            try:
                described = self._described(value)
            finally:
                self._open.remove(id(value))
            text = json.dumps(described)
            self._done[id(value)] = value, described if len(text) < 64 else _digest(text.encode())
        return self._done[id(value)][1]

    def _described(self, value: Any) -> Any:
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (types.FunctionType, types.MethodType)):
            return self._function(value)
        if isinstance(value, functools.partial):
            return ["partial", self.value(value.func), self.value(value.args), self.value(value.keywords)]
        if isinstance(value, (property, staticmethod, classmethod)):
            inner = [value.fget, value.fset] if isinstance(value, property) else value.__func__
            return [type(value).__name__, self.value(inner)]
        if isinstance(value, (set, frozenset)):
            return [type(value).__qualname__, sorted(json.dumps(self.value(x)) for x in value)]
        parts: list[Any] = [self.value(type(value))]
        if isinstance(value, dict):
            parts.append([[self.value(key), self.value(x)] for key, x in value.items()])
        elif isinstance(value, (list, tuple)):
            parts.append([self.value(x) for x in value])
        if isinstance(value, np.ndarray):
            parts.append([str(value.shape), str(value.dtype)])
        if "__wrapped__" in getattr(value, "__dict__", {}):  # a cache around a function
            parts.append(self.value(value.__wrapped__))
        return [*parts, *self._state(value)]

    def _class(self, kind: type) -> Any:
        """Its name, its source and that of its bases, and, if it is the user's own, what it holds."""
        bases = [base for base in kind.__mro__ if self.sources.take(base.__module__) != _FOREIGN]
        parts: list[Any] = [kind.__module__, kind.__qualname__, [base.__qualname__ for base in bases]]
        if issubclass(kind, torch.jit.ScriptModule):
            raise NoFingerprintError(f"{kind.__qualname__} is a script without a source")
        for base in bases:
            if self.sources.take(base.__module__) == _OWN:
                if issubclass(base, nn.Module):
                    self._must_have_source(base)
                parts.append([[name, self.value(x)] for name, x in sorted(vars(base).items()) if _tells(name, x)])
        return parts

    @staticmethod
    def _must_have_source(kind: type) -> None:
        try:
            inspect.getsource(kind)
        except (OSError, TypeError) as error:
            raise NoFingerprintError(f"{kind.__qualname__} has no source: {error}") from error

    def _function(self, function: Any) -> Any:
        if isinstance(function, types.MethodType):
            return [self.value(function.__func__), self.value(function.__self__)]
        name = [function.__module__, function.__qualname__]
        if self.sources.take(function.__module__) != _OWN:
            return name
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not filled yet
                cells.append(None)
        used = sorted(set(_names(function.__code__)) & function.__globals__.keys())
        return [
            name,
            self._code(function.__code__),
            self.value(
                [*cells, function.__defaults__, function.__kwdefaults__, getattr(function, "__wrapped__", None)]
            ),
            [[x, self.value(function.__globals__[x])] for x in used],
        ]

    def _code(self, code: types.CodeType) -> Any:
        """What was compiled, which is what runs: the file may have been edited since."""
        constants = [self._code(x) if isinstance(x, types.CodeType) else self.value(x) for x in code.co_consts]
        return [code.co_code.hex(), list(code.co_names), constants]

    def attributes(self, module: nn.Module) -> Any:
        """What a module holds beside modules, parameters and buffers; Lightning's own attributes left out."""
        skip = {"_parameters", "_buffers", "_modules", "training"}
        if isinstance(module, pl.LightningModule):
            skip |= _of_lightning()
            skip |= {name for name in vars(module) if name.startswith("_") and hasattr(pl.LightningModule, name)}
            skip -= {"_hparams"}
        parts = []
        for name, value in vars(module).items():
            hooks = "_hooks" in name and isinstance(value, dict)
            if hooks:
                value = list(value.values())  # their keys count the hooks of the whole process
            if name not in skip or (hooks and value):
                parts.append([name, self.value(value)])
        return parts

    def _state(self, value: Any) -> Iterator[Any]:
        """What an object holds; nothing of Python's, torch's and Lightning's own, which change with their run."""
        kind = type(value)
        if isinstance(value, nn.Module):
            yield [self.attributes(value), value.training]
            yield [self.value(x) for x in (value._parameters, value._buffers, value._modules)]
            return
        where = self.sources.take(kind.__module__)
        configuration = isinstance(value, (argparse.Namespace, types.SimpleNamespace))
        if (where == _FOREIGN and not configuration) or kind.__module__.split(".")[0] in ("lightning", "torchmetrics"):
            return
        state = dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            slots = base.__dict__.get("__slots__", ())
            for slot in [slots] if isinstance(slots, str) else slots:
                if not slot.startswith("__"):
                    state.setdefault(slot, getattr(value, slot, None))
        if where == _OWN or configuration:
            yield [[name, self.value(x)] for name, x in state.items()]
            return
        self._depth += 1
        if self._depth <= NESTED:
            yield [[name, self.value(x)] for name, x in state.items()]
        self._depth -= 1


def _tells(name: str, value: Any) -> bool:
    """Whether an entry of a class says what its instances do."""
    return not name.startswith("__") or isinstance(value, types.FunctionType)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _of_lightning() -> frozenset[str]:
    return frozenset(vars(pl.LightningModule()))


_OWN, _INSTALLED, _FOREIGN = "own", "installed", "foreign"


class _Sources:
    """Files that define what was described, each as a digest.

    Attributes:
        digests: By name of the Python module; of installed packages the version beside it.
    """

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self._where: dict[str, str] = {}

    def take(self, name: str | None) -> str:
        """Takes in a module of Python, and of the user's own also what they import; says whose it is.

        Returns:
            ``"own"``: the user's; ``"installed"``: another package's; ``"foreign"``: Python's, torch's or ours, of
            which the version is enough.
        """
        if name is None:
            return _FOREIGN
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in self._where:
                self._where[current] = where = self._whose(current)
                if where != _FOREIGN:
                    waiting += self._read(current, where)
                if len(self._where) > THINGS:
                    raise NoFingerprintError(f"its file imports more than {THINGS} others")
        return self._where[name]

    def _whose(self, name: str) -> str:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("torch", "lightning_edgesplit"):
            return _FOREIGN
        path = _file_of(name)
        if top == "__main__" or path is None:
            return _OWN  # a class of it that has no source will be noticed
        libraries = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        return _INSTALLED if installed or any(path.is_relative_to(library) for library in libraries) else _OWN

    def _read(self, name: str, where: str) -> list[str]:
        """Notes the file of a module; returns the names that it imports, if it is the user's own."""
        path = _file_of(name)
        if path is None:
            return []
        try:
            content = path.read_bytes()
        except OSError as error:
            raise NoFingerprintError(f"{path} cannot be read: {error}") from error
        self.digests[name] = _digest(content)
        if where == _INSTALLED:
            top = name.partition(".")[0]
            self.digests[f"{top} version"] = str(getattr(sys.modules.get(top), "__version__", None))
            return []
        package = getattr(sys.modules.get(name), "__package__", None)
        if package is None:
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        return list(_imports(content, package)) if path.suffix == ".py" else []


def _imports(content: bytes, package: str) -> Iterator[str]:
    """Names of all modules that a file may import, wherever in it."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # such a file is imported by nobody
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # beyond the top of the package
                continue
            names = [base, *(f"{base}.{name}" for name in names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _file_of(name: str) -> Path | None:
    """The file of a module of Python, loaded or not; nothing is imported."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules and "*" not in name:
        folders = None
        parts = name.split(".")
        for i in range(len(parts)):
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: i + 1]), folders)
            if spec is None or (spec.submodule_search_locations is None and i + 1 < len(parts)):
                return None
            folders = spec.submodule_search_locations
            file = spec.origin
    if file is None or not Path(file).is_file():
        return None
    return Path(file).resolve()
