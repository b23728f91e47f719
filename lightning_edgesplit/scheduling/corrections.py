"""Measured times correct predicted ones, where they differ by more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GROUPS = ("compute", "uplink", "downlink", "server")
"""What is corrected, each by a factor of its own."""


@dataclass(frozen=True)
class Corrections:
    """Factors on predicted times, one per client: measured over predicted seconds.

    Attributes:
        compute: Factors on the clients' forward and backward passes.
        uplink: Factors on the time of what they send.
        downlink: Factors on the time of what they receive.
        server: Factors on the server's time for them.
        threshold: Relative difference up to which a factor stays as it is, so that noise does not change plans.
    """

    compute: tuple[float, ...]
    uplink: tuple[float, ...]
    downlink: tuple[float, ...]
    server: tuple[float, ...]
    threshold: float = 0.25

    @classmethod
    def none(cls, clients: int, threshold: float = 0.25) -> Corrections:
        """Factors of 1 for so many clients."""
        ones = (1.0,) * clients
        return cls(ones, ones, ones, ones, threshold)

    def of(self, clients: Sequence[int]) -> Corrections:
        """The factors of these clients alone."""
        compute, uplink, downlink, server = (
            tuple(getattr(self, group)[client] for client in clients) for group in GROUPS
        )
        return Corrections(compute, uplink, downlink, server, self.threshold)

    def update(
        self,
        predicted: Sequence[dict[str, float]],
        measured: Sequence[dict[str, float]],
        negligible: float = 1e-3,
    ) -> Corrections:
        """Takes over the ratios of a round that are further than `threshold` from the factors in force.

        Args:
            predicted: Seconds per client by group (keys from `GROUPS`), without any correction.
            measured: The same as measured; a group that is missing is not corrected.
            negligible: Seconds in a round below which nothing is concluded.
        """
        factors = {group: list(getattr(self, group)) for group in GROUPS}
        for client, (expected, real) in enumerate(zip(predicted, measured, strict=True)):
            for group, factor in factors.items():
                if group in real and min(expected[group], real[group]) > negligible:
                    ratio = real[group] / expected[group]
                    if abs(ratio / factor[client] - 1) > self.threshold:
                        factor[client] = ratio
        compute, uplink, downlink, server = (tuple(factors[group]) for group in GROUPS)
        return Corrections(compute, uplink, downlink, server, self.threshold)
