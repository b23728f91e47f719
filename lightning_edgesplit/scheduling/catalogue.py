"""Devices and links by name, from public sources: `configs/catalogue/` says which, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from lightning_edgesplit.scheduling.mirror import content, typed


@dataclass(frozen=True)
class Device:
    """A device of the catalogue. The keys are those of ``devices.yaml``.

    Attributes:
        peak: FLOP/s in single precision that the hardware could do at most; or else
        sustained: FLOP/s as measured.
        efficiency: Fraction of `peak` that training gets; given exactly if `peak` is.
        ram: Bytes of memory.
        ram_share: Fraction of it that training may use.
        power_busy: Watts while it computes; None: unknown.
        power_idle: Watts while it waits; None: unknown.

    Raises:
        ValueError: If a value is missing or out of range, or both or none of `peak` and `sustained` are given.
    """

    peak: float | None = None
    sustained: float | None = None
    efficiency: float | None = None
    ram: float | None = None
    ram_share: float | None = None
    power_busy: float | None = None
    power_idle: float | None = None

    def __post_init__(self) -> None:
        if (self.peak is None) == (self.sustained is None):
            raise ValueError(f"peak={self.peak} and sustained={self.sustained}: give one of them.")
        if (self.peak is None) != (self.efficiency is None):
            raise ValueError(
                f"efficiency={self.efficiency} with peak={self.peak}: it goes with `peak`, and only there."
            )
        for option, value in (("ram", self.ram), ("ram_share", self.ram_share)):
            if value is None:
                raise ValueError(f"{option} is missing: give it.")
        _positive(peak=self.peak, sustained=self.sustained, ram=self.ram)
        _positive(power_busy=self.power_busy, power_idle=self.power_idle)
        _fraction(efficiency=self.efficiency, ram_share=self.ram_share)
        if self.power_busy is not None and self.power_idle is not None and self.power_idle > self.power_busy:
            raise ValueError(f"power_idle={self.power_idle} exceeds power_busy={self.power_busy}.")

    @property
    def flops(self) -> float:
        """Sustained compute rate, FLOP/s."""
        return _rate(self.sustained, self.peak, self.efficiency)

    @property
    def memory(self) -> float:
        """Bytes that training may use."""
        return (self.ram or 0.0) * (self.ram_share or 0.0)  # __post_init__ saw to it that both are there


@dataclass(frozen=True)
class Link:
    """A link of the catalogue, between one client that has it for itself and the server.

    The keys are those of ``links.yaml``.

    Attributes:
        peak_uplink: Rate of the standard towards the server, bit/s; or else
        sustained_uplink: The rate as measured, bit/s.
        peak_downlink: Rate of the standard from the server, bit/s; or else
        sustained_downlink: The rate as measured, bit/s.
        efficiency: Fraction of the peaks that payload gets; given exactly if there is a peak.
        latency: One-way delay of a message, seconds.

    Raises:
        ValueError: If a value is missing or out of range, or a direction has both or none of peak and sustained rate.
    """

    peak_uplink: float | None = None
    sustained_uplink: float | None = None
    peak_downlink: float | None = None
    sustained_downlink: float | None = None
    efficiency: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for way, peak, sustained in (
            ("uplink", self.peak_uplink, self.sustained_uplink),
            ("downlink", self.peak_downlink, self.sustained_downlink),
        ):
            if (peak is None) == (sustained is None):
                raise ValueError(f"peak_{way}={peak} and sustained_{way}={sustained}: give one of them.")
            _positive(**{f"peak_{way}": peak, f"sustained_{way}": sustained})
        measured = self.peak_uplink is None and self.peak_downlink is None
        if measured != (self.efficiency is None):
            raise ValueError(f"efficiency={self.efficiency}: it goes with peak rates, and only there.")
        _fraction(efficiency=self.efficiency)
        if self.latency is None or not 0 <= self.latency < float("inf"):
            raise ValueError(f"latency={self.latency} must be >= 0 seconds and finite.")

    @property
    def uplink(self) -> float:
        """Rate towards the server, bit/s."""
        return _rate(self.sustained_uplink, self.peak_uplink, self.efficiency)

    @property
    def downlink(self) -> float:
        """Rate from the server, bit/s."""
        return _rate(self.sustained_downlink, self.peak_downlink, self.efficiency)


def device(name: str) -> Device:
    """The device of that name.

    Raises:
        ValueError: If there is none; the message lists those that there are.
    """
    return _named(devices(), name, "device")


def link(name: str) -> Link:
    """The link of that name.

    Raises:
        ValueError: If there is none; the message lists those that there are.
    """
    return _named(links(), name, "link")


@cache
def devices() -> Mapping[str, Device]:
    """All devices by name, in the order of the file."""
    return load_entries(Device, _home() / "devices.yaml")


@cache
def links() -> Mapping[str, Link]:
    """All links by name, in the order of the file."""
    return load_entries(Link, _home() / "links.yaml")


Entry = TypeVar("Entry", Device, Link)


def load_entries(kind: type[Entry], path: Path) -> Mapping[str, Entry]:
    """Entries of a catalogue file by name.

    Raises:
        ValueError: If the file or an entry is wrong, with the entry's name and key.
        FileNotFoundError: If there is no such file.
    """
    where, entries = content(path, "catalogue")
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{where} holds no entries: write a mapping of names to values.")
    return MappingProxyType({str(name): typed(kind, item, where, str(name)) for name, item in entries.items()})


def _home() -> Path:
    """The folder of the catalogue: inside an installed package, or beside the package in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configs" / "catalogue"
    return inside if inside.is_dir() else package.parent / "configs" / "catalogue"


def _named(entries: Mapping[str, Entry], name: str, what: str) -> Entry:
    if name not in entries:
        raise ValueError(f"{what}={name!r} is not in the catalogue. Known: {', '.join(entries)}.")
    return entries[name]


def _rate(sustained: float | None, peak: float | None, efficiency: float | None) -> float:
    if sustained is not None:
        return sustained
    return (peak or 0.0) * (efficiency or 0.0)  # __post_init__ saw to it that both are there


def _positive(**values: float | None) -> None:
    for option, value in values.items():
        if value is not None and not 0 < value < float("inf"):  # written this way so that NaN is refused too
            raise ValueError(f"{option}={value} must be > 0 and finite: leave it out where it is unknown.")


def _fraction(**values: float | None) -> None:
    for option, value in values.items():
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{option}={value} must be a fraction in (0, 1].")
