"""Emulation on the wall clock: compute is stretched to an emulated duration, transfers to an emulated link's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lightning_edgesplit.scheduling.links import bytes_per_second

Clock = Callable[[], float]
Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Emulation:
    """How fast an emulated client is in one round. The server sends it with the plan.

    Attributes:
        forward: Seconds per sample of its forward pass.
        backward: Seconds per sample of its backward pass and optimizer step.
        head: Seconds per sample of its last layers and the loss, forward and backward, where the step comes back.
        uplink: Rate towards the server, bit/s; None: not limited.
        downlink: Rate from the server, bit/s; None: not limited.
        latency: One-way delay of a message, seconds.
    """

    forward: float
    backward: float
    uplink: float | None = None
    downlink: float | None = None
    latency: float = 0.0
    head: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)


class LinkDiscipline(Protocol):
    """Who may use a link, and how fast: one direction of one client's link.

    `TokenBucket` gives a client a share of its own. Where a discipline orders several clients (fair, longest first),
    the server's arbiter is asked: `Asked`.
    """

    def transmit(self, size: int, start: float) -> float:
        """Claims the link.

        Args:
            size: Bytes of the message.
            start: When the message is ready, on the monotonic clock, seconds.

        Returns:
            When its last byte is through, seconds on the same clock.
        """
        ...


class TokenBucket:
    """A link of constant rate: tokens come in at `rate`, a message takes as many as it has bytes.

    Args:
        rate: bit/s; None: not limited.
        latency: Delay added to each message, seconds.
        burst: Bytes that may pass at once after the link was idle; 0: every byte takes its time, as in the latency
            model.
    """

    def __init__(self, rate: float | None, latency: float = 0.0, burst: float = 0.0) -> None:
        self._rate = None if rate is None else bytes_per_second(rate)
        self._latency, self._burst = latency, burst
        self._tokens, self._at = burst, float("-inf")

    def transmit(self, size: int, start: float) -> float:
        """See `LinkDiscipline.transmit`. Tokens may go below zero: that is the queue of what is not through yet."""
        if self._rate is None:
            return start + self._latency
        if start > self._at:
            self._tokens = min(self._burst, self._tokens + (start - self._at) * self._rate)
            self._at = start
        self._tokens -= size
        return self._at + max(0.0, -self._tokens) / self._rate + self._latency


class Asked:
    """An uplink that is granted by the server: whoever sends asks, and sends once it may.

    Args:
        ask: Asks for so many bytes, and returns when they may go.
        clock: Monotonic seconds.
    """

    def __init__(self, ask: Callable[[int], None], clock: Clock = time.monotonic) -> None:
        self._ask, self._clock = ask, clock

    def transmit(self, size: int, start: float) -> float:
        """See `LinkDiscipline.transmit`; the grant comes when the last byte would be through."""
        self._ask(size)
        return max(start, self._clock())


class AsItComes:
    """A downlink on which the server sends when it is time."""

    def transmit(self, size: int, start: float) -> float:
        """See `LinkDiscipline.transmit`."""
        return start


class Throttle:
    """Lets a client take as long as the emulated one would.

    Deadline pacing: the real work is done, then what is left of the emulated time is slept. Where the real work took
    longer, nothing is slept, and the excess is added up in `overrun`.

    Args:
        emulation: How fast to be; None: as fast as the machine can.
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
        uplink: Discipline of the uplink; by default a token bucket at the emulated rate.
        downlink: The same for the downlink.

    Attributes:
        overrun: Seconds by which real work exceeded the emulated time so far.
    """

    def __init__(
        self,
        emulation: Emulation | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
        uplink: LinkDiscipline | None = None,
        downlink: LinkDiscipline | None = None,
    ) -> None:
        self.emulation, self.overrun = emulation, 0.0
        self._clock, self._sleep = clock, sleep
        self._up = self._down = None
        if emulation is not None:
            self._up = uplink or TokenBucket(emulation.uplink, emulation.latency)
            self._down = downlink or TokenBucket(emulation.downlink, emulation.latency)

    def forward(self, start: float, samples: int) -> None:
        """Waits until a forward pass over `samples` that began at `start` would be done."""
        if self.emulation is not None:
            self._until(start + self.emulation.forward * samples)

    def head(self, start: float, samples: int) -> None:
        """Waits until the last layers and the loss over `samples`, begun at `start`, would be done, both ways."""
        if self.emulation is not None:
            self._until(start + self.emulation.head * samples)

    def backward(self, start: float, samples: int) -> None:
        """Waits until a backward pass over `samples` that began at `start` would be done."""
        if self.emulation is not None:
            self._until(start + self.emulation.backward * samples)

    def sending(self, size: int) -> None:
        """Waits until the last of `size` bytes would have reached the server; call it, then send."""
        if self._up is not None:
            self._until(self._up.transmit(size, self._clock()))

    def received(self, size: int, arrived: float) -> None:
        """Waits until the last of `size` bytes, really here since `arrived`, would have come over the emulated link."""
        if self._down is not None:
            self._until(self._down.transmit(size, arrived))

    def _until(self, deadline: float) -> None:
        left = deadline - self._clock()
        if left > 0:
            self._sleep(left)
        else:
            self.overrun -= left
