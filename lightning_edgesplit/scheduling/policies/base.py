"""What a policy is, and what policies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.bisection import solve, solve_at
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
    predicted = tuple(model.round_times(cuts, shares).tolist())
    names, (uplink, downlink) = model.names, model.rates(shares)
    return Plan(
        policy=policy,
        cuts=tuple(names[cut] for cut in cuts),
        shares=tuple(float(share) for share in shares),
        uplink=tuple(uplink),
        downlink=tuple(downlink),
        predicted=predicted,
        iterations=tuple(iterations) or (max(predicted),),
    )


def equal_shares(clients: int) -> list[float]:
    """1/N each."""
    return [1 / clients] * clients


def bisect(
    model: LatencyModel, cuts: Sequence[int] | None = None, tolerance: float = 1e-9
) -> tuple[list[int], list[float]]:
    """Least time T that all clients reach with shares that sum to 1 at most; see `bisection`.

    Args:
        model: The latency model.
        cuts: Fixed cuts, one per client; None: each client's best among those that fit its memory.
        tolerance: How far T may be above the optimum, relative to it.

    Returns:
        Cuts and shares; what is left of the links is given out in proportion, so that the shares sum to 1.
    """
    terms = model.terms
    chosen, shares, _ = solve(terms, tolerance) if cuts is None else solve_at(terms, np.asarray(cuts), tolerance)
    return chosen.tolist(), shares.tolist()
