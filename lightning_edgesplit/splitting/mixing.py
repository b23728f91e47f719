"""Cuts of several depths in one step: it begins at the shallowest, and at each deeper one more rows come in.

The server-side model of all clients makes one pass. Up to the second shallowest cut the running activation has the rows
of the clients with the shallowest one; there the smashed data of others are concatenated behind them, and so on. In the
backward pass the gradient of those that came in last exists first, and is handed out at once.

So that a layer between two cuts sees nothing but the rows that are in, one activation must be all that crosses at every
cut but the shallowest, and nothing of the batch may be used between them: its rows are those of all clients. That this
holds is proven once, on a sample batch (`mix`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.along import patched
from lightning_edgesplit.splitting.batch import batch_size, loss_of, server_leaves, step_arguments
from lightning_edgesplit.splitting.cuts import Cut
from lightning_edgesplit.splitting.proof import TOLERANCE, copy_of, generators_kept
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import ClientPart, Newcomers, ServerSide, run_client_side
from lightning_edgesplit.splitting.tree import flatten

_WAY_OUT = (
    'give `cuts` one name for all clients, use policy="uniform", or server_model="per_client", where cuts may differ'
)

_ROWS = 2
"""Samples per cut in the proof: more than one, which a mask of all rows could be broadcast over unnoticed."""


@dataclass(frozen=True)
class Mixture:
    """Cuts at which one step can begin together, proven.

    Attributes:
        cuts: Shallow to deep.
        calls: Names of the cuts' modules, in the order in which their calls ended in a step.
    """

    cuts: tuple[Cut, ...]
    calls: tuple[str, ...] = field(repr=False)

    def depth(self, cut: Cut) -> int:
        """How many of the cuts are shallower."""
        return [own.name for own in self.cuts].index(cut.name)

    def call(self, first: Cut, cut: Cut) -> int:
        """Which call of the module of `cut` is the cut's own, of those that end behind `first`; from 1."""
        begin, end = self._place(first), self._place(cut)
        return self.calls[begin + 1 : end + 1].count(self.calls[end])

    def _place(self, cut: Cut) -> int:
        assert cut.border is not None
        own = [place for place, name in enumerate(self.calls) if name == cut.border.path[-1]]
        return own[cut.border.numbers[-1] - 1]


def mix(
    module: nn.Module,
    batch: Any,
    cuts: Sequence[Cut],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Mixture:
    """Proves that one step can begin at all of these cuts.

    On a copy of the module whose batch norm does not look at the batch and whose dropout is off, a step of which some
    samples come in at each cut has the loss of the uncut step, and its gradients, if those of client sides and server
    side are added up.

    Args:
        module: The LightningModule.
        batch: A sample batch.
        cuts: Proven cuts, shallow to deep, no two of one name.
        context: Opened around every forward pass.

    Raises:
        ImpossibleCutError: Naming the cuts, why they cannot be mixed and the way out.
    """
    names = ", ".join(cut.name for cut in cuts)
    _check(cuts, names)
    try:
        with generators_kept(), torch.enable_grad():
            return _Proof(module, batch, cuts, context).run()
    except Exception as error:
        raise ImpossibleCutError(
            f'server_model="shared" cannot make one step of clients with the cuts {names}: {error}. A layer between two'
            " of them may use nothing but the activation: no labels or masks, whose rows are those of all clients, no"
            f" random numbers but dropout's; {_WAY_OUT}."
        ) from error


def _check(cuts: Sequence[Cut], names: str) -> None:
    """Refuses what can be seen without a step."""
    for cut in cuts:
        assert cut.border is not None
        only = len(cut.border.tensors) == 1 and cut.border.tensors[0][0] == len(cut.border.path) - 1
        reasons = {
            f"more than one activation crosses at {cut.name!r} (a residual path, a mask), which only the shallowest"
            " cut may have": cut is not cuts[0] and not only,
            f"behind {cut.name!r} other parts of the batch are needed than behind {cuts[0].name!r}": cut.sent
            != cuts[0].sent,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ImpossibleCutError(
                    f'server_model="shared" cannot make one step of clients with the cuts {names}: {reason};'
                    f" {_WAY_OUT}."
                )


class _Proof:
    """One step on a copy of the module, uncut and with samples that come in at each cut."""

    def __init__(
        self, module: nn.Module, batch: Any, cuts: Sequence[Cut], context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.module, _ = copy_of(module)
        for child in self.module.modules():
            if isinstance(child, (_BatchNorm, _DropoutNd)):
                child.eval()
        self.sides, self.cuts, self._context = Sides(self.module), tuple(cuts), context
        self.size = _ROWS * len(cuts)
        leaves, self.structure = flatten(batch)
        had = batch_size(batch)
        rows = torch.arange(self.size) % had  # a small sample batch is repeated
        self.leaves = [x[rows] if isinstance(x, Tensor) and x.ndim and len(x) == had else x for x in leaves]
        self.batch = self.structure.build(self.leaves)
        self._buffers = {name: buffer.clone() for name, buffer in self.sides.buffers.items()}
        self._generator = torch.get_rng_state()
        self._coarsest = 0.0

    def run(self) -> Mixture:
        mixture = Mixture(self.cuts, tuple(self._calls()))
        with self._fresh():
            loss = self._loss(self.batch)
            loss.backward()  # type: ignore[no-untyped-call]
        expected = self._gradients()
        self.sides.place()
        for parameter in self.sides.parameters.values():
            parameter.grad = None
        again = self._together(mixture)
        actual = self._gradients()
        if actual.keys() != expected.keys():
            raise ImpossibleCutError(
                f"{sorted(actual.keys() ^ expected.keys())[0]} has a gradient in one of them alone"
            )
        pairs = [(again.detach(), loss.detach()), *((actual[name], own) for name, own in expected.items())]
        error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs if b.numel())
        if not error <= max(TOLERANCE, 8 * torch.finfo(loss.dtype).eps, 8 * self._coarsest):
            raise ImpossibleCutError(f"its gradients differ from the uncut step's by {error:.1e} of the largest one")
        return mixture

    def _loss(self, batch: Any) -> Tensor:
        with self._context():
            return loss_of(self.module.training_step(*step_arguments(self.module, batch, 0)))  # type: ignore[operator]

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        """Buffers and generator as they were at first."""
        for name, buffer in self._buffers.items():
            self.sides.set(name, buffer.clone())
        torch.set_rng_state(self._generator)
        yield
        self.sides.collect()

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.sides.parameters.items() if p.grad is not None}

    def _calls(self) -> list[str]:
        """Names of the cuts' modules in the order in which their calls end."""
        ended: list[str] = []

        def call(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            ended.append(name)
            return output

        names = dict.fromkeys(cut.border.path[-1] for cut in self.cuts if cut.border is not None)
        modules = {name: self.module.get_submodule(name) for name in names}
        with self._fresh(), torch.no_grad(), patched({m: partial(call, n, m.forward) for n, m in modules.items()}):
            self._loss(self.batch)
        return ended

    def _together(self, mixture: Mixture) -> Tensor:
        """The step whose samples come in at different cuts, both sides' backward passes included; its loss."""
        parts: list[ClientPart] = []
        for cut in self.cuts:
            assert cut.border is not None
            with self._fresh(), self._context():
                parts.append(run_client_side(self.module, cut.border, self.batch, 0))
        self._coarsest = max(torch.finfo(x.dtype).eps for p in parts for x in p.tensors if x.is_floating_point())
        rows = [slice(_ROWS * number, _ROWS * (number + 1)) for number in range(len(self.cuts))]
        received = [[self._some(x, at) for x in part.tensors] for part, at in zip(parts, rows, strict=True)]
        gradients: list[list[Tensor]] = [[] for _ in self.cuts]
        entering = [
            Newcomers(cut, mixture.call(self.cuts[0], cut), smashed, own.append)
            for cut, smashed, own in list(zip(self.cuts, received, gradients, strict=True))[1:]
        ]
        outputs = [
            [[x[0], _ROWS, *x[2:]] if isinstance(x, list) and x[1:2] == [self.size] else x for x in leaves]
            for leaves in parts[0].outputs
        ]
        self.sides.place(self.cuts[0].away)
        batch = self.structure.build(server_leaves(self.leaves, self.structure.paths(), self.cuts[0].sent))
        server = ServerSide(self.module, self.cuts[0])
        with self._fresh(), server.receiving(received[0], outputs, (), gradients[0].extend, entering=entering):
            loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.sides.place()
        for cut, part, own, at in zip(self.cuts, parts, gradients, rows, strict=True):
            assert cut.border is not None
            trained = [x for x, (_, _, wanted) in zip(part.tensors, cut.border.tensors, strict=True) if wanted]
            if len(own) != len(trained):
                raise ImpossibleCutError(f"the loss does not depend on what comes in at {cut.name!r}")
            whole = [torch.zeros_like(x) for x in trained]
            for x, gradient in zip(whole, own, strict=True):
                x[at] = gradient
            part.backward(cut.border, whole)
        return loss

    def _some(self, tensor: Tensor, rows: slice) -> Tensor:
        batched = bool(tensor.ndim) and len(tensor) == self.size
        return tensor.detach()[rows].clone() if batched else tensor.detach().clone()
