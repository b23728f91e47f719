"""Small modules and data, a way to fit them, and federated averaging in plain PyTorch as the oracle."""

from __future__ import annotations

import copy
import random

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Classifier(L.LightningModule):
    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3))
    schedule = False

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 10)
        )

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]) if self.schedule else optimizer


class WithAdamW(Classifier):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.01))
    schedule = True


def vectors(samples: int) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 12), torch.randint(0, 10, (samples,)))


def fit(module, data, strategy="auto", batch_size=16, epochs=2, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(strategy=strategy, max_epochs=epochs, **quiet, **options)
    torch.manual_seed(2)
    trainer.fit(module, DataLoader(data, batch_size=batch_size))
    return trainer


def go_on(module, loader, strategy, folder, epochs, path=None, callbacks=()):
    """Trains in a fixed order, from the checkpoint `path` on if one is given; those of `callbacks` go to `folder`."""
    trainer = L.Trainer(
        strategy=strategy, max_epochs=epochs, deterministic=True, callbacks=list(callbacks), accelerator="cpu",
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=bool(callbacks),
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=path)
    return trainer


class Augmented(Dataset):
    """Each item draws from all three generators, as augmentations do."""

    def __init__(self, samples: int) -> None:
        self.vectors = vectors(samples)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index):
        x, y = self.vectors[index]
        return x + 0.1 * torch.randn(12) + 0.1 * random.random() + 0.1 * float(np.random.rand()), y


class Deterministic(Classifier):
    """No dropout: every client has a random stream of its own, which a plain loop does not."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
            )
        )


def fedavg(module, data, parts, batch_size, epochs, steps, after_round=lambda optimizers, samples: None):
    """The oracle: federated averaging in plain PyTorch; each client keeps its optimizer."""
    clients = [copy.deepcopy(module) for _ in parts]
    optimizers = [client.configure_optimizers() for client in clients]
    batches = [torch.tensor(part).split(batch_size) for part in parts]
    for _ in range(epochs):
        for at in range(0, max(len(own) for own in batches), steps):
            samples = []
            for client, optimizer, own in zip(clients, optimizers, batches, strict=True):
                samples.append(sum(len(batch) for batch in own[at : at + steps]))
                for batch in own[at : at + steps]:
                    optimizer.zero_grad()
                    F.cross_entropy(client.net(data.tensors[0][batch]), data.tensors[1][batch]).backward()
                    optimizer.step()
            states = [client.state_dict() for client in clients]
            mean = {
                name: sum(n / sum(samples) * s[name] for n, s in zip(samples, states, strict=True))
                for name in states[0]
            }
            mean = {k: v if states[0][k].is_floating_point() else v.round().long() for k, v in mean.items()}
            for client in clients:
                client.load_state_dict(mean)
            after_round(optimizers, samples)
    return clients[0].state_dict()
