"""How long it takes to find and prove all cuts of ResNet-18, or to have them from the cache, in training steps.

The steps are those of the same module on the same batch.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from rich.table import Table

from benchmarks.common import PAIRS, publish, quiet, spread
from benchmarks.memory import Classifier, resnet18
from lightning_edgesplit.splitting import find_cuts


def main() -> None:
    quiet(threads=2)
    with tempfile.TemporaryDirectory() as folder:
        measure(folder)


def measure(folder: str) -> None:
    table = Table(
        "batch",
        "cuts",
        "a step",
        "find and prove",
        "in steps",
        "from the cache",
        "in steps",
        title="ResNet-18, 32×32, 2 threads",
    )
    ratios, spreads = {}, {}
    for size in (32, 128):
        module = Classifier(resnet18()).train()
        optimizer = module.configure_optimizers()
        batch = torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))
        pairs, again = [], []
        for number in range(PAIRS + 1):  # the first warms up
            begin = time.perf_counter()
            for _ in range(5):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
            between = time.perf_counter()
            cuts = find_cuts(module, batch, optimizer)
            proven = time.perf_counter()
            kept = find_cuts(module, batch, optimizer, cache=folder)  # written by the round that warms up
            if number:
                assert kept.cached
                pairs.append(((between - begin) / 5, proven - between))
                again.append(((between - begin) / 5, kept.seconds))
        step, proof = (statistics.median(values) for values in zip(*pairs, strict=True))
        for what, rows in (("find", pairs), ("cached", again)):
            key, own = f"{what}_over_step_batch_{size}", [b / a for a, b in rows]
            ratios[key], spreads[key] = statistics.median(own), spread(own)
        ratio = f"{ratios[f'find_over_step_batch_{size}']:.1f}"
        cached = f"{statistics.median(b for _, b in again):.2f} s", f"{ratios[f'cached_over_step_batch_{size}']:.1f}"
        table.add_row(str(size), str(len(cuts)), f"{step:.2f} s", f"{proof:.2f} s", ratio, *cached)
    publish({**ratios, "spread": spreads}, table)


if __name__ == "__main__":
    main()
