"""Cuts of a module: what one is, which of a recorded step are candidates, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.record import Call, Recorder, Value

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


@dataclass(frozen=True)
class Cut:
    """A place where a module can be cut, proven.

    Attributes:
        name: Module whose output is the smashed data; ``name#2`` if it is that of its second call.
        aliases: Other modules with the same output.
        path: Module calls before the cut, outermost ones only, in their order; the last is the cut's own.
        client: Names of the parameters and buffers on the client's side; all others are on the server's.
        both: Names of buffers that both sides read and none writes.
        private: Numbers of the batch leaves that the client's side consumes; they never leave it.
        sent: Numbers of the batch leaves that go to the server (labels).
        random: Whether the server's side draws random numbers, so that the generator's state travels.
        error: Largest difference between split and uncut gradients in the proof, relative to each gradient's maximum.
        profile: What the cut costs.
    """

    name: str
    aliases: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    private: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    random: bool = False
    error: float = 0.0
    profile: CutProfile | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """What a client has to know of its cut: plain strings and numbers."""
        return {key: value for key, value in asdict(self).items() if key != "profile"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cut:
        """The inverse of `to_json` (the profile stays where it was)."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return cls(**values)


class Cuts(list[Cut]):
    """The valid cuts of a module, shallow to deep, and why other modules are none.

    Attributes:
        refused: Reason by module name.
    """

    def __init__(self, cuts: Sequence[Cut], refused: dict[str, str]) -> None:
        super().__init__(cuts)
        self.refused = refused

    def find(self, name: str) -> Cut:
        """The cut of that name; an alias or an unambiguous end of the name will do (``layer1`` for ``net.layer1``).

        Raises:
            ImpossibleCutError: If there is none, with the reason or with the names that there are.
        """
        matches = [cut for cut in self if name in (cut.name, *cut.aliases)]
        matches = matches or [c for c in self if any(n.endswith(f".{name}") for n in (c.name, *c.aliases))]
        if len(matches) == 1:
            return matches[0]
        reasons = [why for key, why in self.refused.items() if key == name or key.endswith(f".{name}")]
        why = reasons[0] if reasons else "several cuts end in that name" if matches else "the module has no such cut"
        raise ImpossibleCutError(
            f"cuts={name!r} cannot be used: {why}. Choose from {', '.join(cut.name for cut in matches or self)}."
        )


@dataclass
class Candidate:
    """A place that the recorded step does not rule out; the proof comes after."""

    cut: Cut
    output: Tensor


def candidates(recorder: Recorder, changed: set[str]) -> Iterator[Candidate | tuple[str, str]]:
    """Judges every recorded module call.

    Args:
        recorder: One recorded step.
        changed: Names of the buffers that the step changed.

    Yields:
        A candidate, or the name of a call and the reason why it is none. Shallow to deep.
    """
    groups: dict[tuple[int, int], list[Call]] = {}
    for call in recorder.calls:
        groups.setdefault((id(call.output), call.end), []).append(call)
    total = {call.name: call.number for call in sorted(recorder.calls, key=lambda call: call.number)}

    def label(call: Call) -> str:
        return call.name if total[call.name] == 1 else f"{call.name}#{call.number}"

    for calls in groups.values():
        call = calls[-1]  # the outermost one ended last
        reason = _unfit(recorder, call, changed)
        if reason is not None:
            yield label(call), reason
            continue
        value = recorder.values[id(call.output)]
        uses = recorder.parameters | recorder.buffers
        before = {name for name, v in uses.items() if 0 < v.first_use <= call.end}
        behind = {name for name, v in uses.items() if v.last_use > call.end}
        sent = _leaves_behind(recorder, call)
        names = [label(c) for c in calls]
        yield Candidate(
            Cut(
                name=names[-1],
                aliases=tuple(dict.fromkeys(n for n in names[:-1] if n != names[-1])),
                path=_path(recorder.calls, call),
                client=tuple(name for name in uses if name in before),
                both=tuple(sorted(before & behind)),
                private=tuple(sorted(value.leaves)),
                sent=tuple(sorted(sent)),
                random=any(time > call.end for time in recorder.random),
            ),
            call.output,
        )


def _unfit(recorder: Recorder, call: Call, changed: set[str]) -> str | None:
    """Why the output of `call` is not all that crosses its end; None if nothing speaks against it."""
    output = call.output
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not one tensor"
    if not output.is_floating_point() or output.ndim == 0:
        return "its output is no floating-point activation"
    value = recorder.values.get(id(output))
    if value is None or not value.trained or not output.requires_grad:
        return "nothing before it is trained, so that there is no client-side model to train"
    if not value.leaves:
        return "its output does not depend on the batch"
    for name, use in (recorder.parameters | recorder.buffers).items():
        if 0 < use.first_use <= call.end < use.last_use and (name in recorder.parameters or name in changed):
            kind = "parameter" if name in recorder.parameters else "buffer that the step changes"
            return f"{name} is a {kind} used on both sides of it (tied weights)"
    for other in _crossing(recorder, call):
        if other.trained or other.random or other.leaves & value.leaves:
            what = f"a result of {other.made_by}" if other.born else other.made_by
            if other.leaves and not (other.trained or other.random):
                return f"{what} that the client's side consumes is needed behind it too: raw inputs stay on the client"
            return f"{what} made before it is needed behind it too (a residual path, or a second output)"
    return None


def _crossing(recorder: Recorder, call: Call) -> Iterator[Value]:
    """Values other than the output, parameters and buffers that are alive across the end of `call`."""
    known = {id(v) for v in (recorder.parameters | recorder.buffers).values()} | {id(recorder.values[id(call.output)])}
    for value in recorder.values.values():
        if value.born <= call.end < value.last_use and id(value) not in known:
            yield value


def _leaves_behind(recorder: Recorder, call: Call) -> set[int]:
    """Numbers of the batch leaves that are read behind `call`, directly or to recompute something."""
    return {leaf for value in _crossing(recorder, call) for leaf in value.leaves}


def _path(calls: Sequence[Call], cut: Call) -> tuple[str, ...]:
    """The outermost module calls that end before the cut or with it, in their order; the last is the cut's own."""
    open_calls = set()
    parent = cut.parent
    while parent is not None:
        open_calls.add(id(parent))
        parent = parent.parent
    ended = calls[: calls.index(cut) + 1]
    return tuple(c.name for c in ended if c.parent is None or id(c.parent) in open_calls)
