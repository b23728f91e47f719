"""EdgeSplit: cuts and shares in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import bisect, equal_shares, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass(frozen=True)
class EdgeSplit:
    """Shortest slowest round over cuts and bandwidth shares, by alternation. A reconstruction.

    From the paper (arXiv:2403.15815; only its abstract and opening could be read): each client has its own cut,
    training time is minimised over cuts and bandwidth together, by "a straightforward yet effective alternating
    algorithm".

    Ours: that the two steps are the best cut of every client at its share, then the shares that make all clients end
    together at their cuts (bisection on T with b_k = D_k/(T − A_k)); the start at the best single cut with equal
    shares, or at each client's best cut where memory leaves no single one; and stopping when a turn gains nothing.

    Attributes:
        tolerance: Least relative gain for which another turn is taken.
        turns: Most turns to take.
    """

    tolerance: float = 1e-6
    turns: int = 50
    name: str = "edgesplit"

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`; `Plan.iterations` holds the slowest client's seconds at the start and after every turn."""
        model = LatencyModel(costs, clients, server, corrections)
        shares = equal_shares(len(clients))
        start = model.at_share(shares[0])
        one_for_all = start.max(axis=0)
        cuts = (
            [int(one_for_all.argmin())] * len(clients)
            if np.isfinite(one_for_all).any()
            else [int(cut) for cut in start.argmin(axis=1)]
        )
        best = plan_of(self.name, model, cuts, shares)
        iterations = [best.round_time]
        for _ in range(self.turns):
            cuts = [self._best_cut(model, k, share) for k, share in enumerate(best.shares)]
            cuts, shares = bisect(model, cuts)
            turn = plan_of(self.name, model, cuts, shares)
            if turn.round_time >= best.round_time:
                break
            gain = 1 - turn.round_time / best.round_time
            best = turn
            iterations.append(best.round_time)
            if gain < self.tolerance:
                break
        return plan_of(self.name, model, [model.names.index(cut) for cut in best.cuts], best.shares, iterations)

    @staticmethod
    def _best_cut(model: LatencyModel, client: int, share: float) -> int:
        return min(model.fits(client), key=lambda cut: model.round_time(client, cut, share))
