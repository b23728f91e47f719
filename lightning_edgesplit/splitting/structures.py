"""How the outputs of a module's calls are built, found in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from lightning_edgesplit.splitting.batch import step_arguments
from lightning_edgesplit.splitting.proof import copy_of, generators_kept
from lightning_edgesplit.splitting.tree import Structure, flatten


def structures_of(
    module: nn.Module, batch: Any, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> dict[tuple[str, int], Structure]:
    """The structure of what every module call of a step returns, by name of the module and number of its call.

    Structures hold classes of containers, which do not travel: each side finds them out for itself. The step runs on a
    copy of the module; neither it nor the random generators are changed.

    Args:
        module: The LightningModule, whole.
        batch: A batch as its ``training_step`` takes it.
        context: Opened around the forward pass (mixed precision).
    """
    probe, _ = copy_of(module)
    calls: dict[str, int] = {}
    found: dict[tuple[str, int], Structure] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[name, open_calls[name].pop()] = flatten(output)[1]

        return hook

    def counting(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, __: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            open_calls.setdefault(name, []).append(calls[name])

        return hook

    open_calls: dict[str, list[int]] = {}
    for name, child in probe.named_modules():
        if name:
            child.register_forward_pre_hook(counting(name))
            child.register_forward_hook(noting(name))
    with generators_kept(), context():
        probe.training_step(*step_arguments(probe, batch, 0))  # type: ignore[operator]
    return found
