"""Least time that all clients can reach over cuts and shares of the links, for a hundred thousand clients at once.

For a time T client k needs the share b_k(T) = min over its cuts l of the least φ with T_kl(φ) ≤ T (`RoundTerms`). T can
be reached iff F(T) = Σ b_k(T) ≤ 1, and F never rises with T, so the optimum is where F crosses 1. Three things make it fast:

- Numbers are *stretches*, x = 1/φ: by how much what is sent takes longer than with the whole link. Where no own rate
  limits the client, the largest x with T_kl(x) ≤ T is (T − fixed) / (up + down): one division per cut.
- All cuts of all clients are looked at once. A few clients, drawn at random, say between which times the optimum should
  be; cuts that cannot be their client's best anywhere between these are dropped (usually all but one).
- Of what is left, the root of 1/F(T) − 1 is sought by the secant method: 1/F is a straight line for one client, and
  close to one for many.

Optimality does not rest on the sample: if the optimum over the cuts that were left is not between the two times, it gives
bounds that are certain, and cuts are dropped anew. How close to the optimum a time is, follows from F too: shrinking T by
a factor 1 − ε multiplies each b_k by 1/(1 − ε) at least (fixed ≥ 0), so T ≥ T* ≥ T·F(T) for any T with F(T) ≤ 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.latency import Array, RoundTerms

Numbers = NDArray[np.intp]

_SAMPLE = 1024  # clients; with fewer than 4 times as many nothing is dropped
_BLOCK = 4096  # clients; 20 cuts of them are 640 KB, three such arrays stay in the second-level cache
_HAIR = 1e-12  # of the time, so that a time computed from a share counts as reached with that share
_TINY = 1e-200  # seconds, so that a round that takes no time at all is reached as well
_LARGEST = 1e100  # stretch of who needs no share; finite, so that 0 · x is 0


@dataclass(frozen=True)
class _Candidates:
    """Some cuts of each client, client after client.

    Attributes:
        fixed: As in `RoundTerms`, one number per candidate, [candidates]. So are `up`, `down`, `own_up`, `own_down`.
        cut: Number of the cut, [candidates].
        first: Place of each client's first candidate, [clients].
    """

    fixed: Array
    up: Array
    down: Array
    own_up: Array
    own_down: Array
    cut: Numbers
    first: Numbers

    @classmethod
    def all_of(cls, terms: RoundTerms, clients: Numbers) -> _Candidates:
        """All cuts of these clients."""
        cuts = len(terms.fixed)
        return cls(
            *(np.ascontiguousarray(part[:, clients].T).ravel() for part in (terms.fixed, terms.up, terms.down)),
            *(np.repeat(own[clients], cuts) for own in (terms.own_up, terms.own_down)),
            np.tile(np.arange(cuts), len(clients)),
            np.arange(len(clients)) * cuts,
        )

    @classmethod
    def one_each(cls, terms: RoundTerms, cuts: Numbers) -> _Candidates:
        """These cuts, one per client."""
        everyone = np.arange(len(cuts))
        parts = (part[cuts, everyone] for part in (terms.fixed, terms.up, terms.down))
        return cls(*parts, terms.own_up, terms.own_down, cuts, everyone)

    def stretches(self, time: float) -> Array:
        """Largest stretch with which each candidate's round takes no longer than `time`, [candidates].

        One below the smaller of `own_up` and `own_down` means that there is none, see `_needs`.
        """
        left = time * (1 + _HAIR) + _TINY - self.fixed
        stretch = left / (self.up + self.down)
        limited = np.flatnonzero(stretch < np.maximum(self.own_up, self.own_down))
        if len(limited):
            parts = (part[limited] for part in (left, self.up, self.down, self.own_up, self.own_down))
            stretch[limited] = _limited_stretch(*parts)
        return np.asarray(stretch)

    def shares(self, time: float) -> Array:
        """b_k: least share with which each client's round takes no longer than `time`, [clients]; infinite: none."""
        best = np.maximum.reduceat(self.stretches(time), self.first)
        return _needs(best, self.own_up[self.first], self.own_down[self.first])

    def at_stretch(self, stretch: float) -> float:
        """Seconds until the slowest client is done if each has the best of its candidates."""
        up, down = self.up * np.maximum(stretch, self.own_up), self.down * np.maximum(stretch, self.own_down)
        return float(np.minimum.reduceat(self.fixed + up + down, self.first).max())

    def best(self, time: float) -> tuple[Numbers, Array]:
        """Each client's candidate with the least share for `time`: the numbers of the cuts, and the shares."""
        stretches = self.stretches(time)
        best = np.maximum.reduceat(stretches, self.first)
        counts = np.diff(self.first, append=len(stretches))
        places = np.flatnonzero(stretches == np.repeat(best, counts))
        owner = np.repeat(np.arange(len(self.first)), counts)[places]
        cuts = np.empty(len(self.first), dtype=np.intp)
        cuts[owner[::-1]] = self.cut[places[::-1]]  # of several that are equally good, the shallowest is written last
        return cuts, _needs(best, self.own_up[self.first], self.own_down[self.first])


def solve(terms: RoundTerms, tolerance: float = 1e-9) -> tuple[Numbers, Array, float]:
    """Cuts and shares with which the slowest client is done as early as can be.

    Args:
        terms: The latency model of all clients.
        tolerance: How far the time may be above the optimum, relative to it.

    Returns:
        Number of each client's cut, [clients]; shares that sum to 1, [clients] (what nobody needs is given out in
        proportion); and the time that all clients reach, seconds.
    """
    clients = len(terms.own_up)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if clients < 4 * _SAMPLE:
            candidates = _Candidates.all_of(terms, np.arange(clients))
            return _shared_out(candidates, _least_time(candidates, 1.0, tolerance))
        low, high = _guess(terms)
        while True:
            candidates = _promising(terms, low, high)
            time = _least_time(candidates, 1.0, tolerance, low, high)
            if low <= time <= high:
                return _shared_out(candidates, time)
            # the optimum over some cuts is never below the one over all: a certain upper bound
            low, high = (high, time) if time > high else (low * min(1.0, candidates.shares(low).sum()), time)
            low, high = low * (1 - _HAIR), high * (1 + _HAIR)


def solve_at(terms: RoundTerms, cuts: Numbers, tolerance: float = 1e-9) -> tuple[Numbers, Array, float]:
    """`solve` with each client's cut given."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        candidates = _Candidates.one_each(terms, cuts)
        return _shared_out(candidates, _least_time(candidates, 1.0, tolerance))


def _guess(terms: RoundTerms) -> tuple[float, float]:
    """Two times between which the optimum should be, from a few clients drawn by a fixed seed."""
    clients = len(terms.own_up)
    drawn = np.sort(np.random.default_rng(0).integers(clients, size=_SAMPLE))
    sample = _Candidates.all_of(terms, drawn)
    part = _SAMPLE / clients
    middle = _least_time(sample, part, 1e-3)
    shares = sample.shares(middle)
    error = 3 * float(shares.std() / shares.mean()) / _SAMPLE**0.5 if shares.mean() > 0 else 0.0
    low, high = (_least_time(sample, part * factor, 1e-3, middle, middle) for factor in (1 + error, 1 / (1 + error)))
    return low * (1 - 1e-3), high * (1 + 1e-3)


def _promising(terms: RoundTerms, low: float, high: float) -> _Candidates:
    """The cuts that can be their client's best for a time from `low` to `high`; at least one per client.

    Let x be the best stretch of the client at `low`. A cut that takes longer than `high` with x allows only less than x
    for any time up to `high`, while the best one at `low` allows x or more from `low` on.
    """
    found = [_promising_of(_block(terms, start), low, high, start) for start in range(0, len(terms.own_up), _BLOCK)]
    *parts, cut, client = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
    first = np.flatnonzero(np.diff(client, prepend=-1))
    return _Candidates(*parts, terms.own_up[client], terms.own_down[client], cut, first)


def _block(terms: RoundTerms, start: int) -> RoundTerms:
    block = slice(start, start + _BLOCK)
    parts = terms.fixed[:, block], terms.up[:, block], terms.down[:, block]
    return RoundTerms(*parts, terms.own_up[block], terms.own_down[block])


def _promising_of(terms: RoundTerms, low: float, high: float, start: int) -> tuple[NDArray[np.generic], ...]:
    """Candidates of one block of clients, the first of which is number `start`: parts, cut and client."""
    own = np.maximum(terms.own_up, terms.own_down)
    left = low + _TINY - terms.fixed
    both = terms.up + terms.down
    best = np.divide(left, both, out=left).max(axis=0)
    limited = np.flatnonzero(best < own)
    if len(limited):
        some = (part[:, limited] for part in (terms.fixed, terms.up, terms.down))
        fixed, up, down = some
        stretch = _limited_stretch(low + _TINY - fixed, up, down, terms.own_up[limited], terms.own_down[limited])
        best[limited] = stretch.max(axis=0)
    np.clip(best, 1.0, _LARGEST, out=best)  # nobody gets more than the whole link
    times = np.multiply(both, best, out=both)
    times += terms.fixed
    if len(limited):
        own_up, own_down = (np.maximum(best[limited], own[limited]) for own in (terms.own_up, terms.own_down))
        times[:, limited] = fixed + up * own_up + down * own_down
    keep = times <= np.maximum(times.min(axis=0), high)
    keep &= terms.fixed < np.inf
    cut, client = np.divmod(np.flatnonzero(keep), keep.shape[1])
    order = np.argsort(client.astype(np.uint16), kind="stable")  # numpy sorts numbers this short by radix
    cut, client = cut[order], client[order]
    return terms.fixed[cut, client], terms.up[cut, client], terms.down[cut, client], cut, client + start


def _limited_stretch(left: Array, up: Array, down: Array, own_up: Array, own_down: Array) -> Array:
    """Largest x with up · max(x, own_up) + down · max(x, own_down) ≤ left.

    All four sums must be ≤ left. The fourth, up · own_up + down · own_down, has no x in it; if it is not, what comes out
    is below the smaller of `own_up` and `own_down`, and `_needs` sees it.
    """
    stretch = left / (up + down)
    np.fmin(stretch, (left - up * own_up) / down, out=stretch)  # not `minimum`: 0/0 forbids nothing
    return np.asarray(np.fmin(stretch, (left - down * own_down) / up, out=stretch))


def _needs(stretch: Array, own_up: Array, own_down: Array) -> Array:
    """The share 1/x for each client's best stretch, infinite where it is none."""
    possible = (stretch > 0) & (stretch >= np.minimum(own_up, own_down) * (1 - _HAIR))
    return np.asarray(np.where(possible, 1 / stretch, np.inf))


def _least_time(
    candidates: _Candidates, links: float, tolerance: float, low: float | None = None, high: float | None = None
) -> float:
    """Least time at which the shares sum to `links` at most, by the secant method between bounds.

    Args:
        candidates: The cuts to choose from.
        links: What there is to share; 1 for all clients, less if they are a part of them.
        tolerance: Relative distance from the optimum.
        low: Where to begin, with `high`: at times close to the optimum, on any side of it.
        high: See `low`.
    """

    def excess(time: float) -> float:
        """1/F − 1, scaled to `links`: rises with the time, and is ≥ 0 where the time can be reached."""
        return links / max(float(candidates.shares(time).sum()), 1e-300) - 1

    least = candidates.at_stretch(1.0)  # nobody can be faster
    most = candidates.at_stretch(len(candidates.first) / links) * (1 + _HAIR)  # equal shares do
    at_least = excess(least)
    if at_least >= 0:
        return least
    # where F makes a step (an own rate begins to suffice), the secant can be slow: then the middle is tried instead
    before, at_before, stuck = least, at_least, 0
    tries = [time for time in (low, high) if time is not None and least < time < most]
    now, at_now = most, excess(most)
    aim = tolerance / 2  # a little above 0, so that the end is at a time that can be reached
    while most - least > tolerance / 2 * most and not 0 <= (at_now if now == most else np.inf) <= tolerance:
        width = most - least
        if tries:
            time = tries.pop(0)
            if not least < time < most:
                continue
        else:
            slope = (at_now - at_before) / (now - before) if now != before else 0.0
            time = now + (aim - at_now) / slope if slope > 0 and np.isfinite(slope) else least
            if not least < time < most or stuck > 2:
                time, stuck = (least + most) / 2, 0
        before, at_before = now, at_now
        now, at_now = time, excess(time)
        least, most = (least, now) if at_now >= 0 else (now, most)
        stuck = 0 if most - least <= width / 2 else stuck + 1
    return most


def _shared_out(candidates: _Candidates, time: float) -> tuple[Numbers, Array, float]:
    cuts, shares = candidates.best(time)
    total = shares.sum()
    return cuts, shares / total if total > 0 else np.full(len(shares), 1 / len(shares)), time
