"""One local step of all clients as one step of the server's: parts are concatenated, and gradients divided again.

The server-side model sees one batch, [Σ_k b_k, …]: one loss, one backward pass, batch statistics of all. To `Server`
and to Lightning's loop it is an arrival of the first client's. The rows are in the order of the clients' numbers; where
cuts differ, those of shallower cuts come first, since the others come in behind them (`splitting.mixing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.runtime.seat import Seat
from lightning_edgesplit.runtime.wire import Frame, Kind
from lightning_edgesplit.splitting import Cut
from lightning_edgesplit.splitting.mixing import Mixture
from lightning_edgesplit.splitting.step import Newcomers

_WAY_OUT = 'choose another cut, or use server_model="splitfed-v2" or "per_client", which take one client at a time'


@dataclass
class Joint:
    """The parts of one local step.

    Attributes:
        clients: Who takes part, in the order of their rows.
        frames: What each sent.
        frame: All of it as if one client had sent it; where cuts differ, with the smashed data of the shallowest alone.
        deeper: Which of the clients come in at which deeper cut, and which call of its module that is; shallow to deep.
        handed_out: Makes gradients [Σ_k b_k, …] of those at the cut, where the backward pass was over other rows.
    """

    clients: Sequence[int]
    frames: Sequence[Frame]
    frame: Frame
    deeper: Sequence[tuple[Cut, int, slice]] = ()
    handed_out: Callable[[Tensor], Tensor] = lambda gradient: gradient

    @property
    def samples(self) -> list[int]:
        """Samples of each part, b_k."""
        return [frame.about["samples"] for frame in self.frames]

    def divided(self, gradients: Sequence[Tensor], generators: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """What goes back to each client of the (shallowest) cut: its part of the gradients, and a generator's state.

        Args:
            gradients: Of the joint smashed data, [Σ_k b_k, …] each.
            generators: The state that the joint step left, which was the first client's, if it travels; others get
                theirs back.
        """
        samples = self.samples[: self.deeper[0][2].start] if self.deeper else self.samples
        parts = [torch.split(self.handed_out(gradient), samples) for gradient in gradients]
        for number, client in enumerate(self.clients[: len(samples)]):
            own = generators if not number else [self.frames[number].tensors[-1]] * len(generators)
            yield client, [*(part[number] for part in parts), *own]

    def entering(self, send: Callable[[int, list[Tensor]], None]) -> list[Newcomers]:
        """Those who come in at deeper cuts, as the step takes them in.

        Args:
            send: Called in the backward pass with a client and what goes back to it: its gradient, and its random
                generator's state where it sent that.
        """
        return [self._newcomers(cut, call, who, send) for cut, call, who in self.deeper]

    def _newcomers(self, cut: Cut, call: int, who: slice, send: Callable[[int, list[Tensor]], None]) -> Newcomers:
        def hand_out(gradient: Tensor) -> None:
            parts = torch.split(gradient, self.samples[who])
            for client, frame, part in zip(self.clients[who], self.frames[who], parts, strict=True):
                send(client, [part, *(frame.tensors[-1:] if cut.random else ())])

        return Newcomers(cut, call, [frame.tensors[0] for frame in self.frames[who]], hand_out)


def join(seats: Sequence[Seat], clients: Sequence[int], frames: Sequence[Frame], cut: Cut) -> Joint:
    """Makes one frame of the clients' ``SMASHED`` frames.

    Args:
        seats: All clients' seats, which know what `Frame.about` leaves out since it has not changed.
        clients: Those that take part in this local step.
        frames: What they sent.
        cut: The cut of all.

    Raises:
        ImpossibleCutError: If something that crosses, or is sent with it, is neither one row per sample nor the same
            for all clients.
    """
    return _joined(seats, clients, frames, [cut] * len(clients))


def join_by_depth(seats: Sequence[Seat], clients: Sequence[int], frames: Sequence[Frame], mixture: Mixture) -> Joint:
    """The same where cuts differ: the rows are sorted by depth, then by the clients' numbers.

    Args:
        seats: All clients' seats.
        clients: Those that take part in this local step, in the order of their numbers.
        frames: What they sent.
        mixture: The cuts of all.

    Raises:
        ImpossibleCutError: As `join`.
    """
    order = sorted(range(len(clients)), key=lambda number: mixture.depth(seats[clients[number]].cut))
    clients, frames = [clients[number] for number in order], [frames[number] for number in order]
    cuts = [seats[client].cut for client in clients]
    joint = _joined(seats, clients, frames, cuts)
    ends, deeper = 0, []
    for _, group in groupby(cuts, key=lambda cut: cut.name):
        begins, own = ends, list(group)
        ends += len(own)
        if begins:
            deeper.append((own[0], mixture.call(cuts[0], own[0]), slice(begins, ends)))
    joint.deeper = deeper
    return joint


def _joined(seats: Sequence[Seat], clients: Sequence[int], frames: Sequence[Frame], cuts: Sequence[Cut]) -> Joint:
    """The joint frame, of which the smashed data are those of the clients that have the first one's cut."""
    samples = [frame.about["samples"] for frame in frames]
    for client, frame in zip(clients, frames, strict=True):
        seats[client].outputs = frame.about.get("outputs", seats[client].outputs)
    first = sum(cut.name == cuts[0].name for cut in cuts)
    smashed, rest = zip(*(_divided(frame, cut) for frame, cut in zip(frames, cuts, strict=True)), strict=True)
    tensors = [_together(parts, samples[:first], always=True) for parts in _columns(smashed[:first])]
    tensors += [_together(parts, samples, always=False) for parts in _columns(rest)]
    if cuts[0].random:
        tensors.append(frames[0].tensors[-1])
    about = {
        "index": frames[0].about["index"],
        "samples": sum(samples),
        "steps": True,  # batches are not accumulated
        "logged": [
            [name, value, {"batch_size": frame.about["samples"], **options}]
            for frame in frames
            for name, value, options in frame.about["logged"]
        ],
        "shapes": [_shape(shapes, samples) for shapes in zip(*(f.about["shapes"] for f in frames), strict=True)],
        "plain": _same([frame.about["plain"] for frame in frames], "numbers and texts of the batch"),
        "outputs": [
            [_described(leaves, samples[:first]) for leaves in zip(*outputs, strict=True)]
            for outputs in zip(*(seats[client].outputs for client in clients[:first]), strict=True)
        ],
    }
    return Joint(clients, frames, Frame(Kind.SMASHED, tensors, about))


def _divided(frame: Frame, cut: Cut) -> tuple[list[Tensor], list[Tensor]]:
    """The smashed data in a frame, and the leaves of the batch."""
    assert cut.border is not None
    tensors, crossing = list(frame.tensors[:-1] if cut.random else frame.tensors), len(cut.border.tensors)
    return tensors[:crossing], tensors[crossing:]


def _columns(rows: Sequence[Sequence[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    if len({len(row) for row in rows}) > 1:
        raise ImpossibleCutError(
            f"clients sent {[len(row) for row in rows]} tensors: their batches are built otherwise."
        )
    return zip(*rows, strict=True)


def _together(parts: Sequence[Tensor], samples: Sequence[int], always: bool) -> Tensor:
    """One tensor of the clients' parts: concatenated along the batch, or the one that all have."""
    if all(x.ndim and len(x) == n for x, n in zip(parts, samples, strict=True)):
        if len({(x.shape[1:], x.dtype) for x in parts}) == 1:
            return torch.cat(list(parts))
    elif not always and all(torch.equal(x, parts[0]) for x in parts):
        return parts[0]
    raise _refusal([list(x.shape) for x in parts], samples)


def _shape(shapes: Sequence[list[int] | None], samples: Sequence[int]) -> list[int] | None:
    if shapes[0] is None or (all(shape == shapes[0] for shape in shapes) and not _batched(shapes, samples)):
        return shapes[0]
    if _batched(shapes, samples) and len({tuple(shape[1:]) for shape in shapes if shape}) == 1:
        return [sum(samples), *shapes[0][1:]]
    raise _refusal(shapes, samples)


def _batched(shapes: Sequence[list[int] | None], samples: Sequence[int]) -> bool:
    return all(bool(shape) and shape[0] == n for shape, n in zip(shapes, samples, strict=True) if shape is not None)


def _described(leaves: Sequence[Any], samples: Sequence[int]) -> Any:
    """As `Passed.outputs` has it, of one leaf of an output before the cut."""
    if not isinstance(leaves[0], list):
        return _same(leaves, "plain values that modules before the cut return")
    if len(leaves[0]) == 1:
        return leaves[0]
    shape = _shape([leaf[1:] for leaf in leaves], samples)
    assert shape is not None
    return [leaves[0][0], *shape]


def _same(values: Sequence[Any], what: str) -> Any:
    if any(value != values[0] for value in values):
        raise ImpossibleCutError(
            f'server_model="shared" makes one batch of all clients\' batches, and {what} differ: {values}: {_WAY_OUT}.'
        )
    return values[0]


def _refusal(shapes: Sequence[Any], samples: Sequence[int]) -> ImpossibleCutError:
    return ImpossibleCutError(
        'server_model="shared" makes one batch of all clients\' batches, and a tensor of shapes'
        f" {', '.join(map(str, shapes))} in batches of {', '.join(map(str, samples))} samples does not have one row per"
        f" sample: {_WAY_OUT}."
    )
