"""One cut for all clients, the best single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import cuts_for_all, equal_shares, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass(frozen=True)
class Uniform:
    """SplitFed (Thapa et al., AAAI 2022) at its best: the cut for all with the shortest round, equal shares."""

    name: str = "uniform"

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        slowest = model.at_share(1 / len(clients)).max(axis=0)
        best = min(cuts_for_all(self.name, model), key=lambda cut: slowest[cut])
        return plan_of(self.name, model, [best] * len(clients), equal_shares(len(clients)))
