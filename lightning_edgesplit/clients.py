"""What runs in a client's process: the user's module and loader, Lightning's counters, the server's orders."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_edgesplit.launcher import CLIENT
from lightning_edgesplit.runtime import generators
from lightning_edgesplit.runtime.carrier import Carrier
from lightning_edgesplit.runtime.client import Client
from lightning_edgesplit.runtime.partition import ClientLoaders
from lightning_edgesplit.runtime.rendezvous import Rendezvous
from lightning_edgesplit.runtime.supply import Supply
from lightning_edgesplit.splitting.proof import generators_kept
from lightning_edgesplit.splitting.structures import structures_of
from lightning_edgesplit.splitting.tree import Structure


@dataclass(frozen=True)
class ClientProcess:
    """A client's process from its first to its last moment.

    Attributes:
        module: The LightningModule, attached to its Trainer.
        optimizer: Its optimizer.
        loaders: Give each client its batches.
        heartbeat: Seconds between two signs of life.
        seed: Of this run; each client but the first has random streams of its own.
        prepare: Makes of what the loader yields what ``training_step`` takes.
        context: Opened around every forward pass (mixed precision).
        dealt: Whether plans divide batches anew.
    """

    module: pl.LightningModule
    optimizer: Optimizer
    loaders: ClientLoaders
    heartbeat: float
    seed: int
    prepare: Callable[[Any], Any]
    context: Callable[[], AbstractContextManager[Any]]
    dealt: bool = False
    # taken before the fork, in which Python gives `random` a new seed
    _streams: tuple[dict[str, Any], list[Tensor]] = field(default_factory=generators.read, init=False, repr=False)

    def run(self, client: int, rendezvous: Rendezvous) -> None:
        """Is that client, until the server that it meets there stops it."""
        self._begin_as(client)
        Client(
            self.module, self.optimizer, Supply(self.loaders.of(client), self.dealt), rendezvous.link(client),
            self.heartbeat,
            prepare=self.prepare, context=self.context, on_round=self._set_counters, structures=self._structures,
        ).run()  # fmt: skip

    def carry(self, process: int, clients: Sequence[int], second_cut: bool, rendezvous: Rendezvous) -> None:
        """Is one client after the other.

        Args:
            process: Number of this process.
            clients: Those whose data it describes to the server.
            second_cut: Whether steps may come back to their client.
            rendezvous: Where the server is met.
        """
        Carrier(
            self.module, self.optimizer, self.loaders, rendezvous.link(process), self.heartbeat,
            greets=clients, begin_as=self._begin_as, structures_first=second_cut,
            prepare=self.prepare, context=self.context, on_round=self._set_counters, structures=self._structures,
            dealt=self.dealt,
        ).run()  # fmt: skip

    def _begin_as(self, client: int) -> None:
        """Gives this process the random streams with which that client begins."""
        os.environ[CLIENT] = str(client)  # for a `train_dataloader` that wants to know
        if client:
            for sow in (torch.manual_seed, random.seed, np.random.seed):
                sow((self.seed * 100_003 + client) % 2**32)
        else:  # goes on with the server's streams, so that one client draws what a plain run draws
            generators.write(*self._streams)

    def _structures(self) -> dict[tuple[str, int], Structure]:
        """How what the module's calls return is built; found out here, since classes do not travel."""
        with generators_kept():
            batch = self.prepare(self.loaders.sample())
        return structures_of(self.module, batch, self.context)

    def _set_counters(self, epoch: int, step: int) -> None:
        """Lets `current_epoch` and `global_step` be what they are on the server."""
        loop = self.module.trainer.fit_loop
        loop.epoch_progress.current.processed = epoch  # type: ignore[attr-defined]
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
