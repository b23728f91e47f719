"""Micro-batches in flight, for any policy's plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import END, Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import Policy, check, for_round, simulated
from lightning_edgesplit.scheduling.policies.fixed import Fixed
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.simulate import simulate

SUFFIX = "+pipar"
"""What the name of a policy has behind it where its plans overlap."""

_MOST = 16


@dataclass(frozen=True)
class Overlapped:
    """Another policy's plan with the number of micro-batches that makes the simulated round shortest.

    From PiPar (arXiv:2302.12803) and its code (blessonvar/PipeLearn, MIT): a batch is divided into micro-batches, so
    that a client computes the next one while others are on the link or at the server; there are enough of them to fill
    a client's time when

        N = ⌈(t_up + t_sf + t_sb + t_dn) / min(t_cf, t_cb)⌉ + 1

    with the times of one undivided local step, capped; and of the candidates the one with the least simulated time is
    taken. Ours: candidates are m = 1…max_k N_k for all clients together, min(m, N_k, b_k) for client k, and they are
    scored by `simulate`; the cuts, which PiPar chooses along, are the other policy's. One at a time is a candidate, so
    the simulated round is never longer than the other policy's. The update is the same wherever no layer looks at the
    whole batch (batch norm does).

    Attributes:
        policy: Whose plans.
        micro_batches: Most micro-batches of a client; None: 16.
    """

    policy: Policy
    micro_batches: int | None = None

    def __post_init__(self) -> None:
        if self.micro_batches is not None:
            check(self.name, micro_batches=(self.micro_batches, 1, 2**31))

    @property
    def name(self) -> str:
        """The other policy's, and the suffix."""
        return self.policy.name + SUFFIX

    @property
    def cuts(self) -> Any:
        """The cuts that the other policy names, if it is one that does; else None."""
        return getattr(self.policy, "cuts", None)

    def in_round(self, epoch: int, number: int) -> Overlapped:
        """See `ByRound`."""
        return replace(self, policy=for_round(self.policy, epoch, number))

    @property
    def server_model(self) -> str:
        """The server-side model that the policy plans for."""
        return str(getattr(self.policy, "server_model", "per_client"))

    @property
    def batches(self) -> bool:
        """Whether the policy divides the global batch anew."""
        return bool(getattr(self.policy, "batches", False))

    @property
    def phi(self) -> float:
        """The policy's φ, if it has one."""
        return float(getattr(self.policy, "phi", 0.0))

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`."""
        model = LatencyModel(costs, clients, server, corrections)
        plan = replace(self.policy.plan(costs, clients, server, corrections), policy=self.name)
        most = [self._enough(model.under(plan), plan, k) for k in range(len(clients))]
        candidates = [plan] + [
            replace(plan, micro_batches=tuple(min(parts, own) for own in most)) for parts in range(1, max(most) + 1)
        ]
        best = min(candidates, key=lambda candidate: simulate(model, candidate).round_time)  # the first of equals
        return simulated(replace(best, iterations=()), model)

    def _enough(self, model: LatencyModel, plan: Plan, client: int) -> int:
        """N of a client at its cut and share of the links, at most what is allowed and its batch has."""
        if plan.cuts[client] == END or client in plan.left_out:
            return 1
        t = model.times(client, model.names.index(plan.cuts[client]), plan.shares[client])
        served = t.server / plan.server_shares[client] if plan.server_shares else t.server
        away, least = t.uplink + served + t.downlink, min(t.forward, t.backward)
        limit = min(self.micro_batches or _MOST, max(1, model.costs.batch[client]))
        return limit if away >= limit * least else min(limit, math.ceil(away / least) + 1)


def with_fixed(policy: Policy, change: Callable[[Fixed], Fixed]) -> Policy:
    """The policy with its `Fixed` cuts changed, overlapped or not; any other as it is."""
    if isinstance(policy, Overlapped):
        return replace(policy, policy=with_fixed(policy.policy, change))
    return change(policy) if isinstance(policy, Fixed) else policy
