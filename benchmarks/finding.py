"""How long it takes to find and prove all cuts of ResNet-18, in training steps of the same module and batch."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
import warnings

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.memory import Classifier, resnet18
from lightning_edgesplit.splitting import find_cuts


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    table = Table("batch", "cuts", "a step", "find and prove", "in steps", title="ResNet-18, 32×32, 2 threads")
    ratios = {}
    for size in (32, 128):
        module = Classifier(resnet18()).train()
        optimizer = module.configure_optimizers()
        batch = torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))
        pairs = []
        for number in range(4):  # the first warms up
            begin = time.perf_counter()
            for _ in range(5):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
            between = time.perf_counter()
            cuts = find_cuts(module, batch, optimizer)
            if number:
                pairs.append(((between - begin) / 5, time.perf_counter() - between))
        step, proof = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios[f"find_over_step_batch_{size}"] = statistics.median(b / a for a, b in pairs)
        ratio = f"{ratios[f'find_over_step_batch_{size}']:.1f}"
        table.add_row(str(size), str(len(cuts)), f"{step:.2f} s", f"{proof:.2f} s", ratio)
    Console().print(table)
    about = {"torch": torch.__version__, "lightning": L.__version__, "machine": platform.machine(), "argv": sys.argv}
    print(json.dumps({**ratios, **about}))


if __name__ == "__main__":
    main()
