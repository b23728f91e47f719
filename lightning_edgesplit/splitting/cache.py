"""Cuts that were found and proven in an earlier run, in a folder of JSON files.

One file per question (`fingerprint`). It holds all of `Cuts` but `Border.structures`, which are objects of the user's
own classes: those are taken from one run of the step, which also shows whether it still goes the way that it went.
Whatever is wrong with a file or with the folder costs a new proof and a warning, never a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import count, islice
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.splitting.along import patched
from lightning_edgesplit.splitting.batch import batch_size, first_samples, loss_of, step_arguments
from lightning_edgesplit.splitting.cuts import Border, Cut, Cuts
from lightning_edgesplit.splitting.fingerprint import NoFingerprintError, fingerprint
from lightning_edgesplit.splitting.proof import copy_of, generators_kept
from lightning_edgesplit.splitting.tree import Structure, flatten

FOLDER = "EDGESPLIT_CACHE"
"""Variable of the environment that names the folder; empty: nothing is kept."""

ENTRIES = 200
"""Files that are kept; beyond, those go that were not used for longest."""

_NAME = re.compile(r"[0-9a-f]{64}\.cuts\.json")


def default_folder() -> Path | None:
    """``$EDGESPLIT_CACHE``, else ``lightning-edgesplit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; None: turned off."""
    own = os.environ.get(FOLDER)
    if own is not None:
        return Path(own).expanduser() if own else None
    above = os.environ.get("XDG_CACHE_HOME", "")
    home = os.path.expanduser("~")
    if not os.path.isabs(above) and not os.path.isabs(home):  # a user without a home
        return None
    return (Path(above) if os.path.isabs(above) else Path(home, ".cache")) / "lightning-edgesplit"


class _UnusableError(Exception):
    """Why an entry is not what this run needs."""


class Entry:
    """Where the answer to one question is kept. Make it with `entry_of`.

    Args:
        path: The file.
        module: The LightningModule that is asked about; neither it nor a random generator is changed.
        batch: The batch, whole.
        context: Opened around every forward pass.
    """

    def __init__(
        self, path: Path, module: nn.Module, batch: Any, context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.path = path
        self._module, self._batch, self._context = module, batch, context
        self._warned = False

    def load(self) -> Cuts | None:
        """The cuts as they were found; None, with a warning unless there simply is no file, if they cannot be had."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self._warn("cannot be read", error)
            return None
        try:
            found = self._restored(json.loads(text))
        except Exception as error:  # a file may hold anything, and the step be that of another module
            self._warn("does not fit", error)
            return None
        with suppress(OSError):  # a folder of somebody else's, to read only: then the order of use is not ours to keep
            os.utime(self.path)
        return found

    def _restored(self, data: Any) -> Cuts:
        body = data["body"]
        if data["digest"] != _digest(body) or body["name"] != self.path.name:
            raise _UnusableError("it is damaged, or of another question")
        cuts = [_decoded(Cut, cut) for cut in body["cuts"]]
        if any(border.path for cut in cuts for border in _borders(cut).values()):
            calls, order = self._calls(cuts, body["samples"])
            if order != body["order"]:
                raise _UnusableError("the step calls other modules, or in another order, than it did")
            ways = [_way(cut, calls) for cut in cuts]
            if [_outputs(way) for way in ways] != body["outputs"]:
                raise _UnusableError("the step returns other outputs than it did")
            built = _decoded(list[list[str]], body["built"])
            cuts = [_with_structures(cut, way, only) for cut, way, only in zip(cuts, ways, built, strict=True)]
        return Cuts(cuts, _decoded(dict[str, str], body["refused"]))

    def save(self, cuts: Cuts, samples: int) -> None:
        """Writes the cuts, all at once; a warning says why, if that cannot be.

        Args:
            cuts: As `find_cuts` found them.
            samples: How many samples of the batch they were proven on.
        """
        try:
            calls, order = self._calls(cuts, samples)
            ways = [_way(cut, calls) for cut in cuts]
            built = [[key for key, border in _borders(cut).items() if border.structures] for cut in cuts]
            for cut, way, only in zip(cuts, ways, built, strict=True):
                if _described(cut) != _described(_with_structures(cut, way, only)):
                    raise _UnusableError(f"the step's outputs before {cut.name!r} differ from those of the proof")
            body = {
                "name": self.path.name,
                "samples": samples,
                "cuts": [_encoded(cut) for cut in cuts],
                "order": order,
                "outputs": [_outputs(way) for way in ways],
                "built": built,
                "refused": cuts.refused,
            }
            self._write(json.dumps({"digest": _digest(body), "body": body}))
            self._sweep()
        except Exception as error:  # a full disk, a folder to read only, a step that goes another way each time
            self._warn("cannot be written", error)

    def _write(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _sweep(self) -> None:
        """Removes what was not used for longest. Only files of our own names: the folder may hold others."""
        used = []
        for path in self.path.parent.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps as well
                if _NAME.fullmatch(path.name):
                    used.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(used)[: max(0, len(used) - ENTRIES)]:
            path.unlink(missing_ok=True)

    def _calls(self, cuts: Iterable[Cut], samples: Any) -> tuple[list[_Call], str]:
        """One step on the samples of the proof.

        Returns:
            The calls of all modules on the way to a cut, and a digest of the order of all calls in the step.
        """
        whole = batch_size(self._batch)
        if not isinstance(samples, int) or not 1 <= samples <= whole:
            raise _UnusableError(f"it was proven on {samples} samples")
        batch = self._batch if samples == whole else first_samples(self._batch, samples)
        paths = {name for cut in cuts for border in _borders(cut).values() for name in border.path}
        calls: list[_Call] = []
        order: list[str] = []
        clock = count()

        def watched(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            call = _Call(name, next(clock))
            calls.append(call)
            output = forward(*args, **kwargs)
            leaves, call.structure = flatten(output)
            call.leaves, call.end = [_kind(leaf) for leaf in leaves], next(clock)
            return output

        with generators_kept():
            probe, _ = copy_of(self._module)
            probe.train(self._module.training)
            for name, child in probe.named_modules():
                child.register_forward_pre_hook(lambda *args, name=name: order.append(name))
                child.register_forward_hook(lambda *args: order.append("ends"))
            modules = {probe.get_submodule(name): name for name in sorted(paths)}
            if len(modules) != len(paths):
                raise _UnusableError("one module is called by two names")
            with (
                patched({module: partial(watched, name, module.forward) for module, name in modules.items()}),
                self._context(),
            ):
                loss_of(probe.training_step(*step_arguments(probe, batch, 0)))  # type: ignore[operator]
        return calls, _digest(order)

    def _warn(self, what: str, error: Exception) -> None:
        """Says once why the cache is of no use: a folder that cannot be read cannot be written either."""
        if not self._warned:
            self._warned = True
            why = str(error) if isinstance(error, _UnusableError) else f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the cache of proven cuts {what} ({self.path}: {why}): cuts are proven anew. {FOLDER}= names another"
                " folder, and none if it is empty.",
                stacklevel=4,
            )


def entry_of(
    folder: str | PathLike[str] | None,
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None,
    context: Callable[[], AbstractContextManager[Any]],
    asked: Mapping[str, Any],
) -> Entry | None:
    """The entry in `folder` for a question to `find_cuts`; None where no folder is given, or nothing may be kept.

    Args:
        folder: Where entries are.
        module: The LightningModule.
        batch: The batch, whole.
        optimizer: Its optimizer.
        context: Opened around every forward pass.
        asked: All other arguments, as plain values.
    """
    if folder is None:
        return None
    try:
        with generators_kept():
            key = fingerprint(module, batch, optimizer, context, asked)
    except NoFingerprintError:  # typed at a prompt, for example: proven each time, as without a cache
        return None
    except Exception as error:  # a user's own __repr__ or property may raise anything
        warnings.warn(
            f"cuts of {type(module).__name__} are not kept, it cannot be described ({type(error).__name__}: {error}).",
            stacklevel=3,
        )
        return None
    return Entry(Path(folder).expanduser() / f"{key}.cuts.json", module, batch, context)


@dataclass
class _Call:
    """A module call: when it began and ended, and what it returned."""

    name: str
    begin: int
    end: int = 0
    structure: Structure | None = None
    leaves: Sequence[Any] = ()


def _along(path: Sequence[str], calls: Sequence[_Call]) -> list[_Call]:
    """The calls that a step visits on its way: the outermost ones of the path's modules, in its order.

    Raises:
        _UnusableError: If the step goes another way.
    """
    visited: list[_Call] = []
    for call in calls:
        if call.name in path and len(visited) < len(path) and not (visited and call.begin < visited[-1].end):
            if call.name != path[len(visited)] or call.structure is None:
                break
            visited.append(call)
    if len(visited) < len(path):
        raise _UnusableError(f"the step does not come to {path[-1]!r} as it did")
    return visited


def _kind(leaf: Any) -> Any:
    """What must not differ between two runs of a step; sizes may depend on random numbers."""
    return [str(leaf.dtype), leaf.ndim, leaf.requires_grad] if isinstance(leaf, Tensor) else type(leaf).__qualname__


def _way(cut: Cut, calls: Sequence[_Call]) -> dict[str, list[_Call]]:
    """The calls before each border of a cut; those of a second border come after the first."""
    borders = _borders(cut)
    visited = iter(_along([name for border in borders.values() for name in border.path], calls))
    return {key: list(islice(visited, len(border.path))) for key, border in borders.items()}


def _outputs(way: dict[str, list[_Call]]) -> dict[str, Any]:
    return {
        key: [[call.structure.described(), call.leaves] for call in calls if call.structure is not None]
        for key, calls in way.items()
    }


def _borders(cut: Cut) -> dict[str, Border]:
    """All borders of a cut by the name of their field."""
    values = {field.name: getattr(cut, field.name) for field in fields(cut)}
    return {name: value for name, value in values.items() if isinstance(value, Border)}


def _with_structures(cut: Cut, way: dict[str, list[_Call]], only: Sequence[str]) -> Cut:
    borders = {
        key: replace(border, structures=tuple(call.structure for call in way[key] if call.structure is not None))
        for key, border in _borders(cut).items()
        if key in only
    }
    return replace(cut, **borders)  # type: ignore[arg-type]


def _described(cut: Cut) -> list[Any]:
    return [[key, [x.described() for x in border.structures]] for key, border in _borders(cut).items()]


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _encoded(value: Any) -> Any:
    """A dataclass as plain JSON, without structures."""
    if isinstance(value, Structure):
        raise TypeError("a structure holds classes, and is no JSON")
    if is_dataclass(value):
        names = [field.name for field in fields(value) if field.name != "structures"]
        return {name: _encoded(getattr(value, name)) for name in names}
    if isinstance(value, (tuple, list)):
        return [_encoded(x) for x in value]
    if isinstance(value, dict):
        return {key: _encoded(x) for key, x in value.items()}
    return value


def _decoded(kind: Any, data: Any) -> Any:
    """The inverse of `_encoded`, by the types that the fields were given.

    Raises:
        _UnusableError: If the data are of another type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        for choice in inner:
            with suppress(_UnusableError):
                return _decoded(choice, data)
    elif origin in (tuple, list) and isinstance(data, list):
        several = [inner[0]] * len(data) if origin is list or inner[1:] == (...,) else inner
        if len(several) == len(data):
            return origin(_decoded(x, item) for x, item in zip(several, data, strict=True))
    elif origin is dict and isinstance(data, dict):
        return {_decoded(inner[0], key): _decoded(inner[1], x) for key, x in data.items()}
    elif is_dataclass(kind) and isinstance(data, dict):
        hints = typing.get_type_hints(kind)
        names = {field.name for field in fields(kind)} - {"structures"}
        if names == data.keys():
            return kind(**{name: _decoded(hints[name], data[name]) for name in names})  # type: ignore[operator]
    elif (type(data) is kind and kind in (bool, int, float, str, types.NoneType)) or (
        kind is float and type(data) is int
    ):
        return data
    raise _UnusableError(f"{str(data)[:80]!r} is no {kind}")
