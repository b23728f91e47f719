"""Modules and data from a class path and its arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

READY = "lightning_edgesplit.comparing.ready"
"""Where a name without a dot is looked up."""


def found(path: str, place: str) -> Any:
    """The class or function of that dotted path; a name without a dot is one of `READY`.

    Raises:
        ValueError: If there is none, with the place where it was asked for.
        ImportError: If its module cannot be imported.
    """
    package, _, name = path.rpartition(".")
    home = importlib.import_module(package or READY)
    thing = getattr(home, name, None)
    if thing is None and not package:
        known = ", ".join(key for key in getattr(home, "__all__", ()))
        raise ValueError(f"{place}={path!r} is no ready one: use one of {known}, or a dotted path (my_package.Name).")
    if thing is None:
        raise ValueError(f"{place}={path!r}: {package} has no {name}.")
    return thing


def made(path: str, arguments: Mapping[str, Any], place: str) -> Any:
    """What `found` gives, called with the arguments.

    Raises:
        ValueError: As `found`, or if it does not take these arguments.
    """
    thing = found(path, place)
    try:
        inspect.signature(thing).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{place}={path!r} cannot be made of init_args={dict(arguments)!r}: {error}.") from error
    return thing(**arguments)


def source_of(path: str, place: str) -> str:
    """A hash of the file that defines it: a run is repeated when the module's code has changed."""
    home = inspect.getsourcefile(inspect.unwrap(found(path, place)))
    return "" if home is None else sha256(Path(home).read_bytes()).hexdigest()


def training_loader(data: Any) -> Any:
    """The training loader of a LightningDataModule, prepared and set up; any other object is one itself."""
    if not hasattr(data, "train_dataloader"):
        return data
    for prepare, arguments in (("prepare_data", ()), ("setup", ("fit",))):
        if hasattr(data, prepare):
            getattr(data, prepare)(*arguments)
    return data.train_dataloader()
