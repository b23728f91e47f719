"""What could make a step or a round faster and is left to the user, or left alone: measured beside how it is.

- step: one step (forward, backward, optimizer) in plain PyTorch, one thread, as it is over the same in another way:
  `torch.compile` (Inductor), SGD by `foreach` or `fused`, channels_last, bf16 autocast. More than 1: the other way is
  faster. The first step stands beside it, in seconds; of what is compiled it depends on Inductor's cache.
- cores: a round of four clients and the server, unpinned, over the same with the server on the first core and the
  clients on the others, and with client k on core k modulo their number. More than 1: pinning is faster.

    python -m benchmarks.tried [--models resnet18_7x7 vit_tiny] [--pairs 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import PAIRS, cell, interleaved, publish, quiet, quiet_trainer, ratios
from benchmarks.models import MODELS, Classifier
from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.launcher import CLIENT

UNPINNED, APART, BY_NUMBER = "unpinned", "server_on_core_0", "client_k_on_core_k"
WAYS = ("as_it_is", "compiled", "foreach", "fused", "channels_last", "bf16")


def step_of(model: str, way: str) -> Callable[[], float]:
    """A function that takes one step that way and returns its seconds."""
    torch.manual_seed(0)
    net, x, y = MODELS[model].make(), torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, foreach=way == "foreach" or None, fused=way == "fused" or None
    )
    if way == "channels_last":
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    forward = torch.compile(net) if way == "compiled" else net

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "bf16"):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


class Pinned(Classifier):
    """Ties every process to a core at its first step of the training itself."""

    cores = sorted(os.sched_getaffinity(0))

    def __init__(self, model: str, way: str) -> None:
        super().__init__(MODELS[model].make())
        self.way, self.server, self.pinned = way, os.getpid(), False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        at_client = os.getpid() != self.server
        if not self.pinned and (at_client or (self.trainer.training and self.epochs)):  # not while cuts are found
            self.pinned = True
            client = int(os.environ.get(CLIENT, 0))
            if self.way == APART:
                os.sched_setaffinity(0, self.cores[1:] if at_client else self.cores[:1])
            elif self.way == BY_NUMBER and at_client:
                os.sched_setaffinity(0, {self.cores[client % len(self.cores)]})
        return super().training_step(batch, batch_idx)


def round_seconds(model: str, way: str, threads: int) -> float:
    """Seconds of the second epoch of four clients."""
    torch.set_num_threads(threads)
    module, samples = Pinned(model, way), 4 * 32 * 6
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    trainer = quiet_trainer(strategy=EdgeSplitStrategy(clients=4, cuts=list(MODELS[model].cuts)), max_epochs=2)
    try:
        trainer.fit(module, DataLoader(data, batch_size=32))
    finally:
        os.sched_setaffinity(0, Pinned.cores)
    return module.epochs[-1] - module.epochs[-2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet18_7x7", "vit_tiny"])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    quiet(1)
    steps = Table("model", "way", "as it is over this way", "its first step, s", title="a step, one thread")
    figures: dict[str, Any] = {"step": {}, "cores": {}}
    for model in options.models:
        ways = {way: step_of(model, way) for way in WAYS}
        first = {way: step() for way, step in ways.items()}
        for step in ways.values():
            step()
        found = interleaved(options.pairs, ways, note=lambda text: None)
        for way in WAYS[1:]:
            over = ratios(found[WAYS[0]], found[way])
            steps.add_row(model, way, cell(over, ".2f"), f"{first[way]:.1f}")
            figures["step"].setdefault(model, {})[way] = statistics.median(over)
    model, cores = options.models[0], Table("cores", "unpinned over this way", title="a round of four clients")
    threads = len(Pinned.cores)
    rounds = interleaved(
        options.pairs, {way: partial(round_seconds, model, way, threads) for way in (UNPINNED, APART, BY_NUMBER)}
    )
    for way in (APART, BY_NUMBER):
        over = ratios(rounds[UNPINNED], rounds[way])
        cores.add_row(way, cell(over, ".2f"))
        figures["cores"][way] = statistics.median(over)
    publish(figures, steps, cores, width=100)


if __name__ == "__main__":
    main()
