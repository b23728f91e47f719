"""Reads YAML onto the dataclass that mirrors it: every mistake is an error with its file and full key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike, fspath
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Source = str | PathLike[str] | DictConfig | ListConfig | Mapping[str, Any]
T = TypeVar("T")


def content(source: Source, option: str) -> tuple[str, Any]:
    """What a path, a node or a mapping holds, as plain lists and dicts with interpolations resolved.

    Args:
        source: Path of a YAML file, an OmegaConf node or a plain mapping.
        option: What messages call it where it is no path.

    Returns:
        How messages call it, and its content.

    Raises:
        ValueError: If it is no YAML.
        FileNotFoundError: If there is no such file.
    """
    where = fspath(source) if isinstance(source, (str, PathLike)) else option
    try:
        node = OmegaConf.load(where) if isinstance(source, (str, PathLike)) else OmegaConf.create(source)  # type: ignore[arg-type]
        OmegaConf.resolve(node)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option}={where!r}: no such file: give the path of one that is there.") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{where} cannot be read: {_flat(error)}") from error
    return where, OmegaConf.to_container(node)


def typed(kind: type[T], item: Any, where: str, place: str, known: str = "") -> T:
    """A mapping of the file as the dataclass that it mirrors.

    Args:
        kind: The dataclass.
        item: What stands in the file.
        where: The file, for messages.
        place: Full key of the item, for messages.
        known: What messages say about the keys that there are; default: those of `kind`.

    Raises:
        ValueError: If it is none, a key is unknown, of the wrong type or left as ``???``, or `kind` refuses the values;
            with the key's full path.
    """
    known = known or f"Known keys are {keys(kind)}."
    if not isinstance(item, dict):
        raise ValueError(f"{where} at {place!r}: {item!r} is no mapping of keys to values. {known}")
    unknown = [key for key in item if key not in {field.name for field in fields(kind)}]  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{where} at '{place}.{unknown[0]}': the key is unknown. {known}")
    missing = [key for key, value in item.items() if value == "???"]  # a merge would put the default in its place
    if missing:
        raise ValueError(f"{where} at '{place}.{missing[0]}': the value is missing (???): fill it in.")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), item))
    except OmegaConfBaseException as error:
        raise ValueError(f"{where} at '{place}.{error.full_key}': {_flat(error)}. {known}") from error
    except ValueError as error:  # of the dataclass's own check
        raise ValueError(f"{where} at {place!r}: {error}") from error
    assert isinstance(made, kind)
    return made


def keys(kind: type) -> str:
    """Names of a dataclass's fields, for messages."""
    return ", ".join(field.name for field in fields(kind))


def _flat(error: Exception) -> str:
    return " ".join(str(error).split("full_key", 1)[0].split())
