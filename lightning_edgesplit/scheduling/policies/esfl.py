"""ESFL: cuts and parts of the server's speed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import check, equal_shares, plan_of, simulated
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile

Array = NDArray[np.float64]


def server_shares(rest: Array, work: Array, tolerance: float = 1e-12) -> Array:
    """Parts of the server's speed at which the slowest client is soonest done, at fixed cuts.

    min T  such that  Σ f_k ≤ 1,  f_k = W_k/(T − C_k): by bisection on T.

    Args:
        rest: C_k, seconds of each client's round beside the server's part, [clients].
        work: W_k, seconds of the server's part at its full speed, [clients].
        tolerance: Relative width at which the bisection stops.

    Returns:
        f_k, [clients]; what is left is given out in proportion, so that they sum to 1. Equal where the server has
        nothing to do.
    """
    busy = work > 0
    if not busy.any():
        return np.full(len(work), 1 / len(work))

    def needs(target: float) -> Array:
        shares = np.zeros(len(work))
        with np.errstate(divide="ignore"):
            shares[busy] = np.where(target > rest[busy], work[busy] / (target - rest[busy]), np.inf)
        return shares

    low = max(float((rest + work).max()), float(rest.max()))
    high = float((rest + busy.sum() * work).max()) * (1 + 1e-12)  # equal parts of those that need one
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if needs(middle).sum() <= 1 else (middle, high)
    shares = needs(high)
    return np.asarray(shares / shares.sum())


@dataclass(frozen=True)
class ESFL:
    """Shortest slowest round over cuts and parts of the server's speed, by alternation. A reconstruction.

    From the paper (arXiv:2402.15903; its abstract): the clients' workloads and the server's computing resource are
    optimised together, a mixed-integer problem, by an iterative approximation; digests call it alternating.

    Ours:  min over l, f of max_k [ C_k(l_k) + W_k(l_k)/f_k ],  Σ f_k ≤ 1,  where C_k is the seconds of client k's round
    beside the server's part at an equal share of the links, and W_k = H_k·b·Fs(l)/F those of the server's part at its
    full speed. The two steps in turn: the best cut of every client at its f_k; then f_k = W_k/(T − C_k) at these cuts
    (`server_shares`). Two starts, each client's best cut and the best single cut at f_k = 1/N; the better end counts.
    The alternation can stop above the optimum: a client whose cut asks nothing of the server gets none of it.

    Attributes:
        tolerance: Least relative gain for which another turn is taken.
        turns: Most turns to take.
    """

    tolerance: float = 1e-6
    turns: int = 50
    name: str = "esfl"

    def __post_init__(self) -> None:
        check(self.name, tolerance=(self.tolerance, 0.0, 1.0), turns=(self.turns, 0, 2**31))

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`; `Plan.iterations` holds the slowest client's seconds at the start and after every turn."""
        model = LatencyModel(costs, clients, server, corrections)
        rest, work = self._terms(model)
        equal = np.full(len(clients), 1 / len(clients))
        starts = [self._cuts(rest, work, equal)]
        single = (rest + work * len(clients)).max(axis=0)
        if np.isfinite(single).any():
            starts.append(np.full(len(clients), int(single.argmin())))
        ends = [self._alternate(rest, work, cuts, equal) for cuts in starts]
        chosen, shares, iterations = min(ends, key=lambda end: end[2][-1])
        shares = np.maximum(shares, 1e-12)  # a hair for those who need none, so that nobody divides by 0
        shares = shares / shares.sum()
        plan = plan_of(self.name, model, [int(cut) for cut in chosen], equal_shares(len(clients)), iterations)
        return simulated(replace(plan, server_shares=tuple(float(share) for share in shares)), model)

    @staticmethod
    def _terms(model: LatencyModel) -> tuple[Array, Array]:
        """C and W, each [clients, cuts], seconds; C is infinite where memory does not fit."""
        clients, cuts = range(len(model.clients)), range(len(model.names))
        rest, work = np.full((len(clients), len(cuts)), np.inf), np.zeros((len(clients), len(cuts)))
        for k in clients:
            for cut in model.fits(k):
                t, steps = model.times(k, cut, 1 / len(clients)), model.costs.steps[k]
                rest[k, cut] = steps * (t.forward + t.uplink + t.downlink + t.backward) + t.download + t.upload
                work[k, cut] = steps * t.server
        return rest, work

    @staticmethod
    def _cuts(rest: Array, work: Array, shares: Array) -> NDArray[np.intp]:
        """Every client's best cut at its part of the server, [clients]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            served = np.where(work > 0, work / shares[:, None], 0.0)
        return np.asarray((rest + served).argmin(axis=1))

    def _alternate(
        self, rest: Array, work: Array, cuts: NDArray[np.intp], shares: Array
    ) -> tuple[NDArray[np.intp], Array, list[float]]:
        """Cuts and shares in turn until nothing is gained: both, and the slowest client's seconds on the way."""

        def slowest(cuts: NDArray[np.intp], shares: Array) -> float:
            everyone = np.arange(len(cuts))
            part = work[everyone, cuts]
            with np.errstate(divide="ignore", invalid="ignore"):
                return float((rest[everyone, cuts] + np.where(part > 0, part / shares, 0.0)).max())

        everyone, iterations = np.arange(len(cuts)), [slowest(cuts, shares)]
        for turn in range(self.turns):
            turned = self._cuts(rest, work, shares) if turn else cuts
            given = server_shares(rest[everyone, turned], work[everyone, turned])
            seconds = slowest(turned, given)
            if seconds >= iterations[-1]:
                break
            gain = 1 - seconds / iterations[-1]
            cuts, shares = turned, given
            iterations.append(seconds)
            if gain < self.tolerance:
                break
        return cuts, shares, iterations
