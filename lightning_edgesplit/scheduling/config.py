"""Clients and server from YAML: the keys are those of the profiles, and every mistake is an error with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike, fspath
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass
class _Client:
    """A `ClientProfile` as it stands in a file, with how many there are of it."""

    name: str = ""
    flops: float | None = None
    slowdown: float | None = None
    memory: float | None = None
    uplink: float | None = None
    downlink: float | None = None
    latency: float = 0.0
    count: int = 1


@dataclass
class _Server:
    flops: float | None = None
    uplink: float | None = None
    downlink: float | None = None


Source = str | PathLike[str] | DictConfig | ListConfig | Mapping[str, Any]


def load_clients(source: Source) -> tuple[list[ClientProfile], ServerProfile | None]:
    """Reads ``clients:`` (a list of profiles, each with an optional ``count``) and, if it is there, ``server:``.

    Args:
        source: Path of a YAML file, an OmegaConf node or a plain mapping with these keys.

    Returns:
        One profile per client, named ``client-<index>`` where no name is given, ``<name>-<index>`` where there are
        several of one kind; and the server's, or None.

    Raises:
        ValueError: If a key is unknown, a value has the wrong type, is missing or out of range, or a name comes twice.
        FileNotFoundError: If there is no such file.
    """
    where = fspath(source) if isinstance(source, (str, PathLike)) else "clients"
    try:
        node = OmegaConf.load(where) if isinstance(source, (str, PathLike)) else OmegaConf.create(source)  # type: ignore[arg-type]
        OmegaConf.resolve(node)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"clients={where!r}: no such file: give a path, a number or profiles.") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{where} cannot be read: {_flat(error)}") from error
    content: Any = OmegaConf.to_container(node)
    file: dict[str, Any] = {"clients": content} if isinstance(content, list) else content or {}
    strangers = [key for key in file if key not in ("clients", "server")]
    if strangers:
        raise ValueError(f"{where} at {strangers[0]!r}: the key is unknown. {_KNOWN}")
    if not isinstance(file.get("clients"), list) or not file["clients"]:
        raise ValueError(f"{where}: `clients:` is missing or empty: list at least one client.")
    clients = [_typed(_Client, item, where, f"clients[{place}]") for place, item in enumerate(file["clients"])]
    profiles: list[ClientProfile] = []
    for place, client in enumerate(clients):
        if client.count < 1:
            raise ValueError(f"{where} at 'clients[{place}].count': {client.count} must be at least 1.")
        values = {key: value for key, value in vars(client).items() if key not in ("name", "count")}
        for copy in range(client.count):
            name = f"{client.name}-{copy}" if client.name and client.count > 1 else client.name
            try:
                profiles.append(ClientProfile(name=name or f"client-{len(profiles)}", **values))
            except ValueError as error:
                raise ValueError(f"{where} at 'clients[{place}]': {error}") from error
    names = [profile.name for profile in profiles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: the name {twice[0]!r} comes twice: give every client its own, or use `count`.")
    try:
        server = ServerProfile(**vars(_typed(_Server, file["server"], where, "server"))) if "server" in file else None
    except ValueError as error:
        raise ValueError(f"{where} at 'server': {error}") from error
    return profiles, server


T = TypeVar("T")


def _typed(kind: type[T], item: Any, where: str, place: str) -> T:
    """A mapping of the file as the dataclass that it mirrors.

    Raises:
        ValueError: If it is none, or a key is unknown, of the wrong type or left as ``???``; with the key's full path.
    """
    if not isinstance(item, dict):
        raise ValueError(f"{where} at {place!r}: {item!r} is no mapping of keys to values. {_KNOWN}")
    unknown = [key for key in item if key not in {known.name for known in fields(kind)}]  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{where} at '{place}.{unknown[0]}': the key is unknown. {_KNOWN}")
    missing = [key for key, value in item.items() if value == "???"]  # a merge would put the default in its place
    if missing:
        raise ValueError(f"{where} at '{place}.{missing[0]}': the value is missing (???): fill it in.")
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), item))
    except OmegaConfBaseException as error:
        raise ValueError(f"{where} at '{place}.{error.full_key}': {_flat(error)}. {_KNOWN}") from error
    assert isinstance(typed, kind)
    return typed


def _flat(error: Exception) -> str:
    return " ".join(str(error).split("full_key", 1)[0].split())


def _keys(kind: type) -> str:
    return ", ".join(known.name for known in fields(kind))


_KNOWN = f"Known keys are `clients:`, a list with {_keys(_Client)}, and `server:` with {_keys(_Server)}."
