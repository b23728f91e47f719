"""One ``training_step``, two sides: up to the cut on the client, from the cut on at the server.

Nothing is exported or rewritten. While a step runs, the ``forward`` of a few modules is replaced on the instance:

- on the client, that of the cut module and of those before it: they run, what crosses is kept, and the cut module's
  stops the step (`run_client_side`);
- on the server, the cut module's returns the received smashed data, and those before it return what was received of
  their outputs, and empty tensors on the meta device for the rest (`ServerSide`). The client says which shapes.

With a second cut (U-shaped: the client runs the last layers and the loss too) each side goes on where it stopped above:
the server's step ends at the second cut, and the client's waits at the first one for what comes back. Modules between
the two cuts then return what was received of their outputs, as on the server before the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.along import Along, Between, described, imagined, patched
from lightning_edgesplit.splitting.batch import step_arguments
from lightning_edgesplit.splitting.cuts import Border, Cut
from lightning_edgesplit.splitting.tree import Structure, flatten


class _CutReached(BaseException):
    """Ends one side's part of a step. No ``Exception``, so that a user's ``except Exception`` does not catch it."""


@dataclass
class Passed:
    """What one side passes to the other where a step changes sides.

    Attributes:
        tensors: As `Border.tensors` says; where they were made, attached to the graph.
        outputs: For every call in `Border.path`, what each leaf of its output is: ``[dtype, *shape]`` of a tensor,
            ``{"is": value}`` for a plain value, None for what the other side cannot have.
        structures: For every call, how its output is built.
        notes: What functions gave that need data, where `Border.reads` says that the other side has to know.
    """

    tensors: Sequence[Tensor]
    outputs: Sequence[Sequence[Any]]
    structures: Sequence[Structure]
    notes: Sequence[Any] = ()


@dataclass
class ClientPart(Passed):
    """What the client's side of a step leaves.

    Attributes:
        output: What ``training_step`` returned, where the client runs the last layers too.
        gradients: Filled by the backward pass: the gradients of what came back.
    """

    output: Any = None
    gradients: list[Tensor] = field(default_factory=list)

    def backward_to_second_cut(self, loss: Tensor, direct: bool) -> list[Tensor]:
        """The backward pass from the loss; the gradients of what came back.

        Args:
            loss: The loss, as it is to be differentiated.
            direct: `Cut.direct`: the rest of the backward pass crosses parts of this one's graph.

        Raises:
            ImpossibleCutError: If the loss does not depend on it.
        """
        loss.backward(retain_graph=direct)  # type: ignore[no-untyped-call]
        if not self.gradients:
            raise ImpossibleCutError("the loss does not depend on what comes back at the second cut")
        return self.gradients

    def backward(self, border: Border, gradients: Sequence[Tensor]) -> None:
        """Goes on with the backward pass, from the gradients of the tensors that have one."""
        torch.autograd.backward(  # type: ignore[no-untyped-call]
            [x for x, (_, _, wanted) in zip(self.tensors, border.tensors, strict=True) if wanted], list(gradients)
        )


def run_client_side(
    module: nn.Module,
    border: Border,
    batch: Any,
    batch_idx: int,
    back: Border | None = None,
    exchange: Callable[[ClientPart], Passed] | None = None,
    at_back: Callable[[], None] = lambda: None,
) -> ClientPart:
    """Runs ``training_step`` up to the cut; with a second cut, through it to the end.

    Args:
        module: The LightningModule, with real client-side parameters.
        border: Where the step changes sides.
        batch: The user's batch.
        batch_idx: Its number in the epoch on this client.
        back: Where it comes back; None: it does not.
        exchange: Called at the first cut, if there is a second: sends the part so far, waits for what comes back.
        at_back: Called when the step is back, before anything behind the second cut runs.

    Raises:
        ImpossibleCutError: If the step ends without reaching the cut, or goes another way than the sample batch did.
    """
    kept: dict[tuple[int, int], Tensor] = {}
    outputs: list[list[Any]] = []
    structures: list[Structure] = []
    wanted = {(call, leaf) for call, leaf, _ in border.tensors}
    first, whole = len(border.path), len(border.path) + (len(back.path) if back is not None else 0)
    part: ClientPart | None = None
    stubs: _Stubs | None = None

    def visit(number: int, run: Callable[[], Any]) -> Any:
        nonlocal part, stubs
        if number >= first:
            assert stubs is not None
            if number == whole - 1:
                at_back()
            return stubs.output(number - first)
        output = run()
        leaves, structure = flatten(output)
        outputs.append([described(leaf) for leaf in leaves])
        structures.append(structure)
        kept.update({(number, i): leaf for i, leaf in enumerate(leaves) if (number, i) in wanted})
        if number == first - 1:
            if kept.keys() != wanted:
                raise _went_elsewhere(border)
            tensors = [kept[call, leaf] for call, leaf, _ in border.tensors]
            part = ClientPart(tensors, outputs, structures, between.noted)
            if back is None:
                raise _CutReached
            assert exchange is not None
            returned = exchange(part)
            between.received = iter(returned.notes)
            stubs = _Stubs(back, returned, _received(back, returned.tensors, part.gradients.extend))
        return output

    along = Along(module, [*border.path, *(back.path if back is not None else ())], visit)
    between = Between(
        along,
        records=range(first) if border.reads else None,
        answers=range(first, whole) if back is not None else None,
        shells=True,
    )
    try:
        with along.patched(), between if border.reads or back is not None else nullcontext():
            output = module.training_step(*step_arguments(module, batch, batch_idx))  # type: ignore[operator]
    except _CutReached:
        assert part is not None
        return part
    if part is None or not along.ended:
        raise _went_elsewhere(back if part is not None and back is not None else border)
    part.output = output
    return part


def _path(cut: Cut) -> tuple[str, ...]:
    assert cut.border is not None
    return cut.border.path


def _went_elsewhere(border: Border) -> ImpossibleCutError:
    return ImpossibleCutError(
        f"training_step did not come to the cut {border.path[-1]!r} as on the sample batch: its path depends on the"
        " data. Choose another cut."
    )


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


def _received(border: Border, tensors: Sequence[Tensor], send: Callable[[list[Tensor]], None]) -> list[Tensor]:
    """The received tensors as a part of the graph, whose gradients, where they have one, are handed to `send`."""
    trained = [x for x, (_, _, wanted) in zip(tensors, border.tensors, strict=True) if wanted]
    anchor = torch.empty(0, device=trained[0].device, requires_grad=True)
    with torch.enable_grad():
        live = iter(_Receive.apply(send, anchor, *trained))
    return [next(live) if wanted else x for x, (_, _, wanted) in zip(tensors, border.tensors, strict=True)]


class _Enter(torch.autograd.Function):
    """Rows that come in behind those that are in: one tensor of all, and the gradient of the new ones handed out."""

    @staticmethod
    def forward(ctx: Any, send: Callable[[Tensor], None], running: Tensor, *parts: Tensor) -> Tensor:
        ctx.send, ctx.rows, ctx.parts = send, len(running), len(parts)
        return torch.cat([running, *parts])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        ctx.send(gradient[ctx.rows :])
        return (None, gradient[: ctx.rows], *[None] * ctx.parts)


@dataclass
class Newcomers:
    """Samples that come into a step at a cut deeper than that at which it begins; see `splitting.mixing`.

    Attributes:
        cut: Their cut, at which one activation is all that crosses.
        call: Which call of the cut's module it is, of those that end behind the cut at which the step begins; from 1.
        parts: The smashed data of each client, [b_k, …].
        send: Called in the backward pass with their gradient, [Σ_k b_k, …].
    """

    cut: Cut
    call: int
    parts: Sequence[Tensor]
    send: Callable[[Tensor], None]
    _ended: int = field(default=0, init=False)

    @property
    def entered(self) -> bool:
        """Whether they are in."""
        return self._ended >= self.call

    def after(self, output: Any, rows: int) -> Any:
        """What a call of the cut's module returned; with the newcomers behind the rows that are in, if it is the one.

        Raises:
            ImpossibleCutError: If the activation does not have one row for each of the samples that are in, or is of
                another shape or type than the newcomers'.
        """
        self._ended += 1
        if self._ended != self.call:
            return output
        border = self.cut.border
        assert border is not None
        leaves, structure = flatten(output)
        at, running = border.tensors[0][1], leaves[border.tensors[0][1]]
        fits = isinstance(running, Tensor) and bool(running.ndim) and len(running) == rows
        for part in self.parts:
            fits = fits and part.shape[1:] == running.shape[1:] and part.dtype == running.dtype
        if not fits:
            raise ImpossibleCutError(
                f"at the cut {self.cut.name!r} {' and '.join(str([*part.shape]) for part in self.parts)} should come in"
                f" behind {rows} samples, whose activation is {described(running)}: give `cuts` one name for all"
            )
        leaves[at] = _Enter.apply(self.send, running, *self.parts)
        return structure.build(leaves)


class _Stubs:
    """Outputs of modules that the other side ran: what was received of them, and shells for the rest."""

    def __init__(self, border: Border, about: Passed, tensors: Sequence[Tensor]) -> None:
        self._border, self._structures, self._outputs = border, about.structures, about.outputs
        self._received = {(call, leaf): x for x, (call, leaf, _) in zip(tensors, border.tensors, strict=True)}
        self._received.update({(call, leaf): tensors[number] for call, leaf, number in border.also})

    def output(self, call: int) -> Any:
        """What the call with that number in the path returned."""
        return self._structures[call].build(
            self._received[call, i] if (call, i) in self._received else imagined(leaf, self._border.path[call])
            for i, leaf in enumerate(self._outputs[call])
        )


class ServerSide:
    """Runs ``training_step`` from a cut on; to its end, or to a second cut.

    Args:
        module: The LightningModule, with shells (see `Sides`) for the client-side parameters.
        cut: Where the step changes sides; its `Cut.border` with `Border.structures`.
    """

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        assert cut.border is not None
        self.border, self.back, self._module = cut.border, cut.back, module
        self.cut_was_reached = False

    @contextmanager
    def receiving(
        self,
        tensors: Sequence[Tensor],
        outputs: Sequence[Sequence[Any]],
        notes: Sequence[Any],
        send: Callable[[list[Tensor]], None],
        at_cut: Callable[[], None] = lambda: None,
        entering: Sequence[Newcomers] = (),
    ) -> Iterator[Passed]:
        """While this is open, one call of ``training_step`` begins at the cut, and ends at the second one if there is.

        Args:
            tensors: The received tensors, as `Border.tensors` says; they become part of the graph and may be modified.
            outputs: `ClientPart.outputs`.
            notes: `ClientPart.notes`.
            send: Called in the backward pass with the gradients of the tensors that have one.
            at_cut: Called when the cut is reached, before anything behind it runs.
            entering: Samples that come in behind it, at deeper cuts, shallow to deep.

        Yields:
            What goes back to the client at the second cut, attached to the graph; empty until the step is there.

        Raises:
            ImpossibleCutError: If the modules before the cut are called in another order than the sample batch showed,
                or the step does not come to a cut.
        """
        self.cut_was_reached = False
        about = Passed(tensors, outputs, self.border.structures)
        stubs = _Stubs(self.border, about, _received(self.border, tensors, send))
        first, back = len(self.border.path), self.back
        kept: dict[tuple[int, int], Tensor] = {}
        coming_back: list[list[Any]] = []
        structures: list[Structure] = []

        def visit(number: int, run: Callable[[], Any]) -> Any:
            if number < first:
                if number == first - 1:
                    self.cut_was_reached = True
                    at_cut()
                return stubs.output(number)
            output = run()
            leaves, structure = flatten(output)
            coming_back.append([described(leaf) for leaf in leaves])
            structures.append(structure)
            kept.update({(number - first, i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)})
            if along.ended:
                raise _CutReached
            return output

        path = [*self.border.path, *(back.path if back is not None else ())]
        along = Along(self._module, path, visit)
        between = Between(
            along,
            records=range(first, len(path)) if back is not None and back.reads else None,
            answers=range(first) if self.border.reads else None,
            received=notes,
        )
        returned = Passed([], coming_back, structures, between.noted)
        reads = self.border.reads or (back is not None and back.reads)
        come_in = self._coming_in(along, entering, tensors) if entering else nullcontext()
        try:
            with along.patched(), come_in, between if reads else nullcontext():
                yield returned
        except _CutReached:
            assert back is not None
            if not {(call, leaf) for call, leaf, _ in back.tensors} <= kept.keys():
                raise _went_elsewhere(back) from None
            returned.tensors = [kept[call, leaf] for call, leaf, _ in back.tensors]
            return
        if not along.ended:
            missed = self.border if along.position < first or back is None else back
            raise ImpossibleCutError(f"training_step ended on the server without reaching the cut {missed.path[-1]!r}.")
        for newcomers in entering:
            if not newcomers.entered:
                raise _went_elsewhere(newcomers.cut.border or self.border)

    @contextmanager
    def _coming_in(self, along: Along, entering: Sequence[Newcomers], tensors: Sequence[Tensor]) -> Iterator[None]:
        """While this is open, samples come in at the cuts behind the one where the step begins."""
        at_first = next(x for x, (_, _, wanted) in zip(tensors, self.border.tensors, strict=True) if wanted)
        rows = len(at_first)
        first, waiting = self._module.get_submodule(self.border.path[-1]), list(entering)

        def call(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal rows
            before = along.ended
            output = forward(*args, **kwargs)
            # calls before the cut are stubs; so is the cut's own, where this is the same module
            if not along.ended or (module is first and not before):
                return output
            for newcomers in [n for n in waiting if modules[n.cut.name] is module]:
                output = newcomers.after(output, rows)
                if newcomers.entered:
                    waiting.remove(newcomers)
                    rows += sum(len(part) for part in newcomers.parts)
            return output

        modules = {n.cut.name: self._module.get_submodule(_path(n.cut)[-1]) for n in entering}
        with patched({m: partial(call, m, m.forward) for m in dict.fromkeys(modules.values())}):
            yield


class _HandedBack(torch.autograd.Function):
    """The loss that the client computed, as the end of the server's graph: hands in the gradients at the second cut.

    They are those of what the client differentiated (its loss over the accumulated batches), so the gradient of this
    output is not multiplied in again.
    """

    @staticmethod
    def forward(ctx: Any, loss: float, gradients: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.tensor(loss, dtype=torch.promote_types(outputs[0].dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.gradients)


def handed_back(loss: float, gradients: Sequence[Tensor], border: Border, tensors: Sequence[Tensor]) -> Tensor:
    """The client's loss as a tensor whose backward pass goes on from the gradients at the second cut.

    Args:
        loss: Its value.
        gradients: Of the tensors that have one.
        border: `Cut.back`.
        tensors: `Passed.tensors`.
    """
    trained = [x for x, (_, _, wanted) in zip(tensors, border.tensors, strict=True) if wanted]
    output: Tensor = _HandedBack.apply(loss, gradients, *trained)
    return output
