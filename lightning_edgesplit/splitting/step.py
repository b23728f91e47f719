"""One ``training_step``, two sides: up to the cut on the client, from the cut on at the server.

Nothing is exported or rewritten. While a step runs, the ``forward`` of a few modules is replaced on the instance:

- on the client, that of the cut module and of those before it: they run, what crosses is kept, and the cut module's
  stops the step (`run_client_side`);
- on the server, the cut module's returns the received smashed data, and those before it return what was received of
  their outputs, and empty tensors on the meta device for the rest (`ServerSide`). The client says which shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import PLAIN, Withheld, step_arguments
from lightning_edgesplit.splitting.cuts import Border
from lightning_edgesplit.splitting.record import needs_data
from lightning_edgesplit.splitting.tree import Structure, flatten, tensors_of

DTYPES = {str(x).removeprefix("torch."): x for x in vars(torch).values() if isinstance(x, torch.dtype)}


class _CutReached(BaseException):
    """Ends one side's part of a step. No ``Exception``, so that a user's ``except Exception`` does not catch it."""


@contextmanager
def patched(modules: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replaces ``forward`` on these instances, and restores it."""
    saved = {module: module.__dict__.get("forward") for module in modules}
    for module in modules:
        module.__dict__["forward"] = modules[module]
    try:
        yield
    finally:
        for module, forward in saved.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


class _Along:
    """Follows a step along a path of module calls, and lets `visit` decide what each of them returns.

    Args:
        module: The LightningModule.
        path: Names of the modules that are called, outermost calls only, in their order.
        visit: Called with the number of the call and a function that runs it.

    Attributes:
        position: Calls so far.
        inside: Whether one of them is running.
    """

    def __init__(self, module: nn.Module, path: Sequence[str], visit: Callable[[int, Callable[[], Any]], Any]) -> None:
        self._modules = [module.get_submodule(name) for name in path]
        self._name, self._visit = path[-1], visit
        self.position, self.inside = 0, False

    @property
    def ended(self) -> bool:
        """Whether the last call has come."""
        return self.position == len(self._modules)

    def patched(self) -> AbstractContextManager[None]:
        """While this is open, the modules are replaced."""
        return patched({m: partial(self._call, m, m.forward) for m in dict.fromkeys(self._modules)})

    def _call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.inside or self.ended:
            return forward(*args, **kwargs)
        if self._modules[self.position] is not module:
            raise ImpossibleCutError(
                f"the modules before the cut {self._name!r} are called in another order than on the sample batch: the"
                " step's path depends on the data. Choose a cut before that."
            )
        number, self.position, self.inside = self.position, self.position + 1, True
        try:
            return self._visit(number, partial(forward, *args, **kwargs))
        finally:
            self.inside = False


class _Notes(TorchFunctionMode):
    """Notes what functions gave that need data, outside the modules before the cut; or answers with what was noted.

    ``.item()`` cannot run on a tensor without data, nor can ``nonzero``. The server is told numbers and shapes.
    """

    def __init__(self, along: _Along, answers: Sequence[Any] | None = None) -> None:
        super().__init__()
        self._along = along
        self.noted: list[Any] = []
        self._answers = None if answers is None else iter(answers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation, or answers for it."""
        kwargs = kwargs or {}
        if self._along.inside or self._along.ended or not needs_data(func, args):
            return func(*args, **kwargs)
        if self._answers is None:
            output = func(*args, **kwargs)
            several = isinstance(output, tuple)
            self.noted.append([several, [_described(x) for x in (output if several else [output])]])
            return output
        several, described = next(self._answers)
        if not any(x.is_meta for x in tensors_of([args, kwargs])):
            return func(*args, **kwargs)
        answers = [_imagined(x, func.__name__) for x in described]
        if func.__name__ == "_pack_padded_sequence":
            answers[1] = torch.zeros_like(answers[1], device="cpu")  # PackedSequence insists
        return tuple(answers) if several else answers[0]


@dataclass
class ClientPart:
    """What the client's side of a step leaves.

    Attributes:
        tensors: What crosses, as `Border.tensors` says, attached to the graph.
        outputs: For every call before the cut, what each leaf of its output is: ``[dtype, *shape]`` of a tensor,
            ``{"is": value}`` for a plain value, None for what the server cannot have.
        structures: For every call before the cut, how its output is built.
        notes: What functions gave that need data, where `Border.reads` says that the server has to know.
    """

    tensors: list[Tensor]
    outputs: list[list[Any]]
    structures: list[Structure]
    notes: list[Any]

    def backward(self, border: Border, gradients: Sequence[Tensor]) -> None:
        """Goes on with the backward pass, from the gradients of the tensors that have one."""
        torch.autograd.backward(  # type: ignore[no-untyped-call]
            [x for x, (_, _, wanted) in zip(self.tensors, border.tensors, strict=True) if wanted], list(gradients)
        )


def run_client_side(module: nn.Module, border: Border, batch: Any, batch_idx: int) -> ClientPart:
    """Runs ``training_step`` up to the cut.

    Args:
        module: The LightningModule, with real client-side parameters.
        border: Where the step changes sides.
        batch: The user's batch.
        batch_idx: Its number in the epoch on this client.

    Raises:
        ImpossibleCutError: If the step ends without reaching the cut, or goes another way than the sample batch did.
    """
    kept: dict[tuple[int, int], Tensor] = {}
    outputs: list[list[Any]] = []
    structures: list[Structure] = []
    wanted = {(call, leaf) for call, leaf, _ in border.tensors}

    def visit(number: int, run: Callable[[], Any]) -> Any:
        output = run()
        leaves, structure = flatten(output)
        outputs.append([_described(leaf) for leaf in leaves])
        structures.append(structure)
        kept.update({(number, i): leaf for i, leaf in enumerate(leaves) if (number, i) in wanted})
        if along.ended:
            raise _CutReached
        return output

    along = _Along(module, border.path, visit)
    notes = _Notes(along)
    try:
        with along.patched(), notes if border.reads else nullcontext():
            module.training_step(*step_arguments(module, batch, batch_idx))  # type: ignore[operator]
    except _CutReached:
        if kept.keys() == wanted:
            tensors = [kept[call, leaf] for call, leaf, _ in border.tensors]
            return ClientPart(tensors, outputs, structures, notes.noted)
    raise ImpossibleCutError(
        f"training_step did not come to the cut {border.path[-1]!r} as on the sample batch: its path depends on the"
        " data. Choose another cut."
    )


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return [str(leaf.dtype).removeprefix("torch."), *leaf.shape]
    return {"is": leaf} if isinstance(leaf, PLAIN) else None


def _imagined(described: Any, path: str) -> Any:
    if isinstance(described, list):
        return torch.empty(described[1:], dtype=DTYPES[described[0]], device="meta")
    return described["is"] if isinstance(described, dict) else Withheld(f"output of {path}")


class _Receive(torch.autograd.Function):
    """The received tensors as a part of the graph; hands out their gradients the moment that all exist.

    The tensors themselves are returned, marked dirty: views would make in-place operations behind the cut fail.
    """

    @staticmethod
    def forward(ctx: Any, send: Callable[[list[Tensor]], None], anchor: Tensor, *smashed: Tensor) -> Any:
        ctx.send, ctx.shapes = send, [(x.shape, x.dtype, x.device) for x in smashed]
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*smashed)
        return smashed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.send(
            [
                torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
                for gradient, (shape, dtype, device) in zip(gradients, ctx.shapes, strict=True)
            ]
        )
        return (None,) * (2 + len(gradients))


class ServerSide:
    """Runs ``training_step`` from a cut on.

    Args:
        module: The LightningModule, with shells (see `Sides`) for the client-side parameters.
        border: Where the step changes sides; with `Border.structures`.
    """

    def __init__(self, module: nn.Module, border: Border) -> None:
        self.border, self._module = border, module
        self.cut_was_reached = False

    @contextmanager
    def receiving(
        self,
        tensors: Sequence[Tensor],
        outputs: Sequence[Sequence[Any]],
        notes: Sequence[Any],
        send: Callable[[list[Tensor]], None],
        at_cut: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """While this is open, one call of ``training_step`` begins at the cut.

        Args:
            tensors: The received tensors, as `Border.tensors` says; they become part of the graph and may be modified.
            outputs: `ClientPart.outputs`.
            notes: `ClientPart.notes`.
            send: Called in the backward pass with the gradients of the tensors that have one.
            at_cut: Called when the cut is reached, before anything behind it runs.

        Raises:
            ImpossibleCutError: If the modules before the cut are called in another order than the sample batch showed.
        """
        self.cut_was_reached = False
        trained = [x for x, (_, _, wanted) in zip(tensors, self.border.tensors, strict=True) if wanted]
        anchor = torch.empty(0, device=trained[0].device, requires_grad=True)
        with torch.enable_grad():
            live = iter(_Receive.apply(send, anchor, *trained))
        received = {
            (call, leaf): next(live) if wanted else tensor
            for tensor, (call, leaf, wanted) in zip(tensors, self.border.tensors, strict=True)
        }
        every = list(received.values())
        received.update({(call, leaf): every[number] for call, leaf, number in self.border.also})

        def visit(number: int, run: Callable[[], Any]) -> Any:
            if along.ended:
                self.cut_was_reached = True
                at_cut()
            return self.border.structures[number].build(
                received[number, i] if (number, i) in received else _imagined(described, self.border.path[number])
                for i, described in enumerate(outputs[number])
            )

        along = _Along(self._module, self.border.path, visit)
        with along.patched(), _Notes(along, notes) if self.border.reads else nullcontext():
            yield
        if not self.cut_was_reached:
            raise ImpossibleCutError(
                f"training_step ended on the server without reaching the cut {self.border.path[-1]!r}."
            )
