"""Samples per second of four clients and their server against plain Lightning: same cores, model, batch and data.

Four models for 32×32 images, batch 32 per client, four different cuts, unthrottled: ResNet-18 with the 7×7 stem (small
steps) and with the 3×3 stem (large ones), VGG-11-BN, and a tiny ViT. The pairs are run in turn, and each ratio is of
one pair, so that what else the machine does hits both. The first epoch of each run is not counted. The figure is the
median over the models of their medians.

    python -m benchmarks.throughput [--models resnet18_7x7 vit_tiny] [--cuts layer2] [--pairs 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial

import lightning as L
import torch
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import PAIRS, cell, interleaved, publish, quiet, quiet_trainer, ratios, spread
from benchmarks.models import MODELS, Classifier, Model
from lightning_edgesplit import EdgeSplitStrategy


def samples_per_second(model: Model, cuts: Sequence[str] | str | None, data, options: argparse.Namespace) -> float:
    """Of a fit, without its first epoch; by plain Lightning where there are no cuts."""
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(options.threads)
    module = Classifier(model.make())
    strategy = "auto" if cuts is None else EdgeSplitStrategy(clients=options.clients, cuts=cuts)
    trainer = quiet_trainer(strategy=strategy, max_epochs=options.epochs + 1)
    trainer.fit(module, DataLoader(data, batch_size=options.batch, shuffle=True))
    return options.epochs * len(data) / (module.epochs[-1] - module.epochs[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--cuts", nargs="+", help="of one model: one for all clients, or one per client")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, help="per epoch; default by model, so that all take about as long")
    parser.add_argument("--epochs", type=int, default=1, help="that are counted")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=2, help="torch threads, the cores of both sides")
    options = parser.parse_args()
    if options.cuts and len(options.models) > 1:
        parser.error("--cuts are the cuts of one model: name it with --models.")
    if options.clients != 4 and not options.cuts:
        parser.error(f"--clients {options.clients} needs --cuts: by default there are four clients with a cut each.")
    quiet(options.threads)

    table = Table(title=f"samples/s, {options.clients} clients, batch {options.batch}, {options.threads} threads")
    for column in ("model", "samples", "plain Lightning", "lightning-edgesplit", "ratio: median (spread)"):
        table.add_column(column, justify="right")
    found = {}
    for name in options.models:
        model, count = MODELS[name], options.samples or MODELS[name].samples
        cuts: list[str] = options.cuts or list(model.cuts)
        data = TensorDataset(torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,)))
        run = partial(samples_per_second, model, data=data, options=options)
        sides = {
            f"{name} plain": partial(run, None),
            f"{name} split": partial(run, cuts[0] if len(cuts) == 1 else cuts),
        }
        plain, split = interleaved(options.pairs, sides).values()
        found[name] = ratios(split, plain)
        rates = (f"{statistics.median(side):.0f}" for side in (plain, split))
        table.add_row(name, str(count), *rates, cell(found[name]))
    medians = {name: statistics.median(own) for name, own in found.items()}
    figures = {
        "ratio_median": statistics.median(medians.values()),
        **medians,
        "spread": {"ratio_median": spread(medians.values()), **{name: spread(own) for name, own in found.items()}},
        "ratios": found,
        "cuts": {name: options.cuts or list(MODELS[name].cuts) for name in options.models},
    }
    publish(figures, table)


if __name__ == "__main__":
    main()
