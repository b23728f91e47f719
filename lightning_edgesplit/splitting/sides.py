"""Which parameters and buffers of a module are real, and which are shells on the meta device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Sides:
    """The parameters and buffers of one module, each of which can be swapped for a shell and back.

    A shell has the shape and type of the real tensor and no data (it lives on the meta device), so code that runs
    with shells costs next to nothing and a mistake shows. Swapping replaces entries of the modules' dictionaries and
    copies nothing; the real ``Parameter`` objects, which the optimizer holds, stay the same while this object lives.

    Attributes:
        parameters: The real parameters by name, each once (tied weights have one name).
        buffers: The real buffers by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.buffers: dict[str, Tensor] = dict(module.named_buffers())
        names = {id(tensor): name for name, tensor in {**self.parameters, **self.buffers}.items()}
        self._owners: dict[str, list[tuple[dict[str, Tensor | None], str]]] = {name: [] for name in names.values()}
        for child in module.modules():
            for entries in (child._parameters, child._buffers):
                for key, tensor in entries.items():
                    if tensor is not None:
                        self._owners[names[id(tensor)]].append((entries, key))  # type: ignore[arg-type]
        self._shells: dict[str, Tensor] = {}
        self._away: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Names of all parameters, then of all buffers."""
        return [*self.parameters, *self.buffers]

    def real(self, name: str) -> Tensor:
        """The real tensor of that name, whether it is in place or swapped for its shell."""
        return self.parameters[name] if name in self.parameters else self.buffers[name]

    def set(self, name: str, value: Tensor) -> None:
        """Lets `value` be the data of the real parameter or buffer `name`. Nothing is copied."""
        if name in self.parameters:
            self.parameters[name].data = value
        else:
            self.buffers[name] = value
            if name not in self._away:
                self._enter(name, value)

    def place(self, away: Iterable[str] = ()) -> None:
        """Puts shells in place of the tensors named in `away`, and the real ones everywhere else."""
        away = frozenset(away)
        for name in away - self._away:
            self._enter(name, self._shell(name))
        for name in self._away - away:
            self._enter(name, self.real(name))
        self._away = away

    def collect(self) -> None:
        """Takes over buffers that a step replaced by new tensors (``self.count = self.count + 1``)."""
        for name in self.buffers:
            if name not in self._away:
                entries, key = self._owners[name][0]
                self.buffers[name] = entries[key]  # type: ignore[assignment]

    def release(self, name: str) -> None:
        """Frees the data of a tensor that this process does not need; `set` brings new data. Its shell stays."""
        self._shell(name)
        real = self.real(name)
        self.set(name, torch.empty(0, dtype=real.dtype, device=real.device))

    def _shell(self, name: str) -> Tensor:
        if name not in self._shells:
            real = self.real(name)
            shell: Tensor = torch.empty_like(real, device="meta")
            self._shells[name] = nn.Parameter(shell, real.requires_grad) if name in self.parameters else shell
        shell = self._shells[name]
        if name in self.parameters and shell.requires_grad != self.parameters[name].requires_grad:
            shell.requires_grad_(self.parameters[name].requires_grad)
        return shell

    def _enter(self, name: str, tensor: Tensor) -> None:
        for entries, key in self._owners[name]:
            entries[key] = tensor
