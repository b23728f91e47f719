"""What a policy decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Cuts and link shares of one round.

    Attributes:
        policy: Name of the policy that made it.
        cuts: Name of the cut of each client.
        shares: Fraction of the shared links that each client gets, both directions; they sum to 1 at most.
        uplink: Rate of each client towards the server, bit/s; None: not limited.
        downlink: Rate of each client from the server, bit/s; None: not limited.
        predicted: Seconds of each client's round by the latency model.
        iterations: The objective (seconds of the slowest client's round) after each iteration of an iterative policy;
            one value where the policy decides in one go.
    """

    policy: str
    cuts: tuple[str, ...]
    shares: tuple[float, ...]
    uplink: tuple[float | None, ...]
    downlink: tuple[float | None, ...]
    predicted: tuple[float, ...]
    iterations: tuple[float, ...] = ()

    @property
    def round_time(self) -> float:
        """Seconds of the slowest client's round by the latency model."""
        return max(self.predicted)
