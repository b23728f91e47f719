"""Clients and server from YAML: the keys are those of the profiles, and every mistake is an error with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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


@dataclass
class _File:
    clients: list[_Client] = field(default_factory=list)  # a list: OmegaConf leaves the items of a tuple unchecked
    server: _Server | None = None


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
        if isinstance(node, ListConfig):
            node = OmegaConf.create({"clients": node})
        file = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(_File), node))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"clients={where!r}: no such file: give a path, a number or profiles.") from error
    except OmegaConfBaseException as error:
        key = f" at {error.full_key!r}" if error.full_key else ""
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{where}{key}: {reason}. Known keys are `clients:` with {_keys(_Client)}, and `server:` with"
            f" {_keys(_Server)}."
        ) from error
    assert isinstance(file, _File)
    if not file.clients:
        raise ValueError(f"{where}: `clients:` is empty: list at least one client.")
    profiles: list[ClientProfile] = []
    for place, client in enumerate(file.clients):
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
        server = ServerProfile(**vars(file.server)) if file.server is not None else None
    except ValueError as error:
        raise ValueError(f"{where} at 'server': {error}") from error
    return profiles, server


def _keys(kind: type) -> str:
    return ", ".join(kind.__dataclass_fields__)  # type: ignore[attr-defined]
