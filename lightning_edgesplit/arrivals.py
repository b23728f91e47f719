"""Arrivals of smashed data as batches of the Trainer's, and which side does to a batch what Lightning does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import Precision


class Arrivals:
    """What the Trainer takes for its training DataLoader: one batch per arrival of smashed data.

    Args:
        count: How many arrivals the Trainer's epoch has.
        epoch: Begins an epoch and yields them.
    """

    def __init__(self, count: Callable[[], int], epoch: Callable[[], Iterator[Any]]) -> None:
        self._count, self._epoch = count, epoch

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[Any]:
        return self._epoch()


class Preparation:
    """What the Trainer does to a batch before ``training_step``: on the client, since the batch stays there.

    Args:
        module: The LightningModule, whose hooks around the transfer are called.
        precision: Converts what is floating-point.
        to_device: The strategy's own transfer, with the hooks on the device.
        is_arrival: Whether a batch is one that a client has prepared already.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        precision: Precision,
        to_device: Callable[[Any], Any],
        is_arrival: Callable[[Any], bool],
    ) -> None:
        self._module, self._precision = module, precision
        self._to_device, self._is_arrival = to_device, is_arrival

    def __call__(self, batch: Any) -> Any:
        """All of it, in Lightning's order."""
        return self._to_device(self._before_transfer(self._convert(batch)))

    def leave_arrivals_alone(self) -> None:
        """From now on module and precision plugin do nothing to arrivals, until `undo`."""
        self._module.__dict__["_on_before_batch_transfer"] = lambda batch, dataloader_idx=0: (
            batch if self._is_arrival(batch) else self._before_transfer(batch, dataloader_idx)
        )
        self._precision.__dict__["convert_input"] = lambda batch: (
            batch if self._is_arrival(batch) else self._convert(batch)
        )

    def undo(self) -> None:
        """Gives module and precision plugin their own methods back."""
        self._module.__dict__.pop("_on_before_batch_transfer", None)
        self._precision.__dict__.pop("convert_input", None)

    def _convert(self, batch: Any) -> Any:
        return type(self._precision).convert_input(self._precision, batch)

    def _before_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        return type(self._module)._on_before_batch_transfer(self._module, batch, dataloader_idx)
