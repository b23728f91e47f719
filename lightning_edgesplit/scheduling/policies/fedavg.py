"""Federated averaging: nothing is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import END, Costs
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import equal_shares, lacking, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass(frozen=True)
class FedAvg:
    """Every client trains the whole model (McMahan et al. 2017, arXiv:1602.05629); equal shares of the links."""

    name: str = "fedavg"

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        end = model.names.index(END)
        for k, client in enumerate(clients):
            if end not in model.fits(k):
                raise InfeasibleError(
                    f"memory={client.memory:g} bytes of client {client.name!r} does not hold the whole model"
                    f" ({model.memory(k, end):.0f} bytes, {lacking(model, k, end):.0f} more), as policy='fedavg' wants:"
                    " use a policy that splits it."
                )
        return plan_of(self.name, model, [end] * len(clients), equal_shares(len(clients)))
