"""A thousand clients train ResNet-18 on this machine: seconds per round, beside the training that a round contains.

Each of the clients holds a few images of the embedded Fashion-MNIST (drawn from its 2,000 with replacement, so that
clients may share images), a part of them takes part in a round, and all of them live in a few processes. ResNet-18 is
torchvision's, with the usual stem for 32×32 images: a 3×3 convolution of stride 1, no pooling.

Plain training is the same number of steps of the same batch size by plain PyTorch, divided among as many processes of
one thread each. The pairs are run in turn, and each ratio is of one pair, so that what else the machine does hits both.
Memory is that of all processes of the split run together (PSS: shared pages are counted once), sampled twice a second.

    python benchmarks/thousand.py [--clients 1000] [--participation 0.1] [--cut layer2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.data import FashionMNISTMini


class Classifier(L.LightningModule):
    """ResNet-18 for 32×32 images."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)
        self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()
        self.momentum = momentum

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=self.momentum)


class Turns(L.Callback):
    """Lets a plain training follow each round, and notes what both took.

    The clock of a round stops with its last arrival, when it is aggregated, and the next one's begins with it; what
    plain training takes in between is not counted.
    """

    def __init__(self, plain) -> None:
        self.plain, self.pairs, self.rounds, self.losses = plain, [], 0, []
        self.began = 0.0

    def on_train_epoch_start(self, trainer, module) -> None:
        self.began = time.perf_counter()  # the epoch is a round

    def on_train_batch_end(self, trainer, module, outputs, *_) -> None:
        self.losses.append(float(outputs["loss"]))
        if len(trainer.strategy.rounds) > self.rounds:
            split = time.perf_counter() - self.began
            self.rounds = len(trainer.strategy.rounds)
            self.pairs.append((split, self.plain()))


def plain_training(steps: int, batch: int, momentum: float, data, ready, done) -> None:
    """Plain PyTorch: so many steps each time that it is asked, until it is told to stop."""
    torch.set_num_threads(1)
    module = Classifier(momentum)
    optimizer = module.configure_optimizers()
    loader = DataLoader(data, batch_size=batch, shuffle=True)
    while ready.recv():
        taken = 0
        while taken < steps:
            for x, y in loader:
                if taken == steps:
                    break
                optimizer.zero_grad()
                F.cross_entropy(module.net(x), y).backward()
                optimizer.step()
                taken += 1
        done.send(taken)


class Plain:
    """Processes that train plainly when they are asked; they wait meanwhile."""

    def __init__(self, processes: int, steps: int, batch: int, momentum: float, data) -> None:
        context, shares = (
            multiprocessing.get_context("fork"),
            [len(range(k, steps, processes)) for k in range(processes)],
        )
        self._ends, self._processes = [], []
        for share in shares:
            ask, asked = context.Pipe()
            process = context.Process(target=plain_training, args=(share, batch, momentum, data, asked, asked))
            process.start()
            self._ends.append(ask)
            self._processes.append(process)
        self.pids = {process.pid for process in self._processes}

    def __call__(self) -> float:
        began = time.perf_counter()
        for end in self._ends:
            end.send(True)
        for end in self._ends:
            end.recv()
        return time.perf_counter() - began

    def stop(self) -> None:
        for end in self._ends:
            end.send(False)
        for process in self._processes:
            process.join()


def tree(pid: int) -> set[int]:
    """A process and all that it started."""
    found, parents = {pid}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def pss(pids: set[int]) -> int:
    """Bytes of memory that these processes have between them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


@contextmanager
def peak_memory(without: set[int]) -> Iterator[list[int]]:
    """Samples the memory of this process and its children; the list holds the largest sample, bytes."""
    peak, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            peak[0] = max(peak[0], pss(tree(os.getpid()) - without))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--participation", type=float, default=0.1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32, help="of each client")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cut", default="layer2", help='a module name, "end" for the whole model on the client')
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--optimizer-state", default="reset", help="keep: momentum of every client that took part")
    parser.add_argument("--threads", type=int, default=2, help="cores of both sides")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    L.seed_everything(0, verbose=False)
    data, draw = FashionMNISTMini(train=True), random.Random(0)
    parts = [draw.sample(range(len(data)), options.samples) for _ in range(options.clients)]
    taking_part = max(1, round(options.clients * options.participation))
    steps = taking_part * -(-options.samples // options.batch)

    plain = Plain(options.processes, steps, options.batch, options.momentum, data)
    turns = Turns(plain)
    strategy = EdgeSplitStrategy(
        clients=options.clients, participation=options.participation, processes=options.processes, partition=parts,
        optimizer_state=options.optimizer_state, timeout=300, cuts=options.cut,
    )  # fmt: skip
    trainer = L.Trainer(
        strategy=strategy, max_epochs=options.rounds, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[turns],
    )  # fmt: skip
    began = time.perf_counter()
    try:
        with peak_memory(plain.pids) as peak:
            trainer.fit(Classifier(options.momentum), DataLoader(data, batch_size=options.batch, shuffle=True))
    finally:
        plain.stop()
    whole = time.perf_counter() - began

    table = Table(
        title=f"{options.clients} clients, {taking_part} in a round: {steps} steps of batch {options.batch}, cut"
        f" {options.cut}, {options.processes} processes"
    )
    for column in ("round", "seconds", "plain training, s", "over plain"):
        table.add_column(column, justify="right")
    for k, (split, alone) in enumerate(turns.pairs):
        table.add_row(str(k), f"{split:.1f}", f"{alone:.1f}", f"{split / alone:.3f}")
    Console().print(table)
    values = {
        "over_plain": statistics.median(split / alone for split, alone in turns.pairs),
        "peak_gib": peak[0] / 2**30,
        "seconds_per_round": statistics.median(split for split, _ in turns.pairs),
        "plain_seconds_per_round": statistics.median(alone for _, alone in turns.pairs),
        "before_first_round_s": whole - sum(sum(pair) for pair in turns.pairs),
        "first_loss": statistics.mean(turns.losses[:steps]),
        "last_loss": statistics.mean(turns.losses[-steps:]),
    }
    about = {"torch": torch.__version__, "lightning": L.__version__, "machine": platform.machine(), "argv": sys.argv}
    print(json.dumps({**values, **about}))


if __name__ == "__main__":
    main()
