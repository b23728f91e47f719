"""Samples per second of four clients and their server against plain Lightning: same cores, model, batch and data.

ResNet-18 on 32×32 images, batch 32 per client, unthrottled. The pairs are run in turn, and each ratio is of one pair,
so that what else the machine does hits both. The first epoch of each run is not counted.

    python benchmarks/throughput.py [--cuts layer2] [--pairs 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import time
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from lightning_edgesplit import EdgeSplitStrategy

CUTS = ["layer1", "layer2", "layer3", "layer4"]


class Classifier(L.LightningModule):
    """ResNet-18 that notes when each epoch begins."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)
        self.epochs: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append(time.perf_counter())

    def on_train_end(self) -> None:
        self.epochs.append(time.perf_counter())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def samples_per_second(strategy, data, batch: int, epochs: int) -> float:
    L.seed_everything(0, verbose=False)
    module = Classifier()
    trainer = L.Trainer(
        strategy=strategy, max_epochs=epochs + 1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=batch, shuffle=True))
    return epochs * len(data) / (module.epochs[-1] - module.epochs[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", nargs="+", default=CUTS, help="one for all clients, or one per client")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=2, help="that are counted")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="torch threads, the cores of both sides")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    data = TensorDataset(torch.randn(options.samples, 3, 32, 32), torch.randint(0, 10, (options.samples,)))
    cuts = options.cuts[0] if len(options.cuts) == 1 else options.cuts

    table = Table(title=f"samples/s, {options.clients} clients, batch {options.batch}, {options.threads} threads")
    for column in ("pair", "plain Lightning", "lightning-edgesplit", "ratio"):
        table.add_column(column, justify="right")
    ratios = []
    for pair in range(options.pairs):
        plain = samples_per_second("auto", data, options.batch, options.epochs)
        strategy = EdgeSplitStrategy(clients=options.clients, cuts=cuts)
        split = samples_per_second(strategy, data, options.batch, options.epochs)
        ratios.append(split / plain)
        table.add_row(str(pair), f"{plain:.0f}", f"{split:.0f}", f"{ratios[-1]:.3f}")
    Console().print(table, f"cuts: {', '.join(options.cuts)}")
    about = {"torch": torch.__version__, "lightning": L.__version__, "machine": platform.machine(), "argv": sys.argv}
    print(json.dumps({"ratio_median": statistics.median(ratios), "ratios": ratios, **about}))


if __name__ == "__main__":
    main()
