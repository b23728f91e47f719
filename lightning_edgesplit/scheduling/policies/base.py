"""What a policy is, and what policies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel, rate
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@runtime_checkable
class Policy(Protocol):
    """Decides cuts and shares of a round."""

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """Plans a round.

        Args:
            costs: What each cut costs, and each client's batch and local steps.
            clients: One profile per client.
            server: The server's profile.
            corrections: What measured times taught so far.

        Raises:
            InfeasibleError: If no cut fits into a client's memory.
        """
        ...


def plan_of(
    policy: str, model: LatencyModel, cuts: Sequence[int], shares: Sequence[float], iterations: Sequence[float] = ()
) -> Plan:
    """The plan with these cuts (by number) and shares, with its predicted times."""
    predicted = tuple(model.round_time(k, cut, share) for k, (cut, share) in enumerate(zip(cuts, shares, strict=True)))
    pairs = list(zip(shares, model.clients, strict=True))
    return Plan(
        policy=policy,
        cuts=tuple(model.names[cut] for cut in cuts),
        shares=tuple(float(share) for share in shares),
        uplink=tuple(rate(share, model.server.uplink, client.uplink) for share, client in pairs),
        downlink=tuple(rate(share, model.server.downlink, client.downlink) for share, client in pairs),
        predicted=predicted,
        iterations=tuple(iterations) or (max(predicted),),
    )


def equal_shares(clients: int) -> list[float]:
    """1/N each."""
    return [1 / clients] * clients


def bisect(
    model: LatencyModel, cuts: Sequence[int] | None = None, tolerance: float = 1e-9
) -> tuple[list[int], list[float]]:
    """Least time T that all clients reach with shares that sum to 1 at most, by bisection on T.

    For a target T a client needs b_k(T) = min over its cuts of the least share; T is feasible iff Σ b_k(T) ≤ 1.

    Args:
        model: The latency model.
        cuts: Fixed cuts, one per client; None: each client's best among those that fit its memory.
        tolerance: Relative width at which the bisection stops.

    Returns:
        Cuts and shares; what is left of the links is given out in proportion, so that the shares sum to 1.
    """
    everyone = np.arange(len(model.clients))

    def needs(target: float) -> tuple[np.ndarray, np.ndarray]:
        shares = model.least_shares(target)
        chosen = np.argmin(shares, axis=1) if cuts is None else np.asarray(cuts)
        return chosen, shares[everyone, chosen]

    equal = model.at_share(1 / len(model.clients))
    alone = model.fastest()
    high = float((equal.min(axis=1) if cuts is None else equal[everyone, np.asarray(cuts)]).max())
    low = float((alone.min(axis=1) if cuts is None else alone[everyone, np.asarray(cuts)]).max())
    high *= 1 + 1e-12  # equal shares are feasible, whatever the rounding
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if needs(middle)[1].sum() <= 1 else (middle, high)
    chosen, shares = needs(high)
    total = shares.sum()
    given = shares / total if total > 0 else np.full(len(shares), 1 / len(shares))
    return [int(cut) for cut in chosen], [float(share) for share in given]
