"""Joint: schedule the links, don't divide them."""

from __future__ import annotations

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
    """Cuts, order of links and server, micro-batches, compression and batches, searched by the simulated round. Ours.

    A static share lies idle while its owner computes, waits or uses the other direction. Here nobody owns a share: in
    each direction the link goes to those that send, all of it to whoever has the longest way to go ("longest_first"),
    or in equal parts ("fair"), and the server serves in the order of arrival or of urgency. With whole batches and no
    compression the update is the same as with any other cuts, batch statistics included.

    Candidates are scored by `simulate`, EdgeSplit's own plan among them, so the simulated round is never longer than
    EdgeSplit's.

    With `batches` the samples of a local step are divided anew as well: slow clients get smaller batches, the sum over
    the clients stays what their loaders give, and so do the local steps of a round. That is another update than with
    the loaders' batches, and a client with a smaller batch takes more local steps to come through its data. HASFL
    (arXiv:2506.08426) and MergeSFL (arXiv:2311.13348) size batches too; nothing of theirs is reproduced here.

    Attributes:
        disciplines: Of `DISCIPLINES`; every pair of them, one for each direction, is tried.
        micro_batches: In how many parts a client's batch may be under way. More than 1 changes batch statistics, which
            are then those of a part (ghost batch norm).
        compression: "int8" allows to send 8-bit integers, where it is faster; lossy.
        batches: Whether it divides the global batch anew: at least 1 sample for each client, and one for each of its
            micro-batches; at most what fits its memory.
        budget: Local steps of one client that the search may simulate, micro-batches counted one by one; a number of
            these, so that the plan does not depend on how fast the machine is. Where `micro_batches` or `compression`
            leave a choice, as much again, after a search without them; and so for `batches`.

    Raises:
        ValueError: If a value is none of those listed, or not positive.
    """

    disciplines: tuple[str, ...] = ("longest_first", "fair")
    micro_batches: tuple[int, ...] = (1,)
    compression: str = "none"
    batches: bool = False
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
        if not isinstance(self.batches, bool):
            raise ValueError(f"batches={self.batches!r} of joint must be true or false.")
        if self.budget < 1:
            raise ValueError(f"budget={self.budget} of joint must be at least 1 local step.")

    def plan(
        self,
        costs: Costs,
        clients: Sequence[ClientProfile],
        server: ServerProfile,
        corrections: Corrections | None = None,
    ) -> Plan:
        """See `Policy.plan`; `predicted` is simulated, `Plan.iterations` what the search came to step by step."""
        model = LatencyModel(costs, clients, server, corrections)
        static = [policy.plan(costs, clients, server, corrections) for policy in (EdgeSplit(), Exact())]
        static += [replace(plan, order="longest_first") for plan in static]
        scores = [simulated_seconds(model, plan) for plan in static]
        search = Search(self.name, model)
        found, iterations = self._search(search, model, static)
        if min(scores) <= search.score(found):
            plan = static[scores.index(min(scores))]
            return replace(
                plan, policy=self.name, predicted=simulate(model, plan).ends, iterations=(scores[0], min(scores))
            )
        return search.plan(found, [scores[0], *iterations])

    def _search(self, search: Search, model: LatencyModel, static: Sequence[Plan]) -> tuple[Candidate, list[float]]:
        """The best candidate found, and the simulated seconds after each step of the search."""
        least, allowed = min(self.micro_batches), tuple(sorted(set(self.micro_batches)))
        cuts = [tuple(model.names.index(cut) for cut in plan.cuts) for plan in static]
        best, iterations = self._stage(search, self._starts(search, model, cuts, "none", (least,)), ("none",), (least,))
        compressions: tuple[str, ...] = ("none",)
        parts: tuple[int, ...] = (least,)
        if len(allowed) > 1 or self.compression != "none":
            # what the update that stays exact came to is where the wider search begins, so that it is never worse
            compressions, parts = tuple(dict.fromkeys((self.compression, "none"))), allowed
            starts = [best.cuts, *self._starts(search, model, [best.cuts, cuts[0]], self.compression, allowed)]
            wider, _ = self._stage(search, list(dict.fromkeys(starts)), compressions, allowed)
            best = min(best, wider, key=search.score)
            iterations.append(search.score(best))
        if self.batches and len(model.clients) > 1:  # from where the search without them came to, for the same reason
            best = self._with_batches(search, best, cuts, compressions, parts)
            iterations.append(search.score(best))
        return best, iterations

    def _with_batches(
        self,
        search: Search,
        best: Candidate,
        known: Sequence[tuple[int, ...]],
        compressions: Sequence[str],
        parts: Sequence[int],
    ) -> Candidate:
        """The best candidate that is found from `best` and from the cuts that are known, with batches of any size."""
        search.grant(self.budget)
        settings = self._settings(compressions)
        starts = [best]
        for cuts in dict.fromkeys((best.cuts, *known)):
            balanced = search.balanced(replace(best, cuts=cuts, batches=()))
            guessed = search.guess(cuts, best.setting.compression, min(parts), 0.0, 4.0, search.batches(balanced))
            starts += [balanced, search.balanced(replace(balanced, cuts=guessed))]
        ranked, part = self._ranked(search, starts), self.budget // _STARTS
        for start in ranked[: _STARTS // 2]:
            best = min(best, search.refine(start, parts, part, shifting=True), key=search.score)
        while not search.exhausted:
            others = self._ranked(search, [replace(best, setting=setting) for setting in settings])
            reached = min((search.refine(other, parts, part, shifting=True) for other in others), key=search.score)
            if search.score(reached) >= search.score(best):
                break
            best = reached
        return best

    def _stage(
        self, search: Search, starts: Sequence[tuple[int, ...]], compressions: Sequence[str], parts: Sequence[int]
    ) -> tuple[Candidate, list[float]]:
        """The best candidate with these compressions and micro-batches, within one budget."""
        search.grant(self.budget)
        settings, pair = self._settings(compressions), (self.disciplines[0],) * 2
        first = [setting for setting in settings if (setting.disciplines, setting.order) == (pair, "longest_first")]
        candidates = [
            Candidate(cuts, (parts[0],) * len(cuts), setting)
            for setting in first
            for cuts in (starts if setting is first[0] else starts[:1])
        ]
        ranked = self._ranked(search, candidates)
        iterations = [search.score(ranked[0])]
        divided = [replace(start, parts=(number,) * len(start.cuts)) for start in ranked[:2] for number in parts]
        ranked = self._ranked(search, [*ranked, *divided])
        # other ways to share links and server, for the best starts; then each is led to where it gets no better
        tried = [replace(start, setting=setting) for start in ranked[:_STARTS] for setting in settings]
        ranked = self._ranked(search, [*ranked, *tried])
        best, part = ranked[0], self.budget // _STARTS
        iterations.append(search.score(best))
        for start in ranked[:_STARTS]:
            best = min(best, search.refine(start, parts, part), key=search.score)
        iterations.append(search.score(best))
        while not search.exhausted:
            others = self._ranked(search, [replace(best, setting=setting) for setting in settings])
            reached = min((search.refine(other, parts, part) for other in others), key=search.score)
            if search.score(reached) >= search.score(best):
                break
            best = reached
        return best, [*iterations, search.score(best)]

    def _settings(self, compressions: Sequence[str]) -> list[Setting]:
        """All ways to share links and server, with each of the compressions."""
        pairs = [(up, down) for up in self.disciplines for down in self.disciplines]
        shared = [Setting(pair, order) for pair in pairs for order in ("longest_first", "arrival", "in_order")]
        return [replace(setting, compression=compression) for compression in compressions for setting in shared]

    @staticmethod
    def _ranked(search: Search, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates, best first, without those for which the budget does not last: but never none."""
        scored: list[Candidate] = []
        for candidate in dict.fromkeys(candidates):
            if not scored or not search.exhausted:
                search.score(candidate)
                scored.append(candidate)
        return sorted(scored, key=search.score)

    @staticmethod
    def _starts(
        search: Search, model: LatencyModel, known: Sequence[tuple[int, ...]], compression: str, parts: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Cuts to begin with: guesses, those that are known, each client's best alone, and one for all."""
        clients, starts = range(len(model.clients)), list(dict.fromkeys(known))
        fastest = model.fastest()
        starts.append(tuple(int(row.argmin()) for row in fastest))
        common = set.intersection(*(set(search.choices(k, compression)) for k in clients))
        starts += [(cut,) * len(clients) for cut in sorted(common, key=lambda cut: (fastest[:, cut].max(), cut))[:2]]
        guesses = [
            search.guess(start, compression, number, apart, power)
            for apart, power in ((0.0, 4.0), (1.0, 4.0), (0.0, 16.0))
            for start in starts[:3]
            for number in sorted({min(parts), max(parts)})
        ]
        return list(dict.fromkeys([*guesses, *starts]))


_STARTS = 4
"""So many of the best starts are refined."""
