"""Proves a cut: one step on a copy of the module, whole and split in two, compared and measured."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import PLAIN, batch_size, loss_of, step_arguments
from lightning_edgesplit.splitting.cuts import END, Cut, CutProfile
from lightning_edgesplit.splitting.narrowing import narrowed_bytes
from lightning_edgesplit.splitting.record import Recorder
from lightning_edgesplit.splitting.rehearsal import Measured, Rehearsal, Watch, saved_bytes
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.tree import flatten

TOLERANCE = 1e-4
"""Largest difference between a split and an uncut gradient, relative to the gradient's maximum (fp32 rounding)."""


PATCHED = ("log", "log_dict", "_on_before_batch_transfer")
"""Methods that a run replaces on the module itself, and that a copy of it must not drag along."""


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the random generators of torch, numpy and Python."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])


def copy_of(module: nn.Module, optimizer: Optimizer | None = None) -> tuple[nn.Module, Optimizer | None]:
    """A copy of a LightningModule (and of its optimizer, over the copy's parameters) that may be spoilt.

    It still knows its Trainer, and logs nothing.

    Raises:
        TypeError: If the module cannot be copied.
    """
    patched = {name: module.__dict__.pop(name) for name in PATCHED if name in module.__dict__}
    try:
        probe, copied = copy.deepcopy((module, optimizer))
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied for the proof of its cuts ({error}): keep what cannot be copied"
            " (locks, files, loggers) out of the module's attributes, or give it a __deepcopy__."
        ) from error
    finally:
        module.__dict__.update(patched)
    probe.__dict__["_trainer"] = module.__dict__.get("_trainer")
    probe.__dict__["log"] = probe.__dict__["log_dict"] = lambda *args, **kwargs: None
    return probe, copied


class Probe:
    """A copy of the module on which steps are run and compared.

    Args:
        module: The LightningModule.
        batch: What its step is run on.
        optimizer: Its optimizer, if its state is to be counted.
        private: Numbers of the batch leaves that must not leave the client; None: what is no tensor, and as found.
        context: Opened around every forward pass.

    Attributes:
        leaves: Leaves of the batch.
        declared: Numbers of the plain leaves that may be sent, since `private` does not name them.
        buffers_before: The buffers as they were before the step; `buffers`: behind it.
        loss: The uncut step's; `gradients`: by name of the parameter.
        generator_after: State of the random generator behind the uncut forward pass.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,
        optimizer: Optimizer | None,
        private: frozenset[int] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.context = context
        self.module, self.optimizer = copy_of(module, optimizer)
        self.module.train(module.training)
        self.sides = Sides(self.module)
        self.batch = batch
        self.size = batch_size(batch)
        self.leaves, self.structure = flatten(batch)
        open_to_all = [i for i, leaf in enumerate(self.leaves) if not isinstance(leaf, Tensor)]
        self.declared = () if private is None else tuple(
            i for i in open_to_all if i not in private and isinstance(self.leaves[i], PLAIN)
        )  # fmt: skip
        self.buffers_before = {name: buffer.clone() for name, buffer in self.sides.buffers.items()}
        self._generator = torch.get_rng_state()
        with self.fresh(), Watch() as forward:
            self.loss = loss_of(self.step(batch))
        self.generator_after = torch.get_rng_state()
        with Watch() as backward:
            self.loss.backward()  # type: ignore[no-untyped-call]
        self.flops = forward.flops, backward.flops
        self.gradients = self._gradients()
        self.buffers = {name: buffer.clone() for name, buffer in self.sides.buffers.items()}
        self.state_bytes = self._optimizer_bytes()

    def step(self, batch: Any) -> Any:
        """Calls ``training_step``."""
        with self.context():
            return self.module.training_step(*step_arguments(self.module, batch, 0))  # type: ignore[operator]

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Weights, buffers and generator as they were at first; no gradients."""
        self.sides.place()
        for name, buffer in self.buffers_before.items():
            self.sides.set(name, buffer.clone())
        for parameter in self.sides.parameters.values():
            parameter.grad = None
        torch.set_rng_state(self._generator)
        yield
        self.sides.collect()

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.sides.parameters.items() if p.grad is not None}

    def _optimizer_bytes(self) -> dict[str, int] | None:
        """Bytes of the optimizer's state per parameter after one step, taken on a copy of weights and gradients."""
        if self.optimizer is None:
            return None
        weights = {name: p.detach().clone() for name, p in self.sides.parameters.items()}
        for parameter in self.sides.parameters.values():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()  # a step may clip it, or add noise
        self.optimizer.step()
        for name, weight in weights.items():
            self.sides.set(name, weight)
        names: dict[Tensor, str] = {p: name for name, p in self.sides.parameters.items()}
        return {
            names[p]: sum(x.nbytes for x in tree_leaves(state) if isinstance(x, Tensor))
            for p, state in self.optimizer.state.items()
        }

    def record(self) -> tuple[Recorder, set[str]]:
        """Records one uncut step; returns the recorder and the names of the buffers that the step changed."""
        changed = {name for name, buffer in self.buffers.items() if not torch.equal(buffer, self.buffers_before[name])}
        other_generators = random.getstate(), str(np.random.get_state())
        with self.fresh():
            recorded, _ = copy_of(self.module)
            recorder = Recorder(recorded, self.leaves)
            with self.context(), recorder:
                recorded.training_step(*step_arguments(recorded, self.batch, 0))  # type: ignore[operator]
        if other_generators != (random.getstate(), str(np.random.get_state())):
            raise ValueError(
                "training_step draws random numbers from numpy or Python's `random`: their streams do not travel"
                " between client and server. Draw them with torch, or in the dataset."
            )
        return recorder, changed

    def prove(self, cut: Cut) -> Cut:
        """Runs the step split in two, compares it with the uncut one, and measures both sides.

        Raises:
            ImpossibleCutError: If they differ.
        """
        rehearsal = Rehearsal(self, cut)
        loss = rehearsal.run()
        error = self._difference(loss, self.sides.names)
        if not error <= max(TOLERANCE, 4 * torch.finfo(loss.dtype).eps, 4 * self._coarsest(rehearsal.crossed)):
            raise ImpossibleCutError(f"split and uncut step differ by {error:.1e} of the largest gradient")
        return replace(rehearsal.cut, error=error, profile=self._profile(rehearsal.cut, rehearsal.measured))

    @staticmethod
    def _coarsest(tensors: Sequence[Tensor]) -> float:
        """The rounding of the coarsest type that crosses (bfloat16 under mixed precision)."""
        return max(torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point())

    def _difference(self, loss: Tensor, names: list[str]) -> float:
        """Largest difference from the uncut step: of the loss, the gradients and the buffers, each over its maximum."""
        gradients = self._gradients()
        if gradients.keys() != self.gradients.keys():
            odd = sorted(gradients.keys() ^ self.gradients.keys())[0]
            raise ImpossibleCutError(f"{odd} has a gradient in only one of the split and the uncut step")
        pairs = [(loss.detach(), self.loss.detach())]
        pairs += [(gradients[name], expected) for name, expected in self.gradients.items()]
        pairs += [(self.sides.buffers[name], expected) for name, expected in self.buffers.items()]
        return max(_relative(actual, expected) for actual, expected in pairs)

    def _profile(self, cut: Cut, measured: Measured) -> CutProfile:
        client = [self.sides.real(name) for name in cut.client]
        trained = [x for x in client if isinstance(x, nn.Parameter) and x.requires_grad]
        frozen = [x for x in client if isinstance(x, nn.Parameter) and not x.requires_grad]
        sent = sum(x.nbytes for i in cut.sent if isinstance(x := self.leaves[i], Tensor))
        in_optimizer = None if self.state_bytes is None else sum(self.state_bytes.get(n, 0) for n in cut.client)
        return CutProfile(
            client_forward=measured.client_forward / self.size,
            client_backward=measured.client_backward / self.size,
            server_forward=measured.server_forward / self.size,
            server_backward=measured.server_backward / self.size,
            smashed_bytes=(measured.smashed + sent) / self.size,
            gradient_bytes=measured.gradient / self.size,
            generator_bytes=self._generator.nbytes if cut.random else 0,
            tied_bytes=sum(self.sides.real(name).nbytes for name in cut.tied),
            weight_bytes=sum(x.nbytes for x in client),
            parameter_bytes=sum(x.nbytes for x in trained),
            optimizer_bytes=in_optimizer,
            activation_bytes=measured.saved / self.size,
            head=measured.head / self.size,
            returned_bytes=measured.returned / self.size,
            returned_gradient_bytes=measured.returned_gradient / self.size,
            frozen_bytes=sum(x.nbytes for x in frozen),
            parameter_bytes_bfloat16=sum(narrowed_bytes(x, "bfloat16") for x in trained),
            parameter_bytes_int8=sum(narrowed_bytes(x, "int8") for x in trained),
        )

    def whole_step(self) -> Cut:
        """The cut behind the last layer: everything is the client's."""
        with self.fresh(), saved_bytes(self.sides) as saved:
            loss = self.step(self.batch)
        del loss
        private = tuple(range(len(self.leaves)))
        cut = Cut(name=END, client=tuple(self.sides.names), private=private)
        forward, backward = self.flops
        whole = self._profile(cut, Measured(client_forward=forward, client_backward=backward, saved=saved[0]))
        return replace(cut, profile=replace(whole, smashed_bytes=0.0, gradient_bytes=0.0))


def _relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; infinite for NaN or another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    if torch.equal(actual, expected) or not actual.numel():
        return 0.0
    if not expected.is_floating_point():
        return float("inf")
    difference = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    return float(difference) if torch.isfinite(difference) else float("inf")
