"""What the scheduler knows of the machines: one profile per client, one for the server."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_edgesplit.scheduling.measured import LayerTimes


def _positive(owner: str, **values: float | None) -> None:
    for option, value in values.items():
        if value is not None and not 0 < value < float("inf"):  # written this way so that NaN is refused too
            raise ValueError(f"{option}={value} of {owner} must be > 0 and finite: fix it, or leave `{option}` out.")


@dataclass(frozen=True)
class ClientProfile:
    """What the scheduler knows about one client.

    Attributes:
        name: How reports call the client; the strategy fills in ``client-<index>`` where it is empty.
        flops: Sustained compute rate, FLOP/s. Excludes `slowdown`.
        slowdown: How many times slower than this machine (one thread) the client computes, or, with `times`, slower
            than those. Where none of `flops`, `slowdown` and `times` is given, the client is as fast as this machine.
        memory: Bytes for the client-side model, its gradients, optimizer state and activations; None: no limit.
        uplink: The client's own rate towards the server, bit/s; None: only the shared link limits it.
        downlink: The client's own rate from the server, bit/s; None: only the shared link limits it.
        latency: One-way delay of a message, seconds.
        times: Seconds measured on the client, cut by cut (`load_layer_times`), without the server's.
        power_busy: Watts while it computes, for energies in reports; None: unknown.
        power_idle: Watts while it does not; None: unknown.

    Raises:
        ValueError: If a value is not positive and finite, `flops` is given with `slowdown` or `times`, or it takes more
            power idle than busy.
    """

    name: str = ""
    flops: float | None = None
    slowdown: float | None = None
    memory: float | None = None
    uplink: float | None = None
    downlink: float | None = None
    latency: float = 0.0
    times: LayerTimes | None = None
    power_busy: float | None = None
    power_idle: float | None = None

    def __post_init__(self) -> None:
        owner = f"client {self.name!r}"
        _positive(
            owner,
            flops=self.flops,
            slowdown=self.slowdown,
            memory=self.memory,
            uplink=self.uplink,
            downlink=self.downlink,
            power_busy=self.power_busy,
            power_idle=self.power_idle,
        )
        if self.power_busy is not None and self.power_idle is not None and self.power_idle > self.power_busy:
            raise ValueError(
                f"power_idle={self.power_idle} of {owner} is above power_busy={self.power_busy}: swap them."
            )
        if not 0 <= self.latency < float("inf"):
            raise ValueError(f"latency={self.latency} of {owner} must be >= 0 seconds and finite.")
        if self.flops is not None and self.slowdown is not None:
            raise ValueError(
                f"flops={self.flops} and slowdown={self.slowdown} of {owner} exclude each other: keep the one you know."
            )
        if self.flops is not None and self.times is not None:
            raise ValueError(
                f"flops={self.flops} and times={self.times.source!r} of {owner} exclude each other: keep the times,"
                " which are measured."
            )


@dataclass(frozen=True)
class ServerProfile:
    """What the scheduler knows about the server.

    Attributes:
        flops: Sustained compute rate, FLOP/s; None: this machine's, as measured.
        uplink: Rate of the link that all clients share towards the server, bit/s; None: not limited.
        downlink: Rate of the link that all clients share from the server, bit/s; None: not limited.

    Raises:
        ValueError: If a value is not positive and finite.
    """

    flops: float | None = None
    uplink: float | None = None
    downlink: float | None = None

    def __post_init__(self) -> None:
        _positive("the server", flops=self.flops, uplink=self.uplink, downlink=self.downlink)
