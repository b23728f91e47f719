"""Least time that all clients can reach over cuts and shares of the links, for a hundred thousand clients at once.

For a time T client k needs the share b_k(T) = min over its cuts l of the least φ with T_kl(φ) ≤ T (`RoundTerms`). T can
be reached iff F(T) = Σ b_k(T) ≤ 1, and F never rises with T, so the optimum is where F crosses 1. What makes it fast:

- Numbers are *stretches*, x = 1/φ: by how much what is sent takes longer than with the whole link. Where no own rate
  limits the client, the largest x with T_kl(x) ≤ T is (T − fixed) / (up + down): one division per cut.
- All cuts of all clients are looked at once. A few clients, drawn at random, say between which times the optimum should
  be; cuts that cannot be their client's best anywhere between these are dropped (usually all but one).
- Of what is left, the root of 1/F(T) − 1 is sought by the secant method: 1/F is a straight line for one client, and
  close to one for many.

Optimality does not rest on the sample: if the optimum over the cuts that were left is not between the two times, it
gives bounds that are certain, and cuts are dropped anew. How close to the optimum a time is, follows from F too:
shrinking T by a factor 1 − ε multiplies each b_k by 1/(1 − ε) at least (fixed ≥ 0), so T ≥ T* ≥ T·F(T) for any T with
F(T) ≤ 1.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.latency import Array, RoundTerms

Numbers = NDArray[np.intp]

_SAMPLE = 1024  # clients; with fewer than 4 times as many nothing is dropped
_BLOCK = 4096  # clients; what is made for 20 cuts of them, 1.4 MB, stays in the second-level cache
_THREADS = 2  # of numpy, over blocks
_HAIR = 1e-12  # of the time, so that a time computed from a share counts as reached with that share
_TINY = 1e-200  # seconds, so that a round that takes no time at all is reached as well
_LARGEST = 1e100  # stretch of who needs no share; finite, so that 0 · x is 0


class _Ways:
    """Ways to spend a round: clients at cuts, each array [ways] or [cuts, clients]; see `RoundTerms`."""

    def __init__(self, fixed: Array, up: Array, down: Array, own_up: Array, own_down: Array) -> None:
        self.fixed, self.up, self.down, self.own_up, self.own_down = fixed, up, down, own_up, own_down
        self.both, self.own = up + down, np.maximum(own_up, own_down)

    @classmethod
    def at(cls, terms: RoundTerms, cuts: Numbers, clients: Numbers) -> _Ways:
        """These clients at these cuts, [ways]."""
        places = cuts * len(terms.own_up) + clients
        fixed, up, down = (part.ravel().take(places) for part in (terms.fixed, terms.up, terms.down))
        return cls(fixed, up, down, terms.own_up.take(clients), terms.own_down.take(clients))

    def stretches(self, time: float) -> Array:
        """Largest stretch with which a round takes no longer than `time`; not positive, or less than 1: none."""
        left = time * (1 + _HAIR) + _TINY - self.fixed
        stretch = np.asarray(left / self.both)
        limited = np.flatnonzero(stretch < self.own)
        if len(limited):
            some = (part.take(limited) for part in (self.up, self.down, self.own_up, self.own_down))
            stretch[limited] = _limited_stretch(left.take(limited), *some)
        return stretch

    def times(self, stretch: float | Array) -> Array:
        """Seconds of a round with that stretch."""
        up, down = np.maximum(stretch, self.own_up), np.maximum(stretch, self.own_down)
        return np.asarray(self.fixed + self.up * up + self.down * down)


@dataclass(frozen=True)
class _Candidates:
    """Some cuts of each client: one of each, and more of those for which that one need not be the best.

    Attributes:
        cut: Number of a cut, [clients].
        one: Rounds at it, [clients].
        more_cut: Numbers of further cuts, client after client, [further].
        more: Rounds at them, [further].
        owner: Clients that have further cuts, rising, [owners].
        first: Place of the first further cut of each owner, [owners].
    """

    cut: Numbers
    one: _Ways
    more_cut: Numbers
    more: _Ways
    owner: Numbers
    first: Numbers

    @classmethod
    def make(cls, terms: RoundTerms, cut: Numbers, more_cut: Numbers, more_client: Numbers) -> _Candidates:
        """These cuts, one per client, and further cuts with whose they are."""
        first = np.flatnonzero(np.diff(more_client, prepend=-1))
        one, more = _Ways.at(terms, cut, np.arange(len(cut))), _Ways.at(terms, more_cut, more_client)
        return cls(cut, one, more_cut, more, more_client[first], first)

    @classmethod
    def all_of(cls, terms: RoundTerms) -> _Candidates:
        """All cuts of all clients."""
        cuts, clients = terms.fixed.shape
        further = np.tile(np.arange(1, cuts), clients), np.repeat(np.arange(clients), cuts - 1)
        return cls.make(terms, np.zeros(clients, dtype=np.intp), *further)

    def shares(self, time: float) -> Array:
        """b_k: least share with which each client's round takes no longer than `time`, [clients]; infinite: none."""
        best = self._of_each(np.maximum, self.one.stretches(time), self.more.stretches(time))
        return _shares(best)

    def slowest(self, stretch: float) -> float:
        """Seconds until the slowest client is done if all have this stretch, and each the best of its candidates."""
        return float(self._of_each(np.minimum, self.one.times(stretch), self.more.times(stretch)).max())

    def best(self, time: float) -> tuple[Numbers, Array]:
        """Each client's candidate with the least share for `time`: the numbers of the cuts, and the shares."""
        one, more = self.one.stretches(time), self.more.stretches(time)
        before = one[self.owner]
        best = self._of_each(np.maximum, one, more)
        counts = np.diff(self.first, append=len(more))
        places = np.flatnonzero((more == np.repeat(best[self.owner], counts)) & (more > np.repeat(before, counts)))
        cuts = self.cut.copy()
        cuts[np.repeat(self.owner, counts)[places]] = self.more_cut[places]
        return cuts, _shares(best)

    def _of_each(self, choose: np.ufunc, one: Array, more: Array) -> Array:
        """The largest or smallest number of each client, [clients]; written into `one`."""
        if len(self.owner):
            one[self.owner] = choose(one[self.owner], choose.reduceat(more, self.first))
        return one


def solve(terms: RoundTerms, tolerance: float = 1e-9) -> tuple[Numbers, Array, float]:
    """Cuts and shares with which the slowest client is done as early as can be.

    Args:
        terms: The latency model of all clients.
        tolerance: How far the time may be above the optimum, relative to it.

    Returns:
        Number of each client's cut, [clients]; shares that sum to 1, [clients] (what nobody needs is given out in
        proportion); and the time that all clients reach, seconds.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if len(terms.own_up) < 4 * _SAMPLE:
            candidates = _Candidates.all_of(terms)
            return _shared_out(candidates, _least_time(candidates, 1.0, tolerance))
        low, high = _guess(terms)
        while True:
            candidates = _promising(terms, low, high)
            time = _least_time(candidates, 1.0, tolerance, low, high)
            # later than `high`, but no later than a client needs at its quickest cut alone: that is the optimum as well
            if low <= time <= high or high < time <= candidates.slowest(1.0):
                return _shared_out(candidates, time)
            # the optimum over some cuts is never below the one over all: a certain upper bound
            low, high = (high, time) if time > high else (low * min(1.0, candidates.shares(low).sum()), time)
            low, high = low * (1 - _HAIR), high * (1 + _HAIR)


def solve_at(terms: RoundTerms, cuts: Numbers, tolerance: float = 1e-9) -> tuple[Numbers, Array, float]:
    """`solve` with each client's cut given."""
    nothing = np.zeros(0, dtype=np.intp)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        candidates = _Candidates.make(terms, cuts, nothing, nothing)
        return _shared_out(candidates, _least_time(candidates, 1.0, tolerance))


def _guess(terms: RoundTerms) -> tuple[float, float]:
    """Two times between which the optimum should be, from a few clients drawn by a fixed seed."""
    clients = len(terms.own_up)
    drawn = np.sort(np.random.default_rng(0).integers(clients, size=_SAMPLE))
    fixed, up, down = (part[:, drawn] for part in (terms.fixed, terms.up, terms.down))
    sample = _Candidates.all_of(RoundTerms(fixed, up, down, terms.own_up[drawn], terms.own_down[drawn]))
    time = _least_time(sample, _SAMPLE / clients, 1e-3)
    shares, later = sample.shares(time), sample.shares(1.01 * time)
    if not shares.any():
        return time * (1 - 1e-3), time * (1 + 1e-3)
    error = 3 * float(shares.std() / shares.mean()) / _SAMPLE**0.5  # of F, relative
    steepness = max(1.0, -np.log(later.sum() / shares.sum()) / np.log(1.01))  # F falls like T to this power
    factor = (1 + error) ** (1 / steepness) * (1 + 1e-3)
    return time / factor, time * factor


def _promising(terms: RoundTerms, low: float, high: float) -> _Candidates:
    """The cuts that can be their client's best for a time from `low` to `high`; at least one per client.

    Let x be the best stretch of the client at `low`. A cut that takes longer than `high` with x allows only less than x
    for any time up to `high`, while the best one at `low` allows x or more from `low` on.
    """
    clients = len(terms.own_up)
    starts = range(0, clients, _BLOCK)
    room = threading.local()

    def of_block(start: int) -> tuple[Numbers, Numbers, Numbers]:
        if not hasattr(room, "numbers"):
            room.numbers = np.empty((len(terms.fixed), min(_BLOCK, clients)))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # holds for one thread
            return _promising_of(terms, start, room.numbers, low, high)

    with ThreadPoolExecutor(_THREADS) as pool:  # numpy computes without the interpreter's lock
        blocks = list(pool.map(of_block, starts))
    return _Candidates.make(terms, *(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _promising_of(
    terms: RoundTerms, start: int, room: Array, low: float, high: float
) -> tuple[Numbers, Numbers, Numbers]:
    """One cut of each of the clients from number `start` on, further cuts, and whose these are."""
    # `room` is used again for each block: new memory costs as much as the arithmetic
    block = slice(start, start + _BLOCK)
    fixed, up, down = terms.fixed[:, block], terms.up[:, block], terms.down[:, block]
    own_up, own_down = terms.own_up[block], terms.own_down[block]
    both, work = terms.both[:, block], room[:, : len(own_up)]
    np.subtract(low + _TINY, fixed, out=work)
    best = np.divide(work, both, out=work).max(axis=0)
    limited = np.flatnonzero(best < np.maximum(own_up, own_down))
    if len(limited):
        some = _Ways(fixed[:, limited], up[:, limited], down[:, limited], own_up[limited], own_down[limited])
        parts = low + _TINY - some.fixed, some.up, some.down, some.own_up, some.own_down
        best[limited] = _limited_stretch(*parts).max(axis=0)
    np.clip(best, 1.0, _LARGEST, out=best)  # nobody gets more than the whole link
    times = np.multiply(both, best, out=work)
    times += fixed
    if len(limited):
        times[:, limited] = some.times(best[limited])
    keep = times <= high
    short = np.uint8 if len(fixed) < 256 else np.uint16  # bytes are added 64 at a time
    counts = np.add.reduce(keep.view(np.uint8), axis=0, dtype=short)
    none = np.flatnonzero(counts == 0)
    if len(none):  # not even alone: the quickest cut says from when on
        keep[times[:, none].argmin(axis=0), none] = True
    # of a client with one cut left, the sum of the numbers of its cuts is that cut
    numbers = np.arange(len(fixed), dtype=short)[:, None]
    cut = np.add.reduce(keep.view(np.uint8) * numbers, axis=0, dtype=short).astype(np.intp)
    several = np.flatnonzero(counts > 1)
    client, more = np.divmod(np.flatnonzero(keep.T[several].ravel()), len(fixed))
    further = np.diff(client, prepend=-1) == 0
    cut[several] = more[~further]
    return cut, more[further], several[client[further]] + start


def _limited_stretch(left: Array, up: Array, down: Array, own_up: Array, own_down: Array) -> Array:
    """Largest x with up · max(x, own_up) + down · max(x, own_down) ≤ left; -inf where there is none.

    All four sums must be ≤ left: three bound x, and the fourth, up · own_up + down · own_down, has no x in it. Where it
    does not hold, the bounds come out below the smaller of `own_up` and `own_down`, and otherwise never.
    """
    stretch = left / (up + down)
    np.fmin(stretch, (left - up * own_up) / down, out=stretch)  # not `minimum`: 0/0 forbids nothing
    np.fmin(stretch, (left - down * own_down) / up, out=stretch)
    return np.where(stretch < np.minimum(own_up, own_down) * (1 - _HAIR), -np.inf, stretch)


def _shares(stretch: Array) -> Array:
    """φ = 1/x, [clients]; infinite where there is no positive x. Written into `stretch`."""
    stretch = np.reciprocal(stretch, out=stretch)
    never = np.signbit(stretch)
    if never.any():
        stretch[never] = np.inf
    return stretch


def _least_time(
    candidates: _Candidates, links: float, tolerance: float, low: float = 0.0, high: float = np.inf
) -> float:
    """Least time at which the shares sum to `links` at most, by the secant method between bounds.

    Args:
        candidates: The cuts to choose from.
        links: What there is to share; 1 for all clients, less if they are a part of them.
        tolerance: Relative distance from the optimum.
        low: Where to begin, with `high`; the optimum need not be between them.
        high: See `low`.
    """

    def excess(time: float) -> float:
        """1/F − 1, scaled to `links`: rises with the time, and is ≥ 0 where the time can be reached."""
        return links / max(float(candidates.shares(time).sum()), 1e-300) - 1

    least = candidates.slowest(1.0)  # nobody can be faster
    if low > least and (at_low := excess(low)) < 0:
        least, at_least = low, at_low
    else:
        at_least = excess(least)
    if at_least >= 0:
        return least
    if not (least < high < np.inf and (at_most := excess(high)) >= 0):
        high = candidates.slowest(len(candidates.cut) / links) * (1 + _HAIR)  # equal shares are feasible
        at_most = excess(high)
    most, before, at_before, now, at_now, stuck = high, least, at_least, high, at_most, 0
    while most - least > tolerance / 2 * most and at_most > tolerance:
        slope = (at_now - at_before) / (now - before)
        # a little above 0, so that the end is at a time that can be reached
        time = now + (tolerance / 2 - at_now) / slope if 0 < slope < np.inf else least
        if not least < time < most or stuck > 2:
            # where F makes a step (a client's own rate begins to suffice) the secant is slow
            time, stuck = (least + most) / 2, 0
        width, before, at_before, now = most - least, now, at_now, time
        at_now = excess(now)
        if at_now >= 0:
            most, at_most = now, at_now
        else:
            least = now
        stuck = 0 if most - least <= width / 2 else stuck + 1
    return most


def _shared_out(candidates: _Candidates, time: float) -> tuple[Numbers, Array, float]:
    cuts, shares = candidates.best(time)
    total = shares.sum()
    return cuts, shares / total if total > 0 else np.full(len(shares), 1 / len(shares)), time
