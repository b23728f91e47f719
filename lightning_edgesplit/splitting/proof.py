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
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import PLAIN, batch_size, loss_of, server_leaves, step_arguments
from lightning_edgesplit.splitting.cuts import END, Cut, CutProfile
from lightning_edgesplit.splitting.record import Recorder
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import ServerSide, run_client_side
from lightning_edgesplit.splitting.tree import flatten

TOLERANCE = 1e-4
"""Largest difference between a split and an uncut gradient, relative to the gradient's maximum (fp32 rounding)."""


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
    """A copy of the module on which steps are run and compared.

    Args:
        module: The LightningModule.
        context: Opened around every forward pass.
        batch: What its step is run on.
        optimizer: Its optimizer, if its state is to be counted.
        private: Numbers of the batch leaves that must not leave the client; None: what is no tensor, and as found.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Any,
        optimizer: Optimizer | None,
        private: frozenset[int] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._context = context
        self.module, self.optimizer = copy_of(module, optimizer)
        self.module.train(module.training)
        self.sides = Sides(self.module)
        self.batch = batch
        self.size = batch_size(batch)
        self.leaves, self.structure = flatten(batch)
        open_to_all = [i for i, leaf in enumerate(self.leaves) if not isinstance(leaf, Tensor)]
        self._declared = () if private is None else tuple(
            i for i in open_to_all if i not in private and isinstance(self.leaves[i], PLAIN)
        )  # fmt: skip
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
        with self._context():
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
            with self._context(), recorder:
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
        assert cut.border is not None
        sides = self.sides
        with self._fresh(), self._context(), _Watch() as client_forward, _saved_bytes(sides) as saved:
            part = run_client_side(self.module, cut.border, self.batch, 0)
        generator = torch.get_rng_state()
        cut = replace(
            cut,
            border=replace(cut.border, structures=tuple(part.structures)),
            sent=tuple(sorted({*cut.sent, *self._declared})),
        )
        assert cut.border is not None

        # what a server has: shells instead of the client's weights and of the leaves that are not sent
        sides.place(cut.away)
        batch = self.structure.build(server_leaves(self.leaves, self.structure.paths(), cut.sent))
        torch.manual_seed(0)  # if the server's side draws, only the client's generator state gives the right numbers
        received: list[list[Tensor]] = []
        watch = _Watch()

        def at_cut() -> None:
            torch.set_rng_state(generator)
            watch.refuse_meta = True

        smashed = [tensor.detach().clone() for tensor in part.tensors]
        crossing = sum(tensor.nbytes for tensor in smashed)
        with self._fresh_server(cut):
            server = ServerSide(self.module, cut.border)
            with watch, server.receiving(smashed, part.outputs, part.notes, received.append, at_cut):
                loss = loss_of(self._step(batch))
        watch.refuse_meta = False
        with _Watch() as server_backward:
            loss.backward()  # type: ignore[no-untyped-call]
        sides.collect()
        sides.place()
        if not received:
            raise ImpossibleCutError("the loss does not depend on its output")
        with _Watch() as client_backward:
            part.backward(cut.border, received[0])
        error = self._difference(loss, sides.names)
        if not error <= max(TOLERANCE, 4 * torch.finfo(loss.dtype).eps, 4 * self._coarsest(part.tensors)):
            raise ImpossibleCutError(f"split and uncut step differ by {error:.1e} of the largest gradient")
        return replace(
            cut,
            error=error,
            profile=self._profile(
                cut,
                flops=(client_forward.flops, client_backward.flops, watch.flops, server_backward.flops),
                smashed=crossing,
                gradient=sum(gradient.nbytes for gradient in received[0]),
                saved=saved[0],
            ),
        )

    @staticmethod
    def _coarsest(tensors: Sequence[Tensor]) -> float:
        """The rounding of the coarsest type that crosses (bfloat16 under mixed precision)."""
        return max(torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point())

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

    def _profile(
        self, cut: Cut, flops: tuple[int, int, int, int], smashed: int, gradient: int, saved: int
    ) -> CutProfile:
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
            gradient_bytes=gradient / self.size,
            generator_bytes=self._generator.nbytes if cut.random else 0,
            tied_bytes=sum(self.sides.real(name).nbytes for name in cut.tied),
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
        private = tuple(range(len(self.leaves)))
        cut = Cut(name=END, client=tuple(self.sides.names), private=private)
        whole = self._profile(cut, flops=(*self.flops, 0, 0), smashed=0, gradient=0, saved=saved[0])
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
