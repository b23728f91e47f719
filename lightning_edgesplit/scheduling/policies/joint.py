"""Joint: schedule the links, don't divide them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_edgesplit.scheduling.corrections import Corrections
from lightning_edgesplit.scheduling.costs import Costs
from lightning_edgesplit.scheduling.latency import LatencyModel
from lightning_edgesplit.scheduling.plan import COMPRESSIONS, DISCIPLINES, Plan
from lightning_edgesplit.scheduling.policies.edgesplit import EdgeSplit
from lightning_edgesplit.scheduling.policies.exact import Exact
from lightning_edgesplit.scheduling.policies.search import Candidate, Search, Setting
from lightning_edgesplit.scheduling.profiles import ClientProfile, ServerProfile
from lightning_edgesplit.scheduling.simulate import simulate, simulated_seconds


@dataclass(frozen=True)
class Joint:
    """Cuts, order of the links and of the server, micro-batches and compression, searched by the simulated round. Ours.

    A static share lies idle while its owner computes, waits or uses the other direction. Here nobody owns a share: in
    each direction the link goes to those that send, all of it to whoever has the longest way to go ("longest_first"),
    or in equal parts ("fair"), and the server serves in the order of arrival or of urgency. With whole batches and no
    compression the update is the same as with any other cuts, batch statistics included.

    Candidates are scored by `simulate`, EdgeSplit's own plan among them, so the simulated round is never longer than
    EdgeSplit's. Not decided here: the batch of each client at a fixed global batch.

    Attributes:
        disciplines: Of `DISCIPLINES`; every pair of them, one for each direction, is tried.
        micro_batches: In how many parts a client's batch may be under way. More than 1 changes batch statistics, which
            are then those of a part (ghost batch norm).
        compression: "int8" allows to send 8-bit integers, where it is faster; lossy.
        budget: Local steps of one client, per micro-batch, that the search may simulate in all; a fixed number, so
            that the plan does not depend on how fast the machine is. At least every start is simulated once.

    Raises:
        ValueError: If a value is none of those listed, or not positive.
    """

    disciplines: tuple[str, ...] = ("longest_first", "fair")
    micro_batches: tuple[int, ...] = (1,)
    compression: str = "none"
    budget: int = 15_000
    name: str = "joint"

    def __post_init__(self) -> None:
        wrong = [discipline for discipline in self.disciplines if discipline not in DISCIPLINES]
        if wrong or not self.disciplines:
            raise ValueError(f"disciplines={self.disciplines} of joint must be some of {', '.join(DISCIPLINES)}.")
        if not self.micro_batches or any(not isinstance(m, int) or m < 1 for m in self.micro_batches):
            raise ValueError(f"micro_batches={self.micro_batches} of joint must be whole numbers, each at least 1.")
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression={self.compression!r} of joint must be one of {', '.join(COMPRESSIONS)}.")
        if self.budget < 1:
            raise ValueError(f"budget={self.budget} of joint must be at least 1 local step.")

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`; `predicted` is simulated, `Plan.iterations` the best round after each stage of the search."""
        model = LatencyModel(costs, clients, server, corrections)
        static = [policy.plan(costs, clients, server, corrections) for policy in (EdgeSplit(), Exact())]
        static += [replace(plan, order="longest_first") for plan in static]
        scores = [simulated_seconds(model, plan) for plan in static]
        search = Search(self.name, model, sorted(set(self.micro_batches)), self.budget)
        found, iterations = self._search(search, model, static)
        if min(scores) <= search.score(found):
            plan = static[scores.index(min(scores))]
            return replace(
                plan, policy=self.name, predicted=simulate(model, plan).ends, iterations=(scores[0], min(scores))
            )
        return search.plan(found, [scores[0], *iterations])

    def _search(self, search: Search, model: LatencyModel, static: Sequence[Plan]) -> tuple[Candidate, list[float]]:
        """The best candidate found, and the simulated seconds after each stage."""
        compressions = ("none",) if self.compression == "none" else ("none", self.compression)
        pairs = list(itertools.product(dict.fromkeys(self.disciplines), repeat=2))
        settings = [Setting(pair, order) for pair in pairs for order in ("longest_first", "arrival", "in_order")]
        candidates = [
            Candidate(cuts, (parts,) * len(cuts), replace(settings[0], compression=compression))
            for compression in compressions
            for cuts in self._starts(search, model, static, compression)
            for parts in search.micro_batches
        ]
        ranked = sorted(dict.fromkeys(candidates), key=search.score)
        iterations = [search.score(ranked[0])]
        # the other ways to share links and server, for the best starts; then each is led to where it gets no better
        tried = [replace(c, setting=_other(s, c)) for c in ranked[:_STARTS] for s in settings]
        ranked = sorted(dict.fromkeys([*tried, *ranked]), key=search.score)
        iterations.append(search.score(ranked[0]))
        best = ranked[0]
        part = self.budget // _STARTS
        for start in ranked[:_STARTS]:
            reached = search.refine(start, part)
            best = min(best, reached, key=search.score)
        iterations.append(search.score(best))
        while not search.exhausted:
            others = [replace(best, setting=_other(setting, best)) for setting in settings]
            reached = min((search.refine(other, part) for other in sorted(others, key=search.score)), key=search.score)
            if search.score(reached) >= search.score(best):
                break
            best = reached
        iterations.append(search.score(best))
        return best, iterations

    @staticmethod
    def _starts(search: Search, model: LatencyModel, static: Sequence[Plan], compression: str) -> list[tuple[int, ...]]:
        """Cuts to begin with: those of the static plans, one for all, each client's best alone, and guesses."""
        clients, names = range(len(model.clients)), model.names
        starts = [tuple(names.index(cut) for cut in plan.cuts) for plan in static]
        fastest = model.fastest()
        starts.append(tuple(int(row.argmin()) for row in fastest))
        common = set.intersection(*(set(search.choices(k, compression)) for k in clients))
        starts += [(cut,) * len(clients) for cut in sorted(common, key=lambda cut: (fastest[:, cut].max(), cut))[:2]]
        starts += [search.guess(start, compression, power) for start in starts[:3] for power in (2.0, 4.0, 16.0)]
        return list(dict.fromkeys(starts))


_STARTS = 4
"""So many of the best starts are refined."""


def _other(setting: Setting, candidate: Candidate) -> Setting:
    return replace(setting, compression=candidate.setting.compression)
