"""What each cut costs: the numbers that every policy plans with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path

END = "end"
"""Name of the cut behind the last layer: the client runs the whole step, as in federated averaging."""

_VERSION = 1  # of the file format


def local_steps(samples: int, batch: int, most: int | None = None) -> int:
    """Local steps that so many samples make in batches of that size, the last one short; `most` of them at most."""
    needed = -(-samples // batch)
    return needed if most is None else min(needed, most)


@dataclass(frozen=True)
class CutCost:
    """Costs of one cut. "Per sample" values times the batch size give those of one local step.

    Attributes:
        name: Name of the cut, as in ``cuts=``; `END` for the cut behind the last layer.
        client_forward: FLOP per sample before the cut, forward.
        client_backward: FLOP per sample before the cut, backward.
        server: FLOP per sample behind the cut, forward and backward.
        smashed: Bytes per sample that go up in a local step (smashed data and the labels with it).
        gradient: Bytes per sample that come down in a local step.
        step_up: Bytes that go up in every local step whatever its batch (frame, generator state).
        step_down: Bytes that come down in every local step whatever its batch.
        weights: Bytes of the client-side parameters and buffers, exchanged once per round in each direction, without
            those of frozen parameters, which stay where they are; as they travel, perhaps with fewer bits than they
            have.
        memory_fixed: Bytes on the client that do not depend on the batch (parameters, gradients, optimizer state).
        memory_per_sample: Bytes of activations that the client keeps for its backward pass, per sample.
        client_forward_seconds: Measured on this machine with one thread, seconds per sample; None: not measured.
        client_backward_seconds: The same for the client's backward pass and optimizer step.
        server_seconds: Measured on this machine with the server's threads, forward and backward, seconds per sample.
        server_forward: Part of `server` that is its forward pass; None: a third, as where a backward pass is two.
        smashed_int8: What `smashed` is if floating-point tensors go as 8-bit integers; None: a quarter, as for float32.
        gradient_int8: The same of `gradient`.
        trips: How often a local step goes to the server and back: 1; 2 where the client runs the last layers too.
        averaged: What `weights` are where they are averaged, with all of their bits; None: the same.
    """

    name: str
    client_forward: float
    client_backward: float
    server: float
    smashed: float
    gradient: float
    weights: float
    step_up: float = 0.0
    step_down: float = 0.0
    memory_fixed: float = 0.0
    memory_per_sample: float = 0.0
    client_forward_seconds: float | None = None
    client_backward_seconds: float | None = None
    server_seconds: float | None = None
    server_forward: float | None = None
    smashed_int8: float | None = None
    gradient_int8: float | None = None
    trips: int = 1
    averaged: float | None = None

    @property
    def in_full(self) -> float:
        """Bytes of `weights` with all of their bits."""
        return self.weights if self.averaged is None else self.averaged


@dataclass(frozen=True)
class Costs:
    """The cuts of one model, shallow to deep, and how much each client has to do in a round.

    Attributes:
        cuts: One entry per valid cut, shallow to deep; the last is `END`.
        batch: Samples in a local step, one number per client.
        steps: Local steps per round, one number per client.
        samples: Samples that each client has left for the round, by which other batches make more or fewer local
            steps of it; empty: enough for as many steps with any batch.
        most_steps: Local steps of a round at most, where `samples` are given; None: as many as they make.

    Raises:
        ValueError: If there is no cut, or `batch`, `steps` and `samples` differ in length.
    """

    cuts: tuple[CutCost, ...]
    batch: tuple[int, ...]
    steps: tuple[int, ...]
    samples: tuple[int, ...] = ()
    most_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError("costs need at least one cut: `find_cuts` names those of a module.")
        if len(self.batch) != len(self.steps):
            raise ValueError(f"batch has {len(self.batch)} entries and steps {len(self.steps)}: one per client each.")
        if self.samples and len(self.samples) != len(self.steps):
            raise ValueError(f"samples has {len(self.samples)} entries and steps {len(self.steps)}: one per client.")

    def __getitem__(self, name: str) -> CutCost:
        for cut in self.cuts:
            if cut.name == name:
                return cut
        raise KeyError(name)

    def with_batch(self, batch: Sequence[int]) -> Costs:
        """The same clients with other batches, and with the local steps that their samples then make."""
        steps = self.steps
        if self.samples:
            every = zip(self.samples, batch, steps, strict=True)
            steps = tuple(local_steps(left, own, self.most_steps) if before else 0 for left, own, before in every)
        return replace(self, batch=tuple(batch), steps=steps)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes them as JSON, for `load` and ``edgesplit plan --costs``."""
        data = {"version": _VERSION, **asdict(self)}
        if not self.samples:
            del data["samples"], data["most_steps"]
        Path(path).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Costs:
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            version = data.pop("version")
            if version != _VERSION:
                raise ValueError(f"version {version}, not {_VERSION}")
            cuts = tuple(CutCost(**cut) for cut in data.pop("cuts"))
            batch, steps, samples = tuple(data.pop("batch")), tuple(data.pop("steps")), tuple(data.pop("samples", ()))
            return cls(cuts, batch, steps, samples, data.pop("most_steps", None))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} holds no costs ({error}): write it with `Costs.save`.") from error
