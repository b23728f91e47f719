"""A cut drawn for each client in each round."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import check, equal_shares, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile


def drawn(cuts: Sequence[int], seed: int, epoch: int, number: int, client: str) -> int:
    """One of the cuts, each as likely; the same for the same seed, round and client, whoever else takes part."""
    return random.Random(f"{seed}/{epoch}/{number}/{client}").choice(cuts)


@dataclass(frozen=True)
class RandomCuts:
    """Any cut that fits the client, each as likely, drawn anew in every round; equal shares.

    Ours, as the baseline that any choice should beat. `END` is a cut like the others.

    Attributes:
        seed: With the round and the client's name it says what is drawn.
        epoch: The epoch of the round.
        number: The round's number in its epoch.
    """

    seed: int = 0
    epoch: int = 0
    number: int = 0
    name: str = "random"

    def __post_init__(self) -> None:
        check(self.name, seed=(self.seed, 0, 2**63))

    def in_round(self, epoch: int, number: int) -> RandomCuts:
        """See `ByRound`."""
        return replace(self, epoch=epoch, number=number)

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        cuts = [
            drawn(model.fits(k), self.seed, self.epoch, self.number, client.name or str(k))
            for k, client in enumerate(clients)
        ]
        return plan_of(self.name, model, cuts, equal_shares(len(clients)))
