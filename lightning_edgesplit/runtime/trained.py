"""What of a module is trained, as plain values: the server notices that it changed, and the clients adopt it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

Trained = dict[str, list[Any]]
"""JSON: names of the ``frozen`` parameters, names by optimizer ``groups``, names of modules that are ``still`` (in eval
mode) and of norms that keep ``no_statistics``."""


def read(module: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> Trained:
    """What is trained now.

    Args:
        module: The LightningModule.
        parameters: Its real parameters, by name.
        optimizer: Its optimizer.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    modules = dict(module.named_modules())
    return {
        "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
        "groups": [[names[p] for p in group["params"] if p in names] for group in optimizer.param_groups],
        "still": [name for name, child in modules.items() if not child.training],
        "no_statistics": [n for n, child in modules.items() if getattr(child, "track_running_stats", True) is False],
    }


class Watch:
    """Notices that what is trained changes, without going through the tree of modules and their names.

    Args:
        module: The LightningModule.
        optimizer: Its optimizer.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        self._parameters, self._modules, self._optimizer = list(module.parameters()), list(module.modules()), optimizer
        self._norms = [child for child in self._modules if hasattr(child, "track_running_stats")]
        self._before = self._now()

    @property
    def changed(self) -> bool:
        """Whether a flag or a group of the optimizer is not what it was when this was made."""
        return self._now() != self._before

    def _now(self) -> tuple[list[Any], ...]:
        return (
            [parameter.requires_grad for parameter in self._parameters],
            [child.training for child in self._modules],
            [child.track_running_stats for child in self._norms],
            [[*map(id, group["params"])] for group in self._optimizer.param_groups],
        )


def adopt(trained: Trained, module: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Lets a module and its optimizer train that. The state of parameters that stay, stays.

    Groups that are new have the optimizer's defaults; whoever has their hyper-parameters sets them.
    """
    frozen, still, no_statistics = (set(trained[key]) for key in ("frozen", "still", "no_statistics"))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)
    for name, child in module.named_modules():
        child.training = name not in still
        if hasattr(child, "track_running_stats"):
            child.track_running_stats = name not in no_statistics  # type: ignore[assignment]
    before = optimizer.param_groups
    optimizer.param_groups = [
        {**(before[k] if k < len(before) else optimizer.defaults), "params": [parameters[name] for name in names]}
        for k, names in enumerate(trained["groups"])
    ]
