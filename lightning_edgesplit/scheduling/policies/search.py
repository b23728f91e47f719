"""A search over cuts, micro-batches and batches whose score is the simulated round.

Two stages. A *guess* knows only sums: what each client needs alone, and what all of them ask of uplink, downlink and
server; a change of one cut is scored in constant time, so that it serves a hundred clients. Then *refining* with the
simulation itself, straggler first. What a search may cost is counted in local steps that it simulates, not in seconds,
so that the same input gives the same plan on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_edgesplit.scheduling.bound import alone_in_parts
from lightning_edgesplit.scheduling.latency import LatencyModel, rate
from lightning_edgesplit.scheduling.links import bytes_per_second
from lightning_edgesplit.scheduling.plan import Plan
from lightning_edgesplit.scheduling.policies.base import bisect
from lightning_edgesplit.scheduling.policies.batches import apportion, shifts
from lightning_edgesplit.scheduling.simulate import simulate, simulated_seconds
from lightning_edgesplit.scheduling.work import Work

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """How links and server are shared, and whether what crosses is compressed."""

    disciplines: tuple[str, str]
    order: str
    compression: str = "none"


@dataclass(frozen=True)
class Candidate:
    """Number of each client's cut, in how many micro-batches its batch goes, the setting, and its batch.

    Without `batches` they are those of the costs.
    """

    cuts: tuple[int, ...]
    parts: tuple[int, ...]
    setting: Setting
    batches: tuple[int, ...] = ()


class Search:
    """Scores candidates, remembers the scores and counts what they cost.

    Args:
        name: The policy's name.
        model: The latency model.
    """

    def __init__(self, name: str, model: LatencyModel) -> None:
        self._name, self._model, self._left = name, model, 0
        self._clients = range(len(model.clients))
        for k in self._clients:
            model.fits(k)  # says what is lacking
        self._works: dict[tuple[int, int, str, int], Work] = {}
        self._scores: dict[Candidate, float] = {}
        self._shares: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[float, ...]] = {}
        self._choices: dict[tuple[int, str, int], list[int]] = {}

    def grant(self, steps: int) -> None:
        """So many local steps of one client may be simulated from here on."""
        self._left = steps

    @property
    def exhausted(self) -> bool:
        """Whether the budget is used up."""
        return self._left <= 0

    def score(self, candidate: Candidate) -> float:
        """Seconds of the candidate's simulated round."""
        if candidate not in self._scores:
            batches, compression = self.batches(candidate), candidate.setting.compression
            works = [self.work(k, cut, compression, batches[k]) for k, cut in enumerate(candidate.cuts)]
            self._scores[candidate] = simulated_seconds(self._model, self._plan(candidate), works)
            self._left -= self._cost(candidate)
        return self._scores[candidate]

    def plan(self, candidate: Candidate, iterations: Sequence[float] = ()) -> Plan:
        """The candidate's plan, with the ends of the simulated round as predicted times."""
        plan = self._plan(candidate)
        simulated = simulate(self._model, plan)
        return replace(plan, predicted=simulated.ends, iterations=tuple(iterations) or (simulated.round_time,))

    def work(self, client: int, cut: int, compression: str, batch: int | None = None) -> Work:
        """What a client has to do at a cut with that batch (None: that of the costs); remembered."""
        key = client, cut, compression, self._model.costs.batch[client] if batch is None else batch
        if key not in self._works:
            self._works[key] = self._model.work(*key)
        return self._works[key]

    def choices(self, client: int, compression: str, batch: int | None = None) -> list[int]:
        """A client's cuts, shallow to deep, that fit its memory and that no other beats in everything."""
        key = client, compression, self._model.costs.batch[client] if batch is None else batch
        if key not in self._choices:
            self._choices[key] = self._undominated(*key)
        return self._choices[key]

    # ---- guessing ----------------------------------------------------------------------------------------------------

    def guess(
        self, cuts: Sequence[int], compression: str, parts: int, apart: float, power: float, batches: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Cuts that make (a^p + u^p + d^p + s^p)^(1/p) small, by changing one client's at a time.

        a: the longest client alone, in so many micro-batches; u, d, s: seconds that uplink, downlink and server need
        for all. A large p asks for the least of the four's largest, a small one for slack on the others too. While the
        models come down nothing goes up, and the other way round, unless others are at their local steps: `apart`,
        from 0 to 1, says how much of the models counts on the other direction too. Without `batches` they are those of
        the costs.
        """
        terms = self._terms(compression, parts, apart, batches)
        chosen = [np.asarray(self.choices(k, compression, batches[k] if batches else None)) for k in self._clients]
        now, everyone = np.array(cuts), np.arange(len(cuts))
        sums = terms[everyone, now, 1:].sum(axis=0)
        longest = terms[everyone, now, 0]
        for _ in range(20):
            before = now.copy()
            for k in np.argsort(-longest, kind="stable"):
                own = terms[k, chosen[k]]
                others = np.delete(longest, k).max(initial=0.0)
                loads = sums - terms[k, now[k], 1:] + own[:, 1:]
                values = np.maximum(others, own[:, 0]) ** power + (loads**power).sum(axis=1)
                best = int(values.argmin())
                sums, longest[k], now[k] = loads[best], own[best, 0], chosen[k][best]
            if (now == before).all():
                break
        return tuple(int(cut) for cut in now)

    def _terms(self, compression: str, parts: int, apart: float, batches: Sequence[int]) -> Array:
        """Seconds of a round, [clients, cuts, 4]: of the client alone, and of uplink, downlink and server for it."""
        model = self._model.with_batch(batches) if batches else self._model
        server, steps = model.server, model.costs.steps
        up, down = bytes_per_second(server.uplink), bytes_per_second(server.downlink)
        terms = np.zeros((len(self._clients), len(self._model.names), 4))
        for k in self._clients:
            batch = model.costs.batch[k]
            for cut in self.choices(k, compression, batch):
                work = self.work(k, cut, compression, batch)
                step = alone_in_parts(work, min(parts, max(1, batch)), batch)
                ends = work.download / work.limit_down + work.upload / work.limit_up + 2 * work.latency
                terms[k, cut] = (
                    steps[k] * step + ends,
                    (steps[k] * work.bytes_up + work.upload) / up + apart * work.download / down,
                    (steps[k] * work.bytes_down + work.download) / down + apart * work.upload / up,
                    steps[k] * work.server,
                )
        return np.asarray(terms / max(terms.max(), 1e-300))  # so that high powers stay finite

    # ---- refining ----------------------------------------------------------------------------------------------------

    def refine(self, start: Candidate, micro_batches: Sequence[int], budget: int, shifting: bool = False) -> Candidate:
        """The best candidate that is reached from `start` by moves that each shorten the simulated round.

        Args:
            start: Where to begin.
            micro_batches: Numbers of micro-batches that a client may have.
            budget: Local steps that it may simulate at most.
            shifting: Whether samples may go from one client's batch to another's.
        """
        best, least = start, self._left - budget
        while True:
            for candidate in self._moves(best, micro_batches, shifting):
                if self._left <= max(0, least):
                    return best
                if self.score(candidate) < self.score(best) * (1 - 1e-9):
                    best = candidate
                    break
            else:
                return best

    def _moves(self, candidate: Candidate, micro_batches: Sequence[int], shifting: bool) -> Iterator[Candidate]:
        """Candidates near by: all clients, those of a kind, then one after the other, who ends last first."""
        cuts, parts, batches = candidate.cuts, candidate.parts, self.batches(candidate)
        ends = simulate(self._model, self._plan(candidate)).ends
        self._left -= self._cost(candidate)
        late_first = sorted(self._clients, key=lambda k: (-ends[k], k))
        if shifting:
            yield from self._shifted(candidate, ends, late_first)
        if len(cuts) > 1:
            kinds = [list(self._clients), *self._kinds]
            for group in sorted(kinds, key=lambda group: -max(ends[k] for k in group)):
                for way in (1, -1):
                    moved = list(cuts)
                    for k in group:
                        moved[k] = self._step(k, cuts[k], way, candidate.setting.compression, batches[k])
                    yield replace(candidate, cuts=tuple(moved))
        for number in micro_batches:
            yield from self._in_parts(candidate, (number,) * len(cuts))
        for k in late_first:
            choices = self.choices(k, candidate.setting.compression, batches[k])
            for cut in sorted(choices, key=lambda cut: (abs(cut - cuts[k]), cut)):
                if cut != cuts[k]:
                    yield replace(candidate, cuts=(*cuts[:k], cut, *cuts[k + 1 :]))
            for number in micro_batches:
                if number != parts[k]:
                    yield from self._in_parts(candidate, (*parts[:k], number, *parts[k + 1 :]))
        if len(cuts) <= _PAIRS:
            for first, second in ((a, b) for a in late_first for b in late_first if a < b):
                for one in self.choices(first, candidate.setting.compression, batches[first]):
                    for two in self.choices(second, candidate.setting.compression, batches[second]):
                        moved = list(cuts)
                        moved[first], moved[second] = one, two
                        yield replace(candidate, cuts=tuple(moved))

    def _in_parts(self, candidate: Candidate, parts: tuple[int, ...]) -> Iterator[Candidate]:
        """The candidate with other numbers of micro-batches, unless a batch was made too small for its own."""
        moved = replace(candidate, parts=parts)
        least, _ = self._bounds(moved)
        if all(low <= own for low, own in zip(least, self.batches(moved), strict=True)):
            yield moved

    @cached_property
    def _kinds(self) -> list[list[int]]:
        """Numbers of the clients that are alike but for their names, where there are two or more."""
        kinds: dict[object, list[int]] = {}
        for k, client in enumerate(self._model.clients):
            key = replace(client, name="", times=None), self._model.costs.batch[k], self._model.costs.steps[k]
            kinds.setdefault(key, []).append(k)
        return [kind for kind in kinds.values() if 1 < len(kind) < len(self._clients)]

    def _step(self, client: int, cut: int, way: int, compression: str, batch: int) -> int:
        """The client's next deeper (1) or shallower (-1) cut; the same where there is none."""
        beyond = [other for other in self.choices(client, compression, batch) if (other - cut) * way > 0]
        return min(beyond, key=lambda other: abs(other - cut), default=cut)

    # ---- batches -----------------------------------------------------------------------------------------------------

    def batches(self, candidate: Candidate) -> tuple[int, ...]:
        """Samples in a local step of each client."""
        return candidate.batches or self._model.costs.batch

    def balanced(self, candidate: Candidate) -> Candidate:
        """The candidate with batches by which all end at once, had each of them links and server for itself.

        Where no batches within the bounds make up the global batch, it is the candidate as it is.
        """
        costs, compression, speeds = self._model.costs, candidate.setting.compression, []
        for k, cut in enumerate(candidate.cuts):
            work, batch = self.work(k, cut, compression), max(1, costs.batch[k])
            step = alone_in_parts(work, min(candidate.parts[k], batch), batch)
            speeds.append(batch / max(max(1, costs.steps[k]) * step, 1e-300))
        return self._apportioned(candidate, speeds)

    def _shifted(self, candidate: Candidate, ends: Sequence[float], late_first: Sequence[int]) -> Iterator[Candidate]:
        """Candidates with other batches: all towards one end for all, then from one client to another."""
        batches, (least, most) = self.batches(candidate), self._bounds(candidate)
        for part in (1.0, 0.5, 0.2):
            pairs = zip(batches, ends, strict=True)
            even = [batch * (1 - part + part * max(ends) / (end or max(ends))) for batch, end in pairs]
            yield self._apportioned(candidate, even)
        for moved in shifts(batches, late_first, least, most):
            yield self._with(candidate, moved)

    def _apportioned(self, candidate: Candidate, weights: Sequence[float]) -> Candidate:
        found = apportion(weights, sum(self._model.costs.batch), *self._bounds(candidate))
        return candidate if found is None else self._with(candidate, found)

    def _with(self, candidate: Candidate, batches: tuple[int, ...]) -> Candidate:
        return replace(candidate, batches=() if batches == self._model.costs.batch else batches)

    def _bounds(self, candidate: Candidate) -> tuple[list[int], list[int]]:
        """Fewest and most samples of each client's batch: its micro-batches; what fits its memory, and is there."""
        costs, total = self._model.costs, sum(self._model.costs.batch)
        least = [min(parts, own) for parts, own in zip(candidate.parts, costs.batch, strict=True)]
        most = [self._fitting(k, cut, total) for k, cut in enumerate(candidate.cuts)]
        if costs.samples:
            here = zip(most, costs.samples, costs.batch, strict=True)
            most = [min(high, max(samples, own)) for high, samples, own in here]
        for k, own in enumerate(costs.batch):
            if not costs.steps[k]:
                least[k] = most[k] = own  # it takes no part
        return least, most

    def _fitting(self, client: int, cut: int, total: int) -> int:
        """Most samples, of so many, whose activations fit into a client's memory at a cut."""
        limit, cost = self._model.clients[client].memory, self._model.costs.cuts[cut]
        if limit is None or self._model.memory(client, cut, total) <= limit:
            return total
        most = int((limit - cost.memory_fixed) / cost.memory_per_sample)
        while self._model.memory(client, cut, most) > limit:
            most -= 1  # rounding
        return most

    # ---- plans -------------------------------------------------------------------------------------------------------

    def _cost(self, candidate: Candidate) -> int:
        steps = self._model.costs.with_batch(self.batches(candidate)).steps
        return sum(own * parts for own, parts in zip(steps, candidate.parts, strict=True))

    def _plan(self, candidate: Candidate) -> Plan:
        model, setting, count = self._model, candidate.setting, len(self._clients)
        whole = (1.0,) * count
        shares = self._static_shares(candidate) if "static" in setting.disciplines else whole
        up, down = (shares if discipline == "static" else whole for discipline in setting.disciplines)
        return Plan(
            policy=self._name,
            cuts=tuple(self._model.names[cut] for cut in candidate.cuts),
            shares=shares,
            uplink=tuple(rate(s, model.server.uplink, c.uplink) for s, c in zip(up, model.clients, strict=True)),
            downlink=tuple(
                rate(s, model.server.downlink, c.downlink) for s, c in zip(down, model.clients, strict=True)
            ),
            predicted=(0.0,) * count,
            disciplines=setting.disciplines,
            order=setting.order,
            micro_batches=candidate.parts if max(candidate.parts) > 1 else (),
            compression=setting.compression,
            batches=candidate.batches,
        )

    def _static_shares(self, candidate: Candidate) -> tuple[float, ...]:
        key = candidate.cuts, candidate.batches
        if key not in self._shares:
            model = self._model.with_batch(candidate.batches) if candidate.batches else self._model
            self._shares[key] = tuple(bisect(model, candidate.cuts)[1])
        return self._shares[key]

    def _undominated(self, client: int, compression: str, batch: int) -> list[int]:
        limit = self._model.clients[client].memory
        cuts = range(len(self._model.names))
        fitting = [cut for cut in cuts if limit is None or self._model.memory(client, cut, batch) <= limit]
        needs = {cut: _needs(self.work(client, cut, compression, batch)) for cut in fitting}

        def beaten(cut: int) -> bool:
            mine = needs[cut]
            return any(
                all(theirs <= own for theirs, own in zip(needs[other], mine, strict=True))
                and (needs[other] != mine or other < cut)
                for other in needs
                if other != cut
            )

        return [cut for cut in needs if not beaten(cut)]


_PAIRS = 4
"""Most clients for which the cuts of two are changed together."""


def _needs(work: Work) -> tuple[float, ...]:
    return (
        work.forward, work.backward, work.server, work.bytes_up, work.bytes_down, work.step_up, work.step_down,
        work.download, work.upload, work.step_latency,
    )  # fmt: skip
