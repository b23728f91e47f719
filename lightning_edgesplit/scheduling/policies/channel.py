"""An OFDMA uplink: subchannels, Shannon rates, and power that is poured where it does most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Channel:
    """What is known of the radio link from the clients to the server.

    A client with subchannels i and p_i watts on each sends  R = Σ_i B·log2(1 + p_i·g_i/(N0·B))  bit/s (Shannon).

    Attributes:
        subchannels: How many there are, M.
        bandwidth: B, Hz of each.
        noise: N0, W/Hz.
        gains: g, received over sent power, by the client's name: one number, or one per subchannel.
        power: Most watts of a client: one number for all, or one per client's name.
        total_power: Most watts of all clients together; None: no such limit.

    Raises:
        ValueError: If a value is not positive, or there is not one gain per subchannel.
    """

    subchannels: int
    bandwidth: float
    noise: float
    gains: Mapping[str, float | Sequence[float]]
    power: float | Mapping[str, float]
    total_power: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.subchannels, bool) or not isinstance(self.subchannels, int) or self.subchannels < 1:
            raise ValueError(f"subchannels={self.subchannels!r} of a channel must be a whole number, at least 1.")
        powers = self.power if isinstance(self.power, Mapping) else {"all": self.power}
        numbers = [("bandwidth", self.bandwidth), ("noise", self.noise)]
        numbers += [(f"power of {name!r}", value) for name, value in powers.items()]
        if self.total_power is not None:
            numbers.append(("total_power", self.total_power))
        for name, own in self.gains.items():
            if isinstance(own, Sequence) and len(own) != self.subchannels:
                raise ValueError(f"gains of {name!r} are {len(own)} for {self.subchannels} subchannels: one for each.")
            numbers += [(f"gains of {name!r}", gain) for gain in (own if isinstance(own, Sequence) else [own])]
        for option, value in numbers:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{option}={value!r} of a channel must be a number > 0 and finite.")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Channel:
        """The channel that a mapping, such as one from YAML, describes.

        Raises:
            ValueError: If a key is unknown or missing, or a value is refused.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in content if key not in known]
        missing = [key for key in known if key not in content and key != "total_power"]
        if unknown or missing:
            what = f"{unknown[0]!r} of a channel is unknown" if unknown else f"a channel needs {missing[0]!r}"
            raise ValueError(f"{what}: its keys are {', '.join(known)}.")
        return cls(**content)

    def snr(self, client: str) -> list[float]:
        """Signal over noise that a client reaches per watt on each subchannel, g/(N0·B), [subchannels].

        Raises:
            ValueError: If nothing is known of the client.
        """
        if client not in self.gains:
            raise ValueError(f"gains of a channel lack client {client!r}: they have {', '.join(self.gains)}.")
        own = self.gains[client]
        gains = list(own) if isinstance(own, Sequence) else [own] * self.subchannels
        return [gain / (self.noise * self.bandwidth) for gain in gains]

    def most_power(self, client: str) -> float:
        """Most watts of a client.

        Raises:
            ValueError: If nothing is known of the client.
        """
        if not isinstance(self.power, Mapping):
            return self.power
        if client not in self.power:
            raise ValueError(f"power of a channel lacks client {client!r}: it has {', '.join(self.power)}.")
        return self.power[client]


def poured(power: float, snr: Sequence[float]) -> list[float]:
    """Watts on each subchannel for the greatest Σ log2(1 + p_i·s_i) with Σ p_i ≤ power: water-filling.

    p_i = max(0, μ − 1/s_i), with the level μ at which the watts add up (Boyd & Vandenberghe 2004, example 5.2).

    Args:
        power: Watts in all.
        snr: s_i, signal over noise per watt, [subchannels].
    """
    floors = sorted(1 / s for s in snr)
    level = 0.0
    for count in range(len(floors), 0, -1):
        level = (power + sum(floors[:count])) / count
        if level >= floors[count - 1]:
            break
    return [max(0.0, level - 1 / s) for s in snr]


def shannon(powers: Sequence[float], snr: Sequence[float], bandwidth: float) -> float:
    """Bit/s over subchannels of `bandwidth` Hz each."""
    return sum(bandwidth * math.log2(1 + p * s) for p, s in zip(powers, snr, strict=True))


def least_power(bits: float, snr: Sequence[float], bandwidth: float) -> float:
    """The fewest watts with which a client sends so many bit/s: water-filling the other way round.

    With n subchannels in use, log2 μ = (bits/B − Σ log2 s_i)/n; those with the least noise are in use.
    """
    if bits <= 0:
        return 0.0
    best = sorted(snr, reverse=True)
    for count in range(len(best), 0, -1):
        exponent = (bits / bandwidth - sum(math.log2(s) for s in best[:count])) / count
        if exponent > 1000:  # 2^1000 watts: out of reach, and of floating point soon
            return math.inf
        level = 2**exponent
        if level >= 1 / best[count - 1]:
            return sum(level - 1 / s for s in best[:count])
    return math.inf  # no subchannel at all
