"""A tiny module with its data, ways for it to go wrong, and records as runs write them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CONFIG = """
model: {class_path: comparing_samples.Tiny}
data: {class_path: comparing_samples.Vectors}
scenarios:
  - name: two
    clients:
      - {name: slow, flops: 1e6, power_busy: 5, power_idle: 1}
      - {name: fast, flops: 1e7, power_busy: 9, power_idle: 2}
    server: {flops: 1e9, uplink: 1e6, downlink: 1e6}
    round_steps: 2
systems:
  - {policy: fedavg, label: FedAvg}
  - {policy: uniform, label: SplitFed}
seeds: [0, 1]
trainer: {max_epochs: 2}
target_accuracy: {metric: accuracy, values: [0.3, 2.0]}
tensorboard: false
"""


class Tiny(L.LightningModule):
    """12 → 16 → 16 → 4, so that its costs can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Failing(Tiny):
    """Fails in runs with an odd seed."""

    def on_train_start(self):
        if int(os.environ["PL_GLOBAL_SEED"]) % 2:
            raise RuntimeError("this seed is odd")


class Hanging(Tiny):
    """Says that it is there, and stays, unless it is told not to."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def on_train_start(self):
        if int(os.environ["PL_GLOBAL_SEED"]) == 1 and not (self.folder / "go").exists():
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(600)


class FullDisk(Tiny):
    """Leaves no room for the record of an odd seed."""

    def on_train_end(self):
        def full(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if int(os.environ["PL_GLOBAL_SEED"]) % 2:
            os.fsync = full


class Vectors(L.LightningDataModule):
    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def _set(self, samples: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, 12, generator=generator)
        return TensorDataset(x, x[:, :4].argmax(1))

    def train_dataloader(self):
        return DataLoader(self._set(64, 0), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self._set(100, 1), batch_size=100)


def record(system: str = "a", seed: int = 0, seconds: float = 10.0, scenario: str = "s", values=(0.5, 0.8)) -> dict:
    """Two rounds of two clients, validated after each."""

    def client(k: int) -> dict:
        phases = {"forward": 1.0 + k, "uplink": 2.0, "wait": 0.5, "server": 0.5, "backward": 2.0}
        return {
            "client": k, "name": f"c{k}", "cut": "deep" if k else "shallow", "share": 0.5, "steps": 3, "samples": 24,
            "seconds": phases, "once": {}, "idle": 4.0 - k, "bytes_up": 100, "bytes_down": 60, "round_time": 6.0 + k,
        }  # fmt: skip

    rounds = [
        {
            "index": n, "epoch": n, "seconds": seconds, "elapsed": (n + 1) * seconds,
            "server_seconds": 3.0, "aggregation_seconds": 0.25, "bytes_up": 200, "bytes_down": 120,
            "clients": [client(0), client(1)],
        }
        for n in range(2)
    ]  # fmt: skip
    return {
        "scenario": scenario, "system": system, "seed": seed, "rounds": rounds, "cuts": ["shallow", "deep", "end"],
        "clients": [{"name": "c0", "power_busy": 5.0, "power_idle": 1.0},
                    {"name": "c1", "power_busy": 9.0, "power_idle": 2.0}],
        "curve": [{"epoch": n, "rounds": n + 1, "elapsed": (n + 1) * seconds, "metrics": {"accuracy": value}}
                  for n, value in enumerate(values)],
        "spans": [[0, False, "forward", 0.0, 1.0], [1, False, "forward", 0.0, 2.0], [0, True, "server", 2.0, 5.0],
                  [0, True, "aggregation", 9.0, 10.0]],
    }  # fmt: skip
