"""One cut for all clients, the best single one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import equal_shares, plan_of
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
        slowest = model.at_share(1 / len(clients)).max(axis=0)  # infinite where one client's memory does not fit
        if not np.isfinite(slowest).any():
            raise InfeasibleError(
                "no single cut fits into the `memory` of every client, as policy='uniform' wants: use a policy that"
                " gives each client its own cut, such as 'edgesplit'."
            )
        return plan_of(self.name, model, [int(slowest.argmin())] * len(clients), equal_shares(len(clients)))
