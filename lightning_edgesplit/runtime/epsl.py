"""EPSL's aggregation of last-layer gradients (Lin et al. 2024, IEEE TMC 23(10), arXiv:2303.15991), reconstructed.

From the paper: clients in parallel with one server-side model; the gradients of the activations at the last layer are
aggregated over the clients, for a fraction φ of each batch, so that the backward pass behind the cut is over fewer
samples, and one gradient goes to all clients; φ = 0 is PSL. Recalled, not checked: m = ⌈φ b⌉ of b samples per client,
the backward pass over m + C (b − m), the weights λ_k of the clients' losses. Ours: which activations the aggregated
gradients are propagated through, and what unequal batches mean.

In a local step of the clients k = 1…C with b_k samples, n = Σ b_k, λ_k = b_k / n, m = ⌈φ min_k b_k⌉, smashed data a_kj
and server-side layers f up to and with the last layer:

    z_kj = f(a_kj),  g_kj = ∂L/∂z_kj                       L: the loss of the joint batch, as in PSL
    ḡ_j  = Σ_k g_kj = Σ_k λ_k ∂L_k/∂z_kj                   j ≤ m; L = Σ_k λ_k L_k for a mean over samples
    ā_j  = Σ_k λ_k a_kj                                    j ≤ m
    z̃    = f([ā_1…ā_m, a_1,m+1…a_1,b_1, …, a_C,m+1…a_C,b_C])     m + Σ_k (b_k − m) samples
    backward from z̃ with [ḡ_1…ḡ_m, g_kj for j > m]:        gradients of the parameters, s̄_j and s_kj at the cut
    to client k: λ_k s̄_j for j ≤ m, s_kj for j > m         s̄ is what the paper broadcasts; λ_k = ∂ā_j/∂a_kj

A backward pass needs activations, and m of them stand for C m samples; averaging the smashed data and running it
forward gives consistent ones for any layers. It costs a second forward pass, of which the paper says nothing that we
know. Batch statistics of the backward pass are those of its own samples; running statistics are those of the first
pass, over all samples. A local step in which one client is left is PSL's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.runtime.joint import Joint
from lightning_edgesplit.runtime.wire import Frame
from lightning_edgesplit.splitting import Cut
from lightning_edgesplit.splitting.along import patched
from lightning_edgesplit.splitting.batch import loss_of, step_arguments
from lightning_edgesplit.splitting.cuts import Border
from lightning_edgesplit.splitting.proof import copy_of, generators_kept
from lightning_edgesplit.splitting.step import handed_back
from lightning_edgesplit.splitting.tree import flatten

_WAY_OUT = "use aggregated=0 (PSL)"


class _Reached(BaseException):
    """Ends a step behind its last layer. No ``Exception``, so that a user's ``except Exception`` does not catch it."""


@dataclass(frozen=True)
class LastLayer:
    """The last call of a module with parameters of its own in ``training_step``: its name, and which call of it."""

    name: str
    call: int

    @contextmanager
    def visited(self, module: nn.Module, visit: Callable[[Any], Any]) -> Iterator[None]:
        """While this is open, that call returns what `visit` makes of its output."""
        layer, calls = module.get_submodule(self.name), 0
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            output = own(*args, **kwargs)
            return visit(output) if calls == self.call else output

        with patched({layer: forward}):
            yield

    def check(self, module: nn.Module, cuts: Sequence[Cut]) -> None:
        """Refuses cuts at which gradients cannot be aggregated.

        Args:
            module: The LightningModule.
            cuts: Every client's.

        Raises:
            ImpossibleCutError: Naming the cut, the reason and the way out.
        """
        names, cut = list(dict.fromkeys(cut.name for cut in cuts)), cuts[0]
        if len(names) > 1:
            raise ImpossibleCutError(
                f"aggregated > 0 takes the mean of smashed data over the clients, and these have the cuts"
                f' {", ".join(names)}: give `cuts` one name for all, use policy="uniform", or {_WAY_OUT}.'
            )
        own = {f"{self.name}.{name}" for name, _ in module.get_submodule(self.name).named_parameters()}
        assert cut.border is not None
        reasons = {
            f"the last layer {self.name!r} is not behind it": bool(own & set(cut.client)),
            "what crosses there is more than activations that have gradients": not all(
                x[2] for x in cut.border.tensors
            ),
            "the layers behind it draw random numbers (dropout)": cut.random,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ImpossibleCutError(
                    f"aggregated > 0 does not work with the cut {cut.name!r}: {reason}. Name another cut, or"
                    f" {_WAY_OUT}."
                )


def find_last_layer(
    module: nn.Module, batch: Any, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> LastLayer:
    """The last layer, found in two steps of a copy of the module.

    Args:
        module: The LightningModule, whole.
        batch: A batch as its ``training_step`` takes it.
        context: Opened around the forward pass (mixed precision).

    Raises:
        ImpossibleCutError: If the loss depends on more than its output, so that its gradient is not all there is.
    """
    probe, _ = copy_of(module)
    called: list[str] = []
    hooks = [
        child.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, child in probe.named_modules()
        if name and any(True for _ in child.parameters(recurse=False))
    ]
    arguments = step_arguments(probe, batch, 0)
    with generators_kept(), context(), torch.enable_grad():
        probe.training_step(*arguments)  # type: ignore[operator]
        for hook in hooks:
            hook.remove()
        if not called:
            raise ImpossibleCutError(f"aggregated > 0 needs a layer that is called as a module; here {_WAY_OUT}.")
        last, kept = LastLayer(called[-1], called.count(called[-1])), _Kept()
        with last.visited(probe, kept):
            loss = loss_of(probe.training_step(*arguments))  # type: ignore[operator]
    others = [leaf for leaf in _leaves(loss) if leaf is not kept.output]
    if others or not loss.requires_grad:
        raise ImpossibleCutError(
            f"aggregated > 0 takes the loss's gradient at the output of the last layer {last.name!r}, and the loss"
            f" depends on other trained tensors too ({len(others)} of them: a second head, a penalty on weights, a"
            f" parameter used without a module?): {_WAY_OUT}."
        )
    return last


class _Kept:
    """Keeps an output as a leaf from which the rest of the step goes on."""

    output: Tensor

    def __call__(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ImpossibleCutError(
                f"aggregated > 0 needs a last layer that returns a tensor, not a {type(output).__name__}: {_WAY_OUT}."
            )
        self.output = output.detach().requires_grad_()
        return self.output.clone()  # the rest may change it in place


def _leaves(loss: Tensor) -> list[Tensor]:
    """The trained tensors that a loss depends on."""
    todo, seen, leaves = [loss.grad_fn], set(), []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        todo += [before for before, _ in node.next_functions]
    return leaves


@dataclass
class Aggregation:
    """What a joint step becomes in its backward pass.

    Attributes:
        joint: The joint step.
        rows: m, the samples of each client that are aggregated.
    """

    joint: Joint
    rows: int

    @classmethod
    def of(cls, joint: Joint | None, fraction: float) -> Aggregation | None:
        """Aggregation of that fraction, φ; None: there is nothing to aggregate."""
        if joint is None or len(joint.clients) == 1:
            return None
        rows = math.ceil(round(fraction * min(joint.samples), 9))  # 0.1 · 30 is a little more than 3 to a computer
        return cls(joint, rows) if rows else None

    def averaged(self, tensor: Tensor) -> Tensor:
        """Smashed data [n, …] with the weighted means of the first rows, and all others: [m + Σ (b_k − m), …]."""
        n = sum(self.joint.samples)
        return self._reduced(tensor, [b / n for b in self.joint.samples])

    def summed(self, tensor: Tensor) -> Tensor:
        """The same for gradients, with sums."""
        return self._reduced(tensor, [1.0] * len(self.joint.samples))

    def _reduced(self, tensor: Tensor, weights: Sequence[float]) -> Tensor:
        parts = torch.split(tensor, self.joint.samples)
        terms = [weight * part[: self.rows] for weight, part in zip(weights, parts, strict=True)]
        first = sum(terms[1:], start=terms[0])
        return torch.cat([first, *(part[self.rows :] for part in parts)])

    def handed_out(self, gradient: Tensor) -> Tensor:
        """Gradients at the cut as the clients get them, [n, …], of those that the backward pass gave."""
        samples, n = self.joint.samples, sum(self.joint.samples)
        first, *own = torch.split(gradient, [self.rows, *(b - self.rows for b in samples)])
        return torch.cat([x for b, rest in zip(samples, own, strict=True) for x in (b / n * first, rest)])

    def frame(self, crossing: int) -> Frame:
        """The joint frame of the backward pass; `crossing` tensors of it are smashed data."""
        frame = self.joint.frame
        about = {
            **frame.about,
            "outputs": [
                [[x[0], *self._shape(x[1:])] if isinstance(x, list) else x for x in leaves]
                for leaves in frame.about["outputs"]
            ],
        }
        return Frame(frame.kind, [self.averaged(x) for x in frame.tensors[:crossing]], about)

    def batch(self, batch: Any) -> Any:
        """A batch of that many samples, of shells: a mean of samples has no label."""
        leaves, structure = flatten(batch)
        return structure.build(
            torch.empty(self._shape(x.shape), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x
            for x in leaves
        )

    def _shape(self, shape: Sequence[int]) -> list[int]:
        samples, n = self.joint.samples, sum(self.joint.samples)
        rows = n - self.rows * (len(samples) - 1)
        return [rows, *shape[1:]] if shape and shape[0] == n else list(shape)


def aggregated_step(
    module: nn.Module,
    last: LastLayer,
    aggregation: Aggregation,
    crossing: int,
    step: Callable[[Frame | None], Any],
    keeping_buffers: AbstractContextManager[None],
) -> Any:
    """A joint step whose backward pass is that of the aggregated one.

    Args:
        module: The LightningModule, with the server-side model in place.
        last: Its last layer.
        aggregation: What is aggregated.
        crossing: How many tensors of the frame are smashed data.
        step: Runs ``training_step`` behind the cut: of the joint frame (None), or of the one that it is given.
        keeping_buffers: While this is open, buffers may change, and are afterwards what they were.

    Returns:
        What ``training_step`` returned, with a loss that is differentiated in this way.

    Raises:
        ImpossibleCutError: If the last layer does not come, or does not give one row per sample.
    """
    reduced = aggregation.frame(crossing)  # before the first pass changes anything in place
    kept = _Kept()
    with last.visited(module, kept):
        output = step(None)
    loss = loss_of(output)
    (gradient,) = torch.autograd.grad(loss, kept.output)
    if not gradient.ndim or len(gradient) != sum(aggregation.joint.samples):
        raise ImpossibleCutError(
            f"aggregated > 0 needs one row per sample of the last layer {last.name!r}, whose output is"
            f" {list(gradient.shape)} for {sum(aggregation.joint.samples)} samples: {_WAY_OUT}."
        )
    reached: list[Tensor] = []

    def stop(output: Tensor) -> None:
        reached.append(output)
        raise _Reached

    with keeping_buffers, last.visited(module, stop):
        try:
            step(reduced)
        except _Reached:
            pass  # the loss of the reduced batch means nothing
        except Exception as error:
            raise ImpossibleCutError(
                f"aggregated > 0 runs the layers up to {last.name!r} on means of samples, without a batch, and they"
                f" failed: {error}. If they read labels or masks, {_WAY_OUT}."
            ) from error
    border = Border(path=(last.name,), tensors=((0, 0, True),))
    end = handed_back(float(loss.detach()), [aggregation.summed(gradient)], border, reached)
    return {**output, "loss": end} if isinstance(output, dict) else end
