"""How the wall time of a mini-batch grows from 2 clients to 64 in the same two processes.

ResNet-18 with the 7×7 stem on 32×32 images, small batches. Both sides train the same number of mini-batches, and a
client that takes part in a round takes the same number of local steps in it, so that downloads, uploads and what is
averaged per mini-batch are the same too: 2 clients have many short rounds where 64 clients have few wide ones. What is
left is what depends on how many clients there are. The pairs are run in turn, each ratio is of one pair, and the first
epoch of each run is not counted.

    python -m benchmarks.scaling [--clients 2 64] [--processes 2] [--steps 2] [--pairs 5]
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import lightning as L
import torch
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import PAIRS, cell, interleaved, publish, quiet, quiet_trainer, ratios, spread
from benchmarks.models import MODELS, Classifier
from lightning_edgesplit import EdgeSplitStrategy


def seconds_per_batch(clients: int, batches: int, data, options: argparse.Namespace) -> float:
    """Of the second epoch of a fit, wall clock, per mini-batch of any client."""
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(options.threads)
    module = Classifier(MODELS["resnet18_7x7"].make())
    strategy = EdgeSplitStrategy(
        clients=clients, cuts=options.cut, processes=options.processes, round_steps=options.steps,
        optimizer_state=options.optimizer_state, timeout=300,
    )  # fmt: skip
    trainer = quiet_trainer(strategy=strategy, max_epochs=2)
    trainer.fit(module, DataLoader(data, batch_size=options.batch, shuffle=True))
    arrivals = sum(client.steps for report in strategy.rounds if report.epoch == 1 for client in report.clients)
    if arrivals != batches:
        raise RuntimeError(f"{clients} clients took {arrivals} local steps instead of {batches}: a bug of this script.")
    return (module.epochs[-1] - module.epochs[1]) / batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs=2, default=(2, 64), help="few and many")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="local steps of a client in a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cut", default="layer2")
    parser.add_argument("--optimizer-state", default="reset", help="keep: momentum for every client")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of the server")
    options = parser.parse_args()
    few, many = options.clients
    if few >= many or many % few:
        parser.error(f"--clients {few} {many}: the second must be a multiple of the first, for equally many batches.")
    quiet(options.threads)
    batches = many * options.steps
    samples = batches * options.batch
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    run = partial(seconds_per_batch, batches=batches, data=data, options=options)
    sides = {f"{count} clients": partial(run, count) for count in (few, many)}
    times = interleaved(options.pairs, sides)
    growth = ratios(times[f"{many} clients"], times[f"{few} clients"])
    title = f"milliseconds per mini-batch of {options.batch}, {batches} in all, {options.processes} processes"
    table = Table("clients", "ms: median (spread)", title=title)
    for name, own in times.items():
        table.add_row(name.split()[0], cell([1e3 * value for value in own], ".1f"))
    table.add_row("ratio", cell(growth))
    figures = {
        "ratio": statistics.median(growth),
        "spread": spread(growth),
        "ratios": growth,
        "few_ms": 1e3 * statistics.median(times[f"{few} clients"]),
        "many_ms": 1e3 * statistics.median(times[f"{many} clients"]),
    }
    publish(figures, table)


if __name__ == "__main__":
    main()
