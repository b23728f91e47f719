"""Cuts that the user chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.errors import InfeasibleError
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import equal_shares, lacking, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


@dataclass(frozen=True)
class Fixed:
    """The same cuts in every round, and equal shares unless others are given.

    Attributes:
        cuts: Name of each client's cut.
        shares: Fraction of the links for each client; empty: equal.

    Raises:
        ValueError: If the shares are not one per cut, not positive, or sum to more than 1.
    """

    cuts: tuple[str, ...]
    shares: tuple[float, ...] = ()
    name: str = "fixed"

    def __post_init__(self) -> None:
        if self.shares and (len(self.shares) != len(self.cuts) or min(self.shares) <= 0 or sum(self.shares) > 1 + 1e-9):
            raise ValueError(
                f"shares={self.shares} must be one per client, each > 0, with a sum of at most 1: fix them, or leave"
                " `shares` out for equal ones."
            )

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        if len(self.cuts) != len(clients):
            raise ValueError(f"cuts={self.cuts} names {len(self.cuts)} cuts for {len(clients)} clients: one for each.")
        model = LatencyModel(costs, clients, server, corrections)
        unknown = [cut for cut in self.cuts if cut not in model.names]
        if unknown:
            raise ValueError(f"cuts={unknown[0]!r} is unknown: choose from {', '.join(model.names)}.")
        chosen = [model.names.index(cut) for cut in self.cuts]
        for k, cut in enumerate(chosen):
            if cut not in model.fits(k):
                raise InfeasibleError(
                    f"memory={clients[k].memory:g} bytes of client {clients[k].name!r} does not hold cut"
                    f" {self.cuts[k]!r} ({model.memory(k, cut):.0f} bytes, {lacking(model, k, cut):.0f} more):"
                    " choose a shallower cut."
                )
        return plan_of(self.name, model, chosen, self.shares or equal_shares(len(clients)))
