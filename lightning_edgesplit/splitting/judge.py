"""Which module calls of a recorded step are places for a cut, what crosses there, and why the others are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_edgesplit.splitting.cuts import Border, Cut
from lightning_edgesplit.splitting.record import Call, Recorder, Value
from lightning_edgesplit.splitting.tree import leaves_of, tensors_of


@dataclass
class Candidate:
    """A place that the recorded step does not rule out; the proof comes after.

    Attributes:
        cut: The cut, not yet proven.
        position: Share of the step's forward FLOP that lies before it.
        size: Bytes of what crosses, for the recorded batch.
    """

    cut: Cut
    position: float
    size: int

    @property
    def simple(self) -> bool:
        """Whether one activation crosses to the server, and nothing else that has a gradient."""
        assert self.cut.border is not None
        return sum(wanted for _, _, wanted in self.cut.border.tensors) == 1


class Refused(Exception):
    """Why a module call is no place for a cut."""


def candidates(
    recorder: Recorder, changed: set[str], private: frozenset[int] | None, second_cut: str | None = None
) -> Iterator[Candidate | tuple[str, str]]:
    """Judges every recorded module call.

    Args:
        recorder: One recorded step.
        changed: Names of the buffers that the step changed.
        private: Numbers of the batch leaves that must not leave the client; None: the raw inputs.
        second_cut: Name of the module behind which the client goes on; None: the server runs the rest.

    Yields:
        A candidate, or the name of a call and the reason why it is none. Shallow to deep.

    Raises:
        ValueError: If `second_cut` names no module that the step calls, or several.
    """
    groups: dict[tuple[tuple[int, ...], int], list[Call]] = {}
    for call in recorder.calls:
        groups.setdefault((tuple(id(x) for x in tensors_of(call.output)), call.end), []).append(call)
    total = {call.name: call.number for call in sorted(recorder.calls, key=lambda call: call.number)}

    def label(call: Call) -> str:
        return call.name if total[call.name] == 1 else f"{call.name}#{call.number}"

    labelled = [([label(call) for call in calls], calls) for calls in groups.values()]
    second = None if second_cut is None else _named(second_cut, labelled)
    for names, calls in labelled:
        call = calls[-1]  # the outermost one ended last
        try:
            candidate = _Judge(recorder, call, _second_for(call, second), changed, private).candidate()
        except Refused as reason:
            yield names[-1], str(reason)
        else:
            aliases = tuple(dict.fromkeys(n for n in names[:-1] if n != names[-1]))
            candidate.cut = replace(candidate.cut, name=names[-1], aliases=aliases)
            yield candidate


def _named(name: str, labelled: Sequence[tuple[list[str], list[Call]]]) -> list[Call]:
    """The calls with the output that `name`, or an unambiguous end of it, stands for."""
    found = [calls for names, calls in labelled if name in names]
    found = found or [calls for names, calls in labelled if any(n.endswith(f".{name}") for n in names)]
    if len(found) != 1:
        why = "names no module that training_step calls" if not found else "is the end of several modules' names"
        known = ", ".join(dict.fromkeys(names[-1] for names, _ in labelled))
        raise ValueError(f"second_cut={name!r} {why}: choose from {known}.")
    return found[0]


def _second_for(call: Call, second: list[Call] | None) -> Call | None:
    """The outermost call that ends the server's part and does not hold the first cut.

    Raises:
        Refused: If the first cut does not come before it.
    """
    if second is None:
        return None
    around = set(map(id, _around(call)))
    free = [c for c in second if id(c) not in around]
    if call in second or call.end > second[0].end or (free and call in _around(free[-1])):
        raise Refused("it does not come before the second cut")
    if not free:
        raise Refused(f"it lies inside the second cut {second[-1].name!r}: name the last module inside that as second")
    return free[-1]


class _Judge:
    """Finds out what crosses at the end of one module call, and whether it may."""

    def __init__(
        self,
        recorder: Recorder,
        call: Call,
        second: Call | None,
        changed: set[str],
        private: frozenset[int] | None,
    ) -> None:
        self.recorder, self.call, self.second, self._private = recorder, call, second, private
        self.end: int = call.end
        self.until = float("inf") if second is None else float(second.end)
        self.path = path_to(recorder.calls, call)
        self.path_back = [] if second is None else path_between(recorder.calls, call, second)
        self._weights = recorder.parameters | recorder.buffers
        self._both, self._tied = self._on_both_sides(changed)
        shared = {*self._both, *self._tied}
        self._fixed = {id(self._weights[name]) for name in shared}
        self._moving = {id(v) for name, v in self._weights.items() if name not in shared}
        self._made, self._made_back = self._returned_by(self.path), self._returned_by(self.path_back)
        self._crossing: dict[int, Value] = {}
        self._coming_back: dict[int, Value] = {}
        self._direct = False
        self._sent: set[int] = set()
        self._seen: set[int] = set()

    def _returned_by(self, path: Sequence[Call]) -> dict[int, list[tuple[int, int, Tensor]]]:
        """What the calls of a path returned, by ``id`` of the value: numbers of call and leaf, and the tensor."""
        made: dict[int, list[tuple[int, int, Tensor]]] = {}
        for number, before in enumerate(path):
            for leaf, output in enumerate(leaves_of(before.output)):
                if isinstance(output, Tensor) and id(output) in self.recorder.values:
                    made.setdefault(id(self.recorder.values[id(output)]), []).append((number, leaf, output))
        return made

    def candidate(self) -> Candidate:
        """The candidate, with the name still to be given.

        Raises:
            Refused: If it is none.
        """
        smashed = [x for x in tensors_of(self.call.output) if id(x) in self.recorder.values]
        if not any(self._wanted(x) for x in smashed):
            raise Refused(self._why_no_activation(smashed))
        values = self.recorder.values.values()
        for value in values:
            moving = id(value) not in self._fixed | self._moving
            if moving and value.born <= self.end and value.used_within(self.end, self.until):
                self._have(value)
        if not any(self._wanted(self._made[i][-1][2]) for i in self._crossing):
            raise Refused("nothing behind it uses its output")
        self._seen.clear()
        if self.second is not None:
            for value in values:
                if value.born <= self.until < value.last_use and id(value) not in self._fixed | self._moving:
                    self._have_back(value)
            if not any(self._wanted(self._made_back[i][-1][2]) for i in self._coming_back):
                raise Refused(f"nothing behind the second cut {self.second.name!r} uses a trained output of the server")
        consumed = frozenset().union(*(value.leaves for value in self._crossing.values()))
        border = self._border(self.path, self._made, self._crossing, 0, self.end)
        back = None
        if self.second is not None:
            back = self._border(self.path_back, self._made_back, self._coming_back, self.end, self.second.end)
        cut = Cut(
            name="",
            border=border,
            back=back,
            direct=self._direct,
            client=tuple(self._client_side()),
            both=self._both,
            tied=self._tied,
            private=tuple(sorted(consumed - self._sent)),
            sent=tuple(sorted(self._sent)),
            random=any(self.end < time <= self.until for time in self.recorder.random),
        )
        flops = self.recorder.flops
        crossing = [self._made[i][-1][2] for i in self._crossing] + [
            self._made_back[i][-1][2] for i in self._coming_back
        ]
        return Candidate(cut, flops[self.end] / max(1, flops[-1]), sum(tensor.nbytes for tensor in crossing))

    def _border(
        self,
        path: Sequence[Call],
        made: dict[int, list[tuple[int, int, Tensor]]],
        crossing: dict[int, Value],
        begin: int,
        end: int,
    ) -> Border:
        places = sorted((made[i] for i in crossing), key=lambda entries: entries[-1][:2])
        return Border(
            path=tuple(call.name for call in path),
            tensors=tuple((call, leaf, self._wanted(tensor)) for call, leaf, tensor in (e[-1] for e in places)),
            also=tuple((call, leaf, i) for i, entries in enumerate(places) for call, leaf, _ in entries[:-1]),
            reads=any(
                begin < time <= end and not any(c.begin < time <= c.end for c in path) for time in self.recorder.reads
            ),
            numbers=tuple(call.number for call in path),
        )

    def _client_side(self) -> Iterator[str]:
        """Names of the parameters and buffers that the client has; of unused ones those of modules that are its own."""
        inside = tuple(f"{call.name}." for call in self.path)
        if self.second is not None:
            calls = self.recorder.calls
            holding = set(map(id, _around(self.second)))
            inside += tuple(f"{c.name}." for c in calls[calls.index(self.second) + 1 :] if id(c) not in holding)
        for name, value in self._weights.items():
            if self._used_by_client(value) or (not value.uses and name.startswith(inside)):
                yield name

    def _used_by_client(self, value: Value) -> bool:
        return value.first_use <= self.end or value.last_use > self.until

    def _on_both_sides(self, changed: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        both: list[str] = []
        tied: list[str] = []
        for name, value in self._weights.items():
            if not (self._used_by_client(value) and value.used_within(self.end, self.until)):
                continue
            if name in changed:
                raise Refused(f"{name} is a buffer that the step changes, used on both sides of it")
            (tied if self.recorder.trainable.get(name, False) else both).append(name)
        return tuple(sorted(both)), tuple(sorted(tied))

    @staticmethod
    def _wanted(tensor: Tensor) -> bool:
        return tensor.requires_grad and tensor.is_floating_point()

    def _why_no_activation(self, smashed: list[Tensor]) -> str:
        if not smashed:
            return f"its output is a {type(self.call.output).__name__} without a tensor"
        if not any(x.is_floating_point() for x in smashed):
            return "its output is no floating-point activation"
        return "nothing before it is trained, so that there is no client-side model to train"

    def _have(self, value: Value) -> None:
        """Makes sure that the server can have a value that is needed behind the cut: received, sent or recomputed."""
        if id(value) in self._seen or id(value) in self._fixed:
            return
        self._seen.add(id(value))
        if id(value) in self._made:
            if not value.trained and value.leaves:
                for leaf in value.leaves:
                    self._may_be_sent(leaf, value)
            self._crossing[id(value)] = value
            return
        if id(value) in self._moving:
            raise Refused(f"{value.made_by} is used before it, and what is made of it is needed behind it too")
        if not value.born:
            for leaf in value.leaves:
                self._may_be_sent(leaf, value)
                self._sent.add(leaf)
            return
        self._is_seen_outside(value, self.path, "it")
        for source in value.sources:
            self._have(source)

    def _have_back(self, value: Value) -> None:
        """Makes sure that the client can have a value that is needed behind the second cut."""
        if id(value) in self._seen or id(value) in self._fixed:
            return
        self._seen.add(id(value))
        if id(value) in self._made_back:
            self._coming_back[id(value)] = value
        elif id(value) in self._moving and not self._used_by_client(value):
            raise Refused(
                f"{value.made_by} is the server's, and what is made of it is needed behind the second cut too"
            )
        elif value.born <= self.end:
            self._direct |= value.born > 0 and value.trained
        else:
            self._is_seen_outside(value, self.path_back, "the second cut")
            for source in value.sources:
                self._have_back(source)

    @staticmethod
    def _is_seen_outside(value: Value, path: Sequence[Call], where: str) -> None:
        """Refuses what was made inside a module that the other side does not run, and what cannot be made twice."""
        for before in path:
            if before.begin < value.born <= before.end:
                raise Refused(
                    f"a result of {value.made_by} inside {before.name} is needed behind {where} too (a residual path)"
                )
        if value.random:
            raise Refused(f"a result of {value.made_by}, which is random, is needed on both sides of {where}")

    def _may_be_sent(self, leaf: int, value: Value) -> None:
        """Refuses to send private leaves, and what is made of nothing else.

        Without `private`, a leaf that the client's side reads is private if it is what the model takes in: all that is
        no whole number or truth value, and what meets a parameter (an embedding's numbers). Masks, lengths and indices
        that only meet activations may be read on both sides.
        """
        if self._private is not None:
            if leaf in self._private:
                raise Refused(f"batch leaf {leaf} is needed behind it, and is private")
            return
        original = self.recorder.leaves[leaf]
        read = any(v.first_use <= self.end for v in self._made_of(leaf))
        masks = not original.is_floating_point() and not self.recorder.inputs.get(leaf, self.end + 1) <= self.end
        if read and not masks and self._flows_in(leaf):
            what = f"a result of {value.made_by}" if value.born else value.made_by
            raise Refused(
                f"{what} that the client's side consumes is needed behind it too: raw inputs stay on the client"
                " (name in `private` what has to stay, if this need not)"
            )

    def _made_of(self, leaf: int) -> list[Value]:
        return [v for v in self.recorder.values.values() if leaf in v.leaves and not v.trained]

    def _flows_in(self, leaf: int) -> bool:
        """Whether the smashed data depend on the leaf."""
        values = [self.recorder.values[id(x)] for x in tensors_of(self.call.output) if id(x) in self.recorder.values]
        return any(leaf in value.leaves for value in values)


def _around(call: Call) -> list[Call]:
    """The calls that a call was made within, innermost first."""
    calls = []
    parent = call.parent
    while parent is not None:
        calls.append(parent)
        parent = parent.parent
    return calls


def path_to(calls: Sequence[Call], cut: Call) -> list[Call]:
    """The outermost module calls that end before the cut or with it, in their order; the last is the cut's own."""
    around = set(map(id, _around(cut)))
    ended = calls[: calls.index(cut) + 1]
    return [c for c in ended if c.parent is None or id(c.parent) in around]


def path_between(calls: Sequence[Call], first: Call, second: Call) -> list[Call]:
    """The outermost module calls that begin behind the first cut and end before the second or with it."""
    begun = set(map(id, _around(first)))
    around = begun | set(map(id, _around(second)))
    ended = calls[calls.index(first) + 1 : calls.index(second) + 1]
    return [c for c in ended if id(c) not in begun and (c.parent is None or id(c.parent) in around)]
