"""Clients and server from YAML: the keys are those of the profiles, and every mistake is an error with its place."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_edgesplit.scheduling import catalogue
from lightning_edgesplit.scheduling.measured import load_layer_times
from lightning_edgesplit.scheduling.mirror import Source, content, keys, typed
from lightning_edgesplit.scheduling.population import Kind, Population, Spread
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass
class _Profile:
    """A `ClientProfile` as it stands in a file: what is not given comes from `device` and `link`, if they are."""

    device: str | None = None
    link: str | None = None
    name: str = ""
    flops: float | None = None
    slowdown: float | None = None
    times: str | None = None  # path of a CSV file; see `load_layer_times`
    memory: float | None = None
    uplink: float | None = None
    downlink: float | None = None
    latency: float = 0.0
    power_busy: float | None = None
    power_idle: float | None = None


@dataclass
class _Client(_Profile):
    """With how many there are of it."""

    count: int = 1


@dataclass
class _Kind(_Profile):
    """With how many there are of it, in relation to the other kinds of a population."""

    weight: float = 1.0


@dataclass
class _Population:
    count: int | None = None
    seed: int = 0
    mixture: list[Any] = field(default_factory=list)
    spread: Any = None


@dataclass
class _Server:
    device: str | None = None
    link: str | None = None
    flops: float | None = None
    uplink: float | None = None
    downlink: float | None = None


def load_clients(source: Source) -> tuple[list[ClientProfile], ServerProfile | None]:
    """Reads ``clients:``, ``population:`` or both, and, if it is there, ``server:``.

    ``clients:`` is a list of profiles, each with an optional ``count``; ``population:`` draws clients by a seed
    (`Population`) from the profiles in its ``mixture``, each with an optional ``weight``. A profile may name a
    ``device`` and a ``link`` of the catalogue; keys beside them override single values. Its ``times`` is a CSV file of
    measured seconds, relative to the folder of the file that names it.

    Args:
        source: Path of a YAML file, an OmegaConf node or a plain mapping with these keys.

    Returns:
        One profile per client, those of ``clients:`` first, named ``client-<index>`` where neither a name nor a device
        is given, ``<name>-<index>`` where there are several of one kind; and the server's, or None.

    Raises:
        ValueError: If a key is unknown, a value has the wrong type, is missing or out of range, the catalogue has no
            such device or link, or a name comes twice.
        FileNotFoundError: If there is no such file.
    """
    where, read = content(source, "clients")
    folder = Path(source).parent if isinstance(source, (str, PathLike)) else Path()
    file: dict[str, Any] = {"clients": read} if isinstance(read, list) else read or {}
    strangers = [key for key in file if key not in ("clients", "population", "server")]
    if strangers:
        raise ValueError(f"{where} at {strangers[0]!r}: the key is unknown. {_KNOWN}")
    entries = file.get("clients", None if "population" in file else [])
    if entries is not None and (not isinstance(entries, list) or not entries):
        raise ValueError(f"{where}: `clients:` is missing or empty: list at least one client, or give `population:`.")
    profiles: list[ClientProfile] = []
    for place, item in enumerate(entries or []):
        at = f"clients[{place}]"
        client = typed(_Client, item, where, at, _KNOWN)
        if client.count < 1:
            raise ValueError(f"{where} at '{at}.count': {client.count} must be at least 1.")
        profile = _profile(client, item, where, at, folder)
        for copy in range(client.count):
            name = f"{profile.name}-{copy}" if profile.name and client.count > 1 else profile.name
            profiles.append(replace(profile, name=name or f"client-{len(profiles)}"))
    if "population" in file:
        profiles += _population(file["population"], where, folder).draw()
    names = [profile.name for profile in profiles]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"{where}: the name {twice!r} comes twice: give every client its own, or use `count`.")
    return profiles, _server(file["server"], where) if "server" in file else None


def _profile(entry: _Profile, item: dict[str, Any], where: str, place: str, folder: Path) -> ClientProfile:
    """The profile of an entry: catalogue first, then the keys that the file gives."""
    values: dict[str, Any] = {"name": entry.name or entry.device or ""}
    try:
        if entry.device is not None:
            device = catalogue.device(entry.device)
            values.update(flops=device.flops, memory=device.memory)
            values.update(power_busy=device.power_busy, power_idle=device.power_idle)
            if entry.slowdown is not None or entry.times is not None:
                del values["flops"]  # the file says otherwise how fast it is
        if entry.link is not None:
            link = catalogue.link(entry.link)
            values.update(uplink=link.uplink, downlink=link.downlink, latency=link.latency)
        own = ("flops", "slowdown", "memory", "uplink", "downlink", "latency", "power_busy", "power_idle")
        values.update({key: getattr(entry, key) for key in own if key in item})
        if entry.times is not None:
            values["times"] = load_layer_times(folder / entry.times)
        return ClientProfile(**values)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} at '{place}.times': {folder / str(entry.times)}: no such file.") from error
    except ValueError as error:
        raise ValueError(f"{where} at {place!r}: {error}") from error


def _population(item: Any, where: str, folder: Path) -> Population:
    given = typed(_Population, item, where, "population")
    if given.count is None:
        raise ValueError(f"{where} at 'population.count': the value is missing: how many clients are there?")
    kinds = []
    for place, entry in enumerate(item.get("mixture") or []):
        at = f"population.mixture[{place}]"
        kind = typed(_Kind, entry, where, at)
        profile = _profile(kind, entry, where, at, folder)
        try:
            kinds.append(Kind(profile, kind.weight))
        except ValueError as error:
            raise ValueError(f"{where} at {at!r}: {error}") from error
    spread = typed(Spread, item.get("spread") or {}, where, "population.spread")
    try:
        return Population(given.count, tuple(kinds), spread, given.seed)
    except ValueError as error:
        raise ValueError(f"{where} at 'population': {error}") from error


def _server(item: Any, where: str) -> ServerProfile:
    entry = typed(_Server, item, where, "server", _KNOWN)
    values: dict[str, float | None] = {}
    try:
        if entry.device is not None:
            values["flops"] = catalogue.device(entry.device).flops
        if entry.link is not None:
            link = catalogue.link(entry.link)
            values.update(uplink=link.uplink, downlink=link.downlink)
        own = (known.name for known in fields(ServerProfile))
        return ServerProfile(**{**values, **{key: getattr(entry, key) for key in own if key in item}})
    except ValueError as error:
        raise ValueError(f"{where} at 'server': {error}") from error


_KNOWN = (
    f"Known keys are `clients:`, a list with {keys(_Client)}; `population:` with {keys(_Population)};"
    f" and `server:` with {keys(_Server)}."
)
