"""Finds the valid cuts of a LightningModule on a sample batch, proves each, and measures what it costs."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import (
    batch_size,
    first_samples,
    flatten,
    loss_of,
    shell_of,
    step_arguments,
    unflatten,
)
from lightning_edgesplit.splitting.cuts import END, Candidate, Cut, CutProfile, Cuts, candidates
from lightning_edgesplit.splitting.record import Recorder
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import ServerSide, run_client_side

TOLERANCE = 1e-4
"""Largest difference between a split and an uncut gradient, relative to the gradient's maximum (fp32 rounding)."""


def find_cuts(
    module: nn.Module,
    batch: Any,
    optimizer: Optimizer | None = None,
    samples: int = 2,
    only: Callable[[str], bool] | None = None,
) -> Cuts:
    """Finds where a LightningModule can be cut, and proves each cut before it offers it.

    The module's ``training_step`` is run on a copy of the module: once to record which tensors are alive where, then
    once per candidate, split in two. A cut is offered if loss, gradients and buffers of the split step equal those of
    the uncut one. Neither the module nor the random generators are changed.

    Args:
        module: The LightningModule, in the mode (train) and precision in which it will be trained.
        batch: A batch as its ``training_step`` takes it.
        optimizer: Its optimizer; gives `CutProfile.optimizer_bytes`. It is copied, not changed.
        samples: How many samples of the batch the proof uses.
        only: Limits the proof to modules for whose name it returns True.

    Returns:
        The cuts, shallow to deep, ending with `END`; `Cuts.refused` says why other modules are none.

    Raises:
        TypeError: If ``training_step`` returns no loss.
        ValueError: If the batch has no tensor with a batch dimension, or the step draws random numbers from numpy or
            Python's ``random``, whose streams do not travel between client and server.
    """
    batch = first_samples(batch, samples)
    with generators_kept():
        probe = Probe(module, batch, optimizer)
        recorder, changed = probe.record()
        cuts: list[Cut] = []
        refused: dict[str, str] = {}
        for candidate in candidates(recorder, changed):
            if isinstance(candidate, tuple):
                refused.setdefault(candidate[0], candidate[1])
            elif only is None or any(only(name) for name in (candidate.cut.name, *candidate.cut.aliases)):
                try:
                    cuts.append(probe.prove(candidate))
                except Exception as error:  # whatever the split step raised is the reason why it is no cut
                    refused[candidate.cut.name] = f"the proof failed: {type(error).__name__}: {error}"
        cuts.append(probe.whole_step())
    proven = {name for cut in cuts for name in (cut.name, *cut.aliases)}
    return Cuts(cuts, {name: reason for name, reason in refused.items() if name not in proven})


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
    try:
        probe, copied = copy.deepcopy((module, optimizer))
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied for the proof of its cuts ({error}): keep what cannot be copied"
            " (locks, files, loggers) out of the module's attributes, or give it a __deepcopy__."
        ) from error
    probe.__dict__["_trainer"] = module.__dict__.get("_trainer")
    probe.__dict__["log"] = probe.__dict__["log_dict"] = lambda *args, **kwargs: None
    return probe, copied


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOP, and refuses operations that mix real and meta tensors.

    ``real.add_(meta)`` is accepted by torch and does nothing: a wrong cut would look right.
    """

    def __init__(self, refuse_meta: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.refuse_meta = refuse_meta

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_meta = [x for x in tensors if x.is_meta]
        if self.refuse_meta and on_meta:
            raise ImpossibleCutError(f"{func} behind the cut needs a tensor that only the client has")
        output = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None and not on_meta:
            self.flops += count(*args, **kwargs, out_val=output)
        return output


class Probe:
    """A copy of the module on which steps are run and compared."""

    def __init__(self, module: nn.Module, batch: Any, optimizer: Optimizer | None) -> None:
        self.module, self.optimizer = copy_of(module, optimizer)
        self.module.train(module.training)
        self.sides = Sides(self.module)
        self.batch = batch
        self.size = batch_size(batch)
        self.leaves, self.spec = flatten(batch)
        self._buffers = {name: buffer.clone() for name, buffer in self.sides.buffers.items()}
        self._generator = torch.get_rng_state()
        with self._fresh(), _Watch() as forward:
            self.loss = loss_of(self._step(batch))
        with _Watch() as backward:
            self.loss.backward()  # type: ignore[no-untyped-call]
        self.flops = forward.flops, backward.flops
        self.gradients = self._gradients()
        self.buffers = {name: buffer.clone() for name, buffer in self.sides.buffers.items()}
        self.state_bytes = self._optimizer_bytes()

    def _step(self, batch: Any) -> Any:
        return self.module.training_step(*step_arguments(self.module, batch, 0))  # type: ignore[operator]

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        """Weights, buffers and generator as they were at first; no gradients."""
        self.sides.place()
        for name, buffer in self._buffers.items():
            self.sides.set(name, buffer.clone())
        for parameter in self.sides.parameters.values():
            parameter.grad = None
        torch.set_rng_state(self._generator)
        yield
        self.sides.collect()

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.sides.parameters.items() if p.grad is not None}

    def _optimizer_bytes(self) -> dict[str, int] | None:
        """Bytes of the optimizer's state per parameter after one step, taken on a copy of the weights."""
        if self.optimizer is None:
            return None
        weights = {name: p.detach().clone() for name, p in self.sides.parameters.items()}
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
        changed = {name for name, buffer in self.buffers.items() if not torch.equal(buffer, self._buffers[name])}
        other_generators = random.getstate(), str(np.random.get_state())
        with self._fresh():
            recorded, _ = copy_of(self.module)
            recorder = Recorder(recorded, self.leaves)
            with recorder:
                recorded.training_step(*step_arguments(recorded, self.batch, 0))  # type: ignore[operator]
        if other_generators != (random.getstate(), str(np.random.get_state())):
            raise ValueError(
                "training_step draws random numbers from numpy or Python's `random`: their streams do not travel"
                " between client and server. Draw them with torch, or in the dataset."
            )
        return recorder, changed

    def prove(self, candidate: Candidate) -> Cut:
        """Runs the step split in two, compares it with the uncut one, and measures both sides.

        Raises:
            ImpossibleCutError: If they differ.
        """
        cut, sides = candidate.cut, self.sides
        everything = sides.names
        with self._fresh(), _Watch() as client_forward, _saved_bytes(sides) as saved:
            output = run_client_side(self.module, cut.path, self.batch, 0)
        smashed, generator = output.detach().clone(), torch.get_rng_state()

        # what a server has: shells instead of the client's weights and of the private leaves
        sides.place(set(cut.client) - set(cut.both))
        leaves = [shell_of(x) if i in cut.private and isinstance(x, Tensor) else x for i, x in enumerate(self.leaves)]
        batch = unflatten(leaves, self.spec)
        torch.manual_seed(0)  # if the server's side draws, only the client's generator state gives the right numbers
        received: list[Tensor] = []
        watch = _Watch()
        server = ServerSide(self.module, cut.path)
        for remembered in (False, True):  # the second time with remembered outputs before the cut, as in training
            with self._fresh_server(cut):
                watch.flops = 0

                def at_cut() -> None:
                    torch.set_rng_state(generator)
                    watch.refuse_meta = True

                with watch, server.receiving(batch, smashed.clone(), received.append, at_cut):
                    watch.refuse_meta = False
                    loss = loss_of(self._step(batch))
                server_forward = watch.flops
                if remembered:
                    with _Watch() as server_backward:
                        loss.backward()  # type: ignore[no-untyped-call]
        sides.collect()
        sides.place()
        if not received:
            raise ImpossibleCutError("the loss does not depend on its output")
        with _Watch() as client_backward:
            output.backward(received[0])  # type: ignore[no-untyped-call]
        error = self._difference(loss, everything)
        if not error <= TOLERANCE:
            raise ImpossibleCutError(f"split and uncut step differ by {error:.1e} of the largest gradient")
        return replace(
            cut,
            error=error,
            profile=self._profile(
                cut,
                flops=(client_forward.flops, client_backward.flops, server_forward, server_backward.flops),
                smashed=smashed.nbytes,
                saved=saved[0],
            ),
        )

    @contextmanager
    def _fresh_server(self, cut: Cut) -> Iterator[None]:
        """The server's own buffers as they were before the step; the client's stay as its pass left them."""
        for name, buffer in self._buffers.items():
            if name not in cut.client:
                self.sides.set(name, buffer.clone())
        for parameter in self.sides.parameters.values():
            parameter.grad = None
        yield

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

    def _profile(self, cut: Cut, flops: tuple[int, int, int, int], smashed: int, saved: int) -> CutProfile:
        client = [self.sides.real(name) for name in cut.client]
        trained = [x for x in client if isinstance(x, nn.Parameter) and x.requires_grad]
        sent = sum(x.nbytes for i in cut.sent if isinstance(x := self.leaves[i], Tensor))
        in_optimizer = None if self.state_bytes is None else sum(self.state_bytes.get(n, 0) for n in cut.client)
        return CutProfile(
            client_forward=flops[0] / self.size,
            client_backward=flops[1] / self.size,
            server_forward=flops[2] / self.size,
            server_backward=flops[3] / self.size,
            smashed_bytes=(smashed + sent) / self.size,
            gradient_bytes=smashed / self.size,
            generator_bytes=self._generator.nbytes if cut.random else 0,
            weight_bytes=sum(x.nbytes for x in client),
            parameter_bytes=sum(x.nbytes for x in trained),
            optimizer_bytes=in_optimizer,
            activation_bytes=saved / self.size,
        )

    def whole_step(self) -> Cut:
        """The cut behind the last layer: everything is the client's."""
        with self._fresh(), _saved_bytes(self.sides) as saved:
            loss = self._step(self.batch)
        del loss
        private = tuple(i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor))
        cut = Cut(name=END, client=tuple(self.sides.names), private=private)
        whole = self._profile(cut, flops=(*self.flops, 0, 0), smashed=0, saved=saved[0])
        return replace(cut, profile=replace(whole, smashed_bytes=0.0, gradient_bytes=0.0))


@contextmanager
def _saved_bytes(sides: Sides) -> Iterator[list[int]]:
    """Bytes that autograd keeps for the backward pass, parameters and buffers not counted, each storage once."""
    own = {sides.real(name).untyped_storage().data_ptr() for name in sides.names}
    seen: dict[int, int] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(seen.values())


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
