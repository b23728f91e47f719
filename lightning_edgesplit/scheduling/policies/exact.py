"""The optimum of EdgeSplit's problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import bisect, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass(frozen=True)
class Exact:
    """Shortest slowest round over cuts and bandwidth shares, optimal to `tolerance`.

    Ours. For a target T each client needs b_k(T) = min over its cuts l of the least share that reaches T; T can be
    reached iff Σ b_k(T) ≤ 1, which is monotone in T. How T is found for many clients at once: `bisection`.

    Attributes:
        tolerance: How far the round may be above the optimum, relative to it.
    """

    tolerance: float = 1e-9
    name: str = "exact"

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        cuts, shares = bisect(model, tolerance=self.tolerance)
        return plan_of(self.name, model, cuts, shares)
