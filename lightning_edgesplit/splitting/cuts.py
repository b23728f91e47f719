"""Cuts of a module: what one is, which of a recorded step are candidates, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.record import Call, Recorder, Value
from lightning_edgesplit.splitting.tree import Structure, leaves_of, tensors_of

END = "end"
"""Name of the cut behind the last layer: the client runs the whole step, as in federated averaging."""


@dataclass(frozen=True)
class CutProfile:
    """What a cut costs, measured on the sample batch. "Per sample" values are those of a batch over its size.

    Attributes:
        client_forward: FLOP per sample before the cut, forward.
        client_backward: FLOP per sample before the cut, backward.
        server_forward: FLOP per sample behind the cut, forward.
        server_backward: FLOP per sample behind the cut, backward.
        smashed_bytes: Bytes per sample of the smashed data and of the batch leaves that go with it.
        gradient_bytes: Bytes per sample of the gradient that comes back.
        generator_bytes: Bytes per local step and direction of the random generator's state; 0 where it stays.
        weight_bytes: Bytes of the client-side parameters and buffers.
        parameter_bytes: Bytes of the client-side parameters that are trained (and of their gradients).
        optimizer_bytes: Bytes of the client-side optimizer state; None where no optimizer was given.
        activation_bytes: Bytes per sample that the client's forward pass keeps for its backward pass.
        client_forward_seconds: Seconds per sample on this machine with one thread; None: not timed.
        client_backward_seconds: Seconds per sample on this machine with one thread; None: not timed.
        server_seconds: Seconds per sample, forward and backward, on this machine; None: not timed.
        tied_bytes: Bytes per local step and direction of tied weights and of their gradients.
    """

    client_forward: float
    client_backward: float
    server_forward: float
    server_backward: float
    smashed_bytes: float
    gradient_bytes: float
    generator_bytes: int
    weight_bytes: int
    parameter_bytes: int
    optimizer_bytes: int | None
    activation_bytes: float
    client_forward_seconds: float | None = None
    client_backward_seconds: float | None = None
    server_seconds: float | None = None
    tied_bytes: int = 0


@dataclass(frozen=True)
class Border:
    """Where a step changes sides.

    Attributes:
        path: Module calls before the cut, outermost ones only, in their order; the last is the cut's own.
        tensors: What crosses: number of the call in `path`, number of the leaf of its output, and whether a gradient
            comes back.
        also: Where else a tensor is returned before the cut (in-place and identity modules): number of the call, of the
            leaf, and of the tensor in `tensors`.
        reads: Whether functions before the cut need data (``.item()``), so that the server is told their results.
        structures: How the output of each call is built; known where the cut was proven.
    """

    path: tuple[str, ...]
    tensors: tuple[tuple[int, int, bool], ...]
    also: tuple[tuple[int, int, int], ...] = ()
    reads: bool = False
    structures: tuple[Structure, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Cut:
    """A place where a module can be cut, proven.

    Attributes:
        name: Module whose output is the smashed data; ``name#2`` if it is that of its second call.
        aliases: Other modules with the same output.
        border: Where the step changes sides; None behind the last layer.
        client: Names of the parameters and buffers on the client's side; all others are on the server's.
        both: Names of buffers and frozen parameters that both sides read and none writes.
        tied: Names of trained parameters that both sides use: they are the client's; the server gets their values with
            the smashed data, and adds its gradient to the client's.
        private: Numbers of the batch leaves that never leave the client.
        sent: Numbers of the batch leaves that go to the server (labels).
        random: Whether the server's side draws random numbers, so that the generator's state travels.
        error: Largest difference between split and uncut gradients in the proof, relative to each gradient's maximum.
        profile: What the cut costs.
    """

    name: str
    aliases: tuple[str, ...] = ()
    border: Border | None = None
    client: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    private: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    random: bool = False
    error: float = 0.0
    profile: CutProfile | None = field(default=None, repr=False)

    @property
    def away(self) -> set[str]:
        """Names of the parameters and buffers that the server has no data of."""
        return set(self.client) - set(self.both) - set(self.tied)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return (self.name, *self.aliases)

    def to_json(self) -> dict[str, Any]:
        """What a client has to know of its cut: plain strings and numbers."""
        data = asdict(replace(self, profile=None, border=None))
        if self.border is not None:
            data["border"] = {"path": self.border.path, "tensors": self.border.tensors, "reads": self.border.reads}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cut:
        """The inverse of `to_json` (profile and structures stay where they were)."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        border = data["border"]
        if border is not None:
            tensors = tuple((int(call), int(leaf), bool(wanted)) for call, leaf, wanted in border["tensors"])
            values["border"] = Border(tuple(border["path"]), tensors, reads=bool(border["reads"]))
        return cls(**values)


class Cuts(list[Cut]):
    """The valid cuts of a module, shallow to deep, and why other modules are none.

    Attributes:
        refused: Reason by module name.
        seconds: How long it took to find them.
        cached: Whether they come from an earlier run, and were not proven in this one.
    """

    def __init__(
        self, cuts: Sequence[Cut], refused: dict[str, str], seconds: float = 0.0, cached: bool = False
    ) -> None:
        super().__init__(cuts)
        self.refused, self.seconds, self.cached = refused, seconds, cached

    def find(self, name: str) -> Cut:
        """The cut of that name; an alias or an unambiguous end of the name will do (``layer1`` for ``net.layer1``).

        Raises:
            ImpossibleCutError: If there is none, with the reason or with the names that there are.
        """
        matches = [cut for cut in self if name in cut.names]
        matches = matches or [c for c in self if any(n.endswith(f".{name}") for n in c.names)]
        if len(matches) == 1:
            return matches[0]
        reasons = [why for key, why in self.refused.items() if key == name or key.endswith(f".{name}")]
        why = reasons[0] if reasons else "several cuts end in that name" if matches else "the module has no such cut"
        raise ImpossibleCutError(
            f"cuts={name!r} cannot be used: {why}. Choose from {', '.join(cut.name for cut in matches or self)}."
        )


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
        """Whether one activation crosses, and nothing else that has a gradient."""
        assert self.cut.border is not None
        return sum(wanted for _, _, wanted in self.cut.border.tensors) == 1


class Refused(Exception):
    """Why a module call is no place for a cut."""


def candidates(
    recorder: Recorder, changed: set[str], private: frozenset[int] | None
) -> Iterator[Candidate | tuple[str, str]]:
    """Judges every recorded module call.

    Args:
        recorder: One recorded step.
        changed: Names of the buffers that the step changed.
        private: Numbers of the batch leaves that must not leave the client; None: the raw inputs.

    Yields:
        A candidate, or the name of a call and the reason why it is none. Shallow to deep.
    """
    groups: dict[tuple[tuple[int, ...], int], list[Call]] = {}
    for call in recorder.calls:
        groups.setdefault((tuple(id(x) for x in tensors_of(call.output)), call.end), []).append(call)
    total = {call.name: call.number for call in sorted(recorder.calls, key=lambda call: call.number)}

    def label(call: Call) -> str:
        return call.name if total[call.name] == 1 else f"{call.name}#{call.number}"

    for calls in groups.values():
        call = calls[-1]  # the outermost one ended last
        names = [label(c) for c in calls]
        try:
            candidate = _Judge(recorder, call, changed, private).candidate()
        except Refused as reason:
            yield names[-1], str(reason)
        else:
            aliases = tuple(dict.fromkeys(n for n in names[:-1] if n != names[-1]))
            candidate.cut = replace(candidate.cut, name=names[-1], aliases=aliases)
            yield candidate


class _Judge:
    """Finds out what crosses at the end of one module call, and whether it may."""

    def __init__(self, recorder: Recorder, call: Call, changed: set[str], private: frozenset[int] | None) -> None:
        self.recorder, self.call, self.end, self._private = recorder, call, call.end, private
        self.path = path_to(recorder.calls, call)
        self._weights = recorder.parameters | recorder.buffers
        self._both, self._tied = self._on_both_sides(changed)
        shared = {*self._both, *self._tied}
        self._fixed = {id(self._weights[name]) for name in shared}
        self._moving = {id(v) for name, v in self._weights.items() if name not in shared}
        self._made: dict[int, list[tuple[int, int, Tensor]]] = {}  # what the calls of the path returned
        for number, before in enumerate(self.path):
            for leaf, output in enumerate(leaves_of(before.output)):
                if isinstance(output, Tensor) and id(output) in recorder.values:
                    self._made.setdefault(id(recorder.values[id(output)]), []).append((number, leaf, output))
        self._crossing: dict[int, Value] = {}
        self._sent: set[int] = set()
        self._seen: set[int] = set()

    def candidate(self) -> Candidate:
        """The candidate, with the name still to be given.

        Raises:
            Refused: If it is none.
        """
        smashed = [x for x in tensors_of(self.call.output) if id(x) in self.recorder.values]
        if not any(self._wanted(x) for x in smashed):
            raise Refused(self._why_no_activation(smashed))
        for value in self.recorder.values.values():
            if value.born <= self.end < value.last_use and id(value) not in self._fixed | self._moving:
                self._have(value)
        if not any(self._wanted(self._made[i][-1][2]) for i in self._crossing):
            raise Refused("nothing behind it uses its output")
        sent = self._sent
        places = sorted((self._made[i] for i in self._crossing), key=lambda entries: entries[-1][:2])
        crossing = [entries[-1] for entries in places]
        consumed = frozenset().union(*(value.leaves for value in self._crossing.values()))
        inside = tuple(f"{call.name}." for call in self.path)  # of what the sample did not use, where it would be
        before = [
            name
            for name, v in self._weights.items()
            if v.first_use <= self.end or (not v.uses and name.startswith(inside))
        ]
        border = Border(
            path=tuple(call.name for call in self.path),
            tensors=tuple((call, leaf, self._wanted(tensor)) for call, leaf, tensor in crossing),
            also=tuple((call, leaf, i) for i, entries in enumerate(places) for call, leaf, _ in entries[:-1]),
            reads=any(
                time <= self.end and not any(c.begin < time <= c.end for c in self.path) for time in self.recorder.reads
            ),
        )
        cut = Cut(
            name="",
            border=border,
            client=tuple(before),
            both=self._both,
            tied=self._tied,
            private=tuple(sorted(consumed - sent)),
            sent=tuple(sorted(sent)),
            random=any(time > self.end for time in self.recorder.random),
        )
        flops = self.recorder.flops
        position = flops[self.end] / max(1, flops[-1])
        return Candidate(cut, position, sum(tensor.nbytes for _, _, tensor in crossing))

    def _on_both_sides(self, changed: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        both: list[str] = []
        tied: list[str] = []
        for name, value in self._weights.items():
            if not value.first_use <= self.end < value.last_use:
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
        for before in self.path:
            if before.begin < value.born <= before.end:
                raise Refused(
                    f"a result of {value.made_by} inside {before.name} is needed behind it too (a residual path)"
                )
        if value.random:
            raise Refused(f"a result of {value.made_by}, which is random, is needed on both sides of it")
        for source in value.sources:
            self._have(source)

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


def path_to(calls: Sequence[Call], cut: Call) -> list[Call]:
    """The outermost module calls that end before the cut or with it, in their order; the last is the cut's own."""
    open_calls = set()
    parent = cut.parent
    while parent is not None:
        open_calls.add(id(parent))
        parent = parent.parent
    ended = calls[: calls.index(cut) + 1]
    return [c for c in ended if c.parent is None or id(c.parent) in open_calls]
