"""Cuts of a module: what one is, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.tree import Structure

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
        head: FLOP per sample of the client's last layers and the loss, forward and backward, where the step comes back.
        head_seconds: Seconds per sample of the same on this machine with one thread; None: not timed.
        returned_bytes: Bytes per sample that come back to the client at the second cut.
        returned_gradient_bytes: Bytes per sample of the gradient that goes up from there.
        frozen_bytes: Part of `weight_bytes` that is not trained, so that it travels once and not in every round.
        parameter_bytes_bfloat16: What `parameter_bytes` are where they travel as bfloat16 (`splitting.narrowing`).
        parameter_bytes_int8: The same as 8-bit integers.
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
    head: float = 0.0
    head_seconds: float | None = None
    returned_bytes: float = 0.0
    returned_gradient_bytes: float = 0.0
    frozen_bytes: int = 0
    parameter_bytes_bfloat16: int = 0
    parameter_bytes_int8: int = 0


@dataclass(frozen=True)
class Border:
    """Where a step changes sides.

    Attributes:
        path: Module calls before the cut, outermost ones only, in their order; the last is the cut's own. Of a second
            cut: those since the first.
        tensors: What crosses: number of the call in `path`, number of the leaf of its output, and whether a gradient
            comes back.
        also: Where else a tensor is returned before the cut (in-place and identity modules): number of the call, of the
            leaf, and of the tensor in `tensors`.
        reads: Whether functions before the cut need data (``.item()``), so that the other side is told their results.
        numbers: Which call of its module each call in `path` is, from 1.
        structures: How the output of each call is built; known where the cut was proven.
    """

    path: tuple[str, ...]
    tensors: tuple[tuple[int, int, bool], ...]
    also: tuple[tuple[int, int, int], ...] = ()
    reads: bool = False
    numbers: tuple[int, ...] = ()
    structures: tuple[Structure, ...] = field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As plain strings and numbers; without the structures."""
        return {
            "path": self.path, "tensors": self.tensors, "also": self.also, "reads": self.reads, "numbers": self.numbers,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Border:
        """The inverse of `to_json`."""
        return cls(
            path=tuple(str(name) for name in data["path"]),
            tensors=tuple((int(call), int(leaf), bool(wanted)) for call, leaf, wanted in data["tensors"]),
            also=tuple((int(call), int(leaf), int(number)) for call, leaf, number in data["also"]),
            reads=bool(data["reads"]),
            numbers=tuple(int(number) for number in data["numbers"]),
        )


@dataclass(frozen=True)
class Cut:
    """A place where a module can be cut, proven.

    Attributes:
        name: Module whose output is the smashed data; ``name#2`` if it is that of its second call.
        aliases: Other modules with the same output.
        border: Where the step goes to the server; None behind the last layer.
        back: Where it comes back to the client, which then runs the last layers and the loss (a U-shaped split, in
            which labels stay on the client too); None: the server runs the rest.
        direct: Whether the client's last layers use what its first ones made, so that both backward passes cross these.
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
    back: Border | None = None
    direct: bool = False
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
        data = asdict(replace(self, profile=None, border=None, back=None))
        for key, border in (("border", self.border), ("back", self.back)):
            data[key] = None if border is None else border.to_json()
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cut:
        """The inverse of `to_json` (profile and structures stay where they were)."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        for key in ("border", "back"):
            values[key] = None if data[key] is None else Border.from_json(data[key])
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
