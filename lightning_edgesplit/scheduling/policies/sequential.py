"""Vanilla split learning: clients in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import cuts_for_all, plan_of, simulated
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass(frozen=True)
class SequentialSplit:
    """Clients take turns with one model, each with links and server for itself (Gupta & Raskar 2018, arXiv:1810.06060).

    The paper's: one cut, one server-side model, and a client-side model that goes from client to client. Ours: that it
    goes by way of the server, as all models here do; and that the cut is the best single one,

        argmin over l of  Σ_k [ H_k·(b·Fc/C_k + b·S/u_k + b·Fs/F + b·G/d_k + b·Bc/C_k) + W/d_k + W/u_k ]

    with the whole link and the whole server for whoever's turn it is, among the cuts that fit every client. `END` is
    none of them while there is another: nothing would be split.

    The formula of `LatencyModel.round_time` does not know turns: `Plan.predicted` holds when each client's turn ends in
    the simulated round.
    """

    name: str = "sequential"
    server_model: ClassVar[str] = "sequential"

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        best = min(cuts_for_all(self.name, model, split=True), key=lambda cut: self._seconds(model, cut))
        plan = plan_of(self.name, model, [best] * len(clients), [1.0] * len(clients))
        return simulated(replace(plan, server_model="sequential", iterations=()), model)

    @staticmethod
    def _seconds(model: LatencyModel, cut: int) -> float:
        """Seconds of all turns, one after the other."""
        total = 0.0
        for client, steps in enumerate(model.costs.steps):
            t = model.times(client, cut, 1.0)
            total += steps * (t.forward + t.uplink + t.server + t.downlink + t.backward) + t.download + t.upload
        return total
