"""One ``training_step``, two sides: up to the cut on the client, from the cut on at the server.

Nothing is exported or rewritten. While a step runs, the ``forward`` of a few modules is replaced on the instance:

- on the client, the cut module's: it runs, hands over its output and stops the step (`run_client_side`);
- on the server, the cut module's returns the received smashed data, and those before it return empty tensors on the
  meta device, remembered from one real run over meta tensors per batch shape (`ServerSide`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.splitting.batch import flatten, step_arguments


class _CutReached(BaseException):
    """Ends the client's part of a step. No ``Exception``, so that a user's ``except Exception`` does not catch it."""

    def __init__(self, smashed: Tensor) -> None:
        self.smashed = smashed


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


def run_client_side(module: nn.Module, path: Sequence[str], batch: Any, batch_idx: int) -> Tensor:
    """Runs ``training_step`` up to the cut.

    Args:
        module: The LightningModule, with real client-side parameters.
        path: `Cut.path`: the module calls before the cut, outermost ones only; the last is the cut's own.
        batch: The user's batch.
        batch_idx: Its number in the epoch on this client.

    Returns:
        The smashed data, attached to its graph: call ``backward`` on it with the gradient from the server.

    Raises:
        ImpossibleCutError: If the step ends without reaching the cut.
    """
    name, wanted = path[-1], path.count(path[-1])
    cut = module.get_submodule(name)
    forward, calls = cut.forward, 0

    def stop_behind(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        output = forward(*args, **kwargs)
        if calls == wanted:
            raise _CutReached(output)
        return output

    with patched({cut: stop_behind}):
        try:
            module.training_step(*step_arguments(module, batch, batch_idx))  # type: ignore[operator]
        except _CutReached as reached:
            return reached.smashed
    raise ImpossibleCutError(
        f"training_step ended without reaching the cut {name!r}: its path depends on the data. Choose another cut."
    )


class _Receive(torch.autograd.Function):
    """The received activation as a part of the graph; hands out its gradient the moment that it exists.

    The tensor itself is returned, marked dirty: a view would make in-place operations behind the cut fail.
    """

    @staticmethod
    def forward(ctx: Any, smashed: Tensor, anchor: Tensor, send: Callable[[Tensor], None]) -> Tensor:
        ctx.send = send
        ctx.mark_dirty(smashed)
        return smashed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        ctx.send(gradient)
        return None, None, None


class ServerSide:
    """Runs ``training_step`` from a cut on.

    Args:
        module: The LightningModule, with shells (see `Sides`) for the client-side parameters.
        path: `Cut.path`.
    """

    def __init__(self, module: nn.Module, path: Sequence[str]) -> None:
        self.path = tuple(path)
        self._modules = [module.get_submodule(name) for name in path]
        self._remembered: dict[Any, list[Any]] = {}
        self.cut_was_reached = False

    @contextmanager
    def receiving(
        self,
        batch: Any,
        smashed: Tensor,
        send: Callable[[Tensor], None],
        at_cut: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """While this is open, one call of ``training_step`` begins at the cut.

        Args:
            batch: The batch that the step will be called with, private leaves on the meta device.
            smashed: The received activation; it becomes part of the graph and may be modified.
            send: Called in the backward pass with the gradient of the smashed data.
            at_cut: Called when the cut is reached, before anything behind it runs.

        Raises:
            ImpossibleCutError: If the modules before the cut are called in another order than the sample batch showed.
        """
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in flatten(batch)[0])
        memory = self._remembered.get(key)
        first_time: list[Any] = []
        position = 0
        grad_mode = torch.is_grad_enabled()
        self.cut_was_reached = False

        def replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal position
                if self.cut_was_reached:
                    return forward(*args, **kwargs)
                if self._modules[position] is not module:
                    raise ImpossibleCutError(
                        f"the modules before the cut {self.path[-1]!r} are called in another order than on the sample"
                        " batch: the step's path depends on the data. Choose a cut before that."
                    )
                position += 1
                if position == len(self._modules):
                    self.cut_was_reached = True
                    torch.set_grad_enabled(grad_mode)
                    at_cut()
                    anchor = torch.empty(0, device=smashed.device, requires_grad=True)
                    return _Receive.apply(smashed, anchor, send)
                if memory is not None:
                    return tree_map_only(Tensor, Tensor.detach, memory[position - 1])
                output = forward(*args, **kwargs)
                first_time.append(tree_map_only(Tensor, Tensor.detach, output))
                return output

            return call

        torch.set_grad_enabled(False)  # no graph over the shells
        try:
            with patched({module: replaced(module, module.forward) for module in dict.fromkeys(self._modules)}):
                yield
        finally:
            torch.set_grad_enabled(grad_mode)
        if not self.cut_was_reached:
            raise ImpossibleCutError(f"training_step ended on the server without reaching the cut {self.path[-1]!r}.")
        if memory is None:
            self._remembered[key] = first_time
