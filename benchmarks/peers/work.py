"""The same work for every system, and the notes that a system takes while it does it.

Nothing is imported here that a system does not need: a run is timed from the start of its process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

LEARNING_RATE, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Work:
    """Rounds of one local epoch each of ResNet-18 on 32×32 images, without shuffling, so that a round repeats.

    Attributes:
        clients: How many.
        samples: Of all clients together.
        batch: Samples in a batch.
        rounds: How many, with the first.
        cores: That the system may use, with all its processes.
        seed: Of weights and images.

    Raises:
        ValueError: If the samples cannot be dealt out in whole batches.
    """

    clients: int = 4
    samples: int = 1024
    batch: int = 32
    rounds: int = 4
    cores: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("clients", "samples", "batch", "cores"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option}={getattr(self, option)} must be at least 1.")
        if self.samples % (self.clients * self.batch):
            raise ValueError(
                f"samples={self.samples} of {self.clients} clients are no whole batches of {self.batch}: give a"
                f" multiple of {self.clients * self.batch}, so that every client weighs the same."
            )
        if self.rounds < 2:
            raise ValueError(f"rounds={self.rounds} must be at least 2: the first is not counted as a steady one.")

    @property
    def steps(self) -> int:
        """Local steps of all clients in a round."""
        return self.samples // self.batch

    def model(self) -> nn.Module:
        """Torchvision's ResNet-18, the same weights wherever it is made."""
        from torchvision.models import resnet18

        torch.manual_seed(self.seed)
        return resnet18(num_classes=10)

    def data(self) -> TensorDataset:
        """Images [samples, 3, 32, 32] and labels [samples]."""
        draw = torch.Generator().manual_seed(self.seed)
        images = torch.randn(self.samples, 3, 32, 32, generator=draw)
        return TensorDataset(images, torch.randint(0, 10, (self.samples,), generator=draw))

    def shard(self, client: int) -> range:
        """Sample numbers of a client."""
        size = self.samples // self.clients
        return range(client * size, (client + 1) * size)

    def loader(self, client: int, data: TensorDataset) -> DataLoader[Any]:
        return DataLoader(Subset(data, self.shard(client)), batch_size=self.batch)


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


class Record:
    """When each round ended and what was done in it, and the weights after the first."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self._began: float | None = None  # the first one begins with the process

    def end_round(
        self, samples: int, steps: int, weights: Mapping[str, Tensor] | None = None, loss: float | None = None
    ) -> None:
        """Call it when the aggregated weights are there; what it takes itself belongs to no round.

        Args:
            samples: That were trained on in the round, by all clients.
            steps: Local steps of all clients.
            weights: Of the aggregated model; those of the first round are kept.
            loss: Mean over the round's batches.
        """
        now = time.monotonic()  # one clock for all processes of the machine
        self.rounds.append({"began": self._began, "ended": now, "samples": samples, "steps": steps, "loss": loss})
        if weights is not None and not self.weights:
            self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self._began = time.monotonic()

    def save(self, folder: Path) -> None:
        torch.save(self.weights, folder / "weights.pt")
        (folder / "rounds.json").write_text(json.dumps(self.rounds))
