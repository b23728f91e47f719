"""ASFL as its paper says: cuts, shares, and which clients take part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import bisect, check, plan_of
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile

_INFINITE = float("inf")


@dataclass(frozen=True)
class ASFL:
    """Cuts, bandwidth shares and the clients that take part, for the shortest round. A reconstruction.

    From the paper (arXiv:2405.18707; abstract and opening): the model is split adaptively, clients train in parallel,
    and vehicles are selected and resources allocated to shorten training. How it does either could not be read; its
    published code does neither (`ASFLCode`).

    Ours, all of it: with n clients taking part, each with f_k = F/n of the server, the least time in which they can be
    served is

        T(n) = min T  such that  Σ over the n clients with the least b_k(T) of b_k(T) ≤ 1,
        b_k(T) = min over cuts l of the least share of the links with which client k's round takes no longer than T

    since b_k falls as T grows, by bisection, and exactly. Without a deadline n = ⌈least·N⌉: the slowest are left out.
    With one, n is the greatest with T(n) ≤ deadline (T grows with n), at least ⌈least·N⌉. Cuts and shares of those who
    take part are then the optimum for them (`Exact`). Who is left out does not change from round to round unless
    profiles or measured times do: data that only slow clients have are not learnt from.

    Attributes:
        least: Fraction of the clients that take part at least.
        deadline: Seconds that a round should not exceed; None: as short as `least` allows.
        tolerance: Relative width at which the bisection stops.
    """

    least: float = 0.75
    deadline: float | None = None
    tolerance: float = 1e-9
    name: str = "asfl"

    def __post_init__(self) -> None:
        check(self.name, least=(self.least, 0.0, 1.0), tolerance=(self.tolerance, 1e-15, 1.0))
        if self.deadline is not None:
            check(self.name, deadline=(self.deadline, 0.0, _INFINITE))

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`; who is left out has no share, and 0 predicted seconds."""
        model, everyone = LatencyModel(costs, clients, server, corrections), len(clients)
        count = max(1, math.ceil(self.least * everyone - 1e-9))
        if self.deadline is not None:
            most = everyone
            while count < most:  # the greatest number that keeps it is in between
                middle = (count + most + 1) // 2
                kept = self._serve(model, self._select(model, middle)).round_time <= self.deadline
                count, most = (middle, most) if kept else (count, middle - 1)
        taking = self._select(model, count)
        some = self._serve(model, taking)
        places = {k: place for place, k in enumerate(taking)}
        left_out = tuple(k for k in range(everyone) if k not in places)
        return replace(
            some,
            cuts=tuple(some.cuts[places[k]] if k in places else model.names[model.fits(k)[0]] for k in range(everyone)),
            shares=tuple(some.shares[places[k]] if k in places else 0.0 for k in range(everyone)),
            uplink=tuple(some.uplink[places[k]] if k in places else None for k in range(everyone)),
            downlink=tuple(some.downlink[places[k]] if k in places else None for k in range(everyone)),
            predicted=tuple(some.predicted[places[k]] if k in places else 0.0 for k in range(everyone)),
            left_out=left_out,
        )

    def _select(self, model: LatencyModel, count: int) -> list[int]:
        """The `count` clients that can be served in the least time, in their order."""
        fix, part = model.corrections, count / len(model.clients)
        # the latency model gives each client F/N of the server; here each has F/count
        fix = replace(fix, server=tuple(part * factor for factor in fix.server))
        model = LatencyModel(model.costs, model.clients, model.server, fix)

        def needs(target: float) -> np.ndarray:
            return np.asarray(model.least_shares(target).min(axis=1))

        low = float(np.sort(model.fastest().min(axis=1))[count - 1])
        high = float(np.sort(model.at_share(1 / count).min(axis=1))[count - 1]) * (1 + 1e-12)
        while high - low > self.tolerance * high:
            middle = (low + high) / 2
            low, high = (low, middle) if np.sort(needs(middle))[:count].sum() <= 1 else (middle, high)
        return sorted(int(k) for k in np.argsort(needs(high), kind="stable")[:count])

    def _serve(self, model: LatencyModel, taking: Sequence[int]) -> Plan:
        """The best plan for these clients alone, which share links and server."""
        batch, steps = (tuple(values[k] for k in taking) for values in (model.costs.batch, model.costs.steps))
        costs = replace(model.costs, batch=batch, steps=steps)
        own = LatencyModel(costs, [model.clients[k] for k in taking], model.server, model.corrections.of(taking))
        cuts, shares = bisect(own, tolerance=self.tolerance)
        return plan_of(self.name, own, cuts, shares)
