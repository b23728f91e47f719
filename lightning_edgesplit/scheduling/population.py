"""Many clients from a few kinds: which kind each is, and how far it is from that kind's median, is drawn by a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.profiles import ClientProfile


@dataclass(frozen=True)
class Spread:
    """Log-normal spread of clients of one kind: a value is its kind's, the median, times e^(σz) with z ~ N(0, 1).

    The mean of the factor is e^(σ²/2), its variance (e^(σ²) − 1)·e^(σ²). Each value is drawn on its own.

    Attributes:
        flops: σ of `ClientProfile.flops`; 0: all alike.
        slowdown: σ of `ClientProfile.slowdown`.
        uplink: σ of `ClientProfile.uplink`.
        downlink: σ of `ClientProfile.downlink`.

    Raises:
        ValueError: If a σ is negative or not finite.
    """

    flops: float = 0.0
    slowdown: float = 0.0
    uplink: float = 0.0
    downlink: float = 0.0

    def __post_init__(self) -> None:
        for option, sigma in vars(self).items():
            if not 0 <= sigma < float("inf"):
                raise ValueError(f"{option}={sigma} must be >= 0 and finite: it is the σ of the logarithm.")


@dataclass(frozen=True)
class Kind:
    """One kind of client in a population.

    Attributes:
        profile: Its median client. The name, followed by a number, is that of every client of this kind.
        weight: How many there are of it, in relation to the other kinds.

    Raises:
        ValueError: If the weight is not positive and finite.
    """

    profile: ClientProfile
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} must be > 0 and finite: leave the kind out instead.")


@dataclass(frozen=True)
class Population:
    """Clients that are drawn from a mixture of kinds.

    The same seed gives the same clients, and a larger population begins with the clients of a smaller one: client
    number k is drawn by a generator of its own, seeded with (seed, k).

    Attributes:
        count: Number of clients.
        mixture: The kinds.
        spread: How far clients of a kind differ.
        seed: Of all that is drawn.

    Raises:
        ValueError: If there is no client or kind, the seed is negative, or no kind has a value that is to be
            spread.
    """

    count: int
    mixture: tuple[Kind, ...]
    spread: Spread = Spread()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be >= 0.")
        if not self.mixture:
            raise ValueError("mixture is empty: list at least one kind of client.")
        for option, sigma in vars(self.spread).items():
            # what some kinds of the mixture do not have is spread for the others; what none has is a mistake
            if sigma and all(getattr(kind.profile, option) is None for kind in self.mixture):
                raise ValueError(f"spread.{option}={sigma}, but no kind has `{option}`: give it to one, or drop the σ.")

    def draw(self) -> list[ClientProfile]:
        """The clients, named ``<name of the kind>-<number>``."""
        bounds = np.cumsum([kind.weight for kind in self.mixture])
        return [self._client(number, bounds / bounds[-1]) for number in range(self.count)]

    def _client(self, number: int, bounds: NDArray[np.float64]) -> ClientProfile:
        rng = np.random.default_rng([self.seed, number])
        # side="right": a kind is drawn with a probability of exactly its share, as rng.random() is in [0, 1)
        kind = self.mixture[int(np.searchsorted(bounds, rng.random(), side="right"))]
        normal = dict(zip((f.name for f in fields(Spread)), rng.standard_normal(len(fields(Spread))), strict=True))
        values: dict[str, Any] = {
            option: float(getattr(kind.profile, option) * np.exp(sigma * normal[option]))
            for option, sigma in vars(self.spread).items()
            if getattr(kind.profile, option) is not None
        }
        return replace(kind.profile, name=f"{kind.profile.name or 'client'}-{number}", **values)
