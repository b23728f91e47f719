"""Where the time of a round goes: on the server and on each client, by what it is spent on.

Four clients of different cuts, batch 32, unthrottled; ResNet-18 with the 7×7 stem and with the 3×3 stem, VGG-11-BN and
a tiny ViT on 32×32 images. Every thread keeps a stack of what it does, and time counts for the top of it alone, so that
the parts add up to the whole. Rounds of the first epoch are not counted.

- compute: forward pass, backward pass, optimizer's step. loop: what of the server's main thread is none of the others,
  which is Lightning's loop around a step. ours: installing a client's model, beginning at the cut, and the like.
- outside: the server's main thread in an arrival without compute and waiting, per arrival; what is done once in a round
  (starting it, aggregating) has lines of its own. In CPU seconds of that thread, since clients compute on the same
  cores meanwhile and it is not always running; the same on the wall clock is printed beside it. So is what plain
  Lightning's own loop takes around a step of the first model.

    python -m benchmarks.where [--models resnet18_7x7] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from benchmarks.common import publish, quiet, quiet_trainer
from benchmarks.models import MODELS
from benchmarks.models import Classifier as Plain
from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.runtime import link
from lightning_edgesplit.runtime.client import Client
from lightning_edgesplit.runtime.inbox import Inbox
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.runtime.whole import WholeModels

COMPUTE = ("forward", "backward", "optimizer")
PER_ROUND = ("start of the round", "aggregation")
ORDER = (*COMPUTE, "data", "ours", "serialisation", "wire", "loop", *PER_ROUND, "waiting")


STEPS = {"resnet18_7x7": 12, "resnet18_3x3": 2, "vgg11_bn": 6, "vit_tiny": 4}
"""Local steps of a client in a round."""


class Ledger:
    """Seconds of this process by thread and by what they are spent on, on the wall clock and of the CPU."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.main = threading.get_ident()

    def reset(self) -> None:
        """Begins at zero, in the thread that calls it."""
        for numbers in (self.wall, self.cpu, self.counts):
            numbers.clear()
        self.main = threading.get_ident()
        self._note(self._stack[-1])

    @property
    def _stack(self) -> list[str]:
        if not hasattr(self._local, "stack"):
            self._local.stack = ["loop"]
            self._local.since = time.perf_counter(), time.thread_time()
        return self._local.stack

    def _note(self, what: str) -> None:
        now = time.perf_counter(), time.thread_time()
        if threading.get_ident() == self.main:
            self.wall[what] += now[0] - self._local.since[0]
            self.cpu[what] += now[1] - self._local.since[1]
        self._local.since = now

    def stop(self) -> None:
        """Counts nothing any more."""
        self._note(self._stack[-1])
        self.main = 0

    def enter(self, what: str) -> None:
        """From here on this thread does `what`."""
        stack = self._stack
        self._note(stack[-1])
        stack.append(what)
        if threading.get_ident() == self.main:
            self.counts[what] += 1

    def leave(self) -> None:
        """Goes on with what it did before."""
        self._note(self._stack.pop())


LEDGER = Ledger()


def timed(owner: Any, name: str, what: str) -> None:
    """Lets the ledger know of every call of a function."""
    function = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        LEDGER.enter(what)
        try:
            return function(*args, **kwargs)
        finally:
            LEDGER.leave()

    setattr(owner, name, watched)


def timed_around(owner: Any, name: str, what: str) -> None:
    """The same of a context manager: its beginning and its end, without what is done while it is open."""
    opening = getattr(owner, name)

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
        LEDGER.enter(what)
        try:
            with opening(*args, **kwargs) as value:
                LEDGER.leave()
                try:
                    yield value
                finally:
                    LEDGER.enter(what)
        finally:
            LEDGER.leave()

    setattr(owner, name, watched)


class Classifier(Plain):
    """An ordinary one that lets the ledger begin anew with the second epoch, and end with it."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            LEDGER.reset()

    def on_train_end(self) -> None:
        LEDGER.stop()


def watch(folder: Path) -> None:
    """Lets the ledger know of everything that has a name of its own; clients leave their ledgers in `folder`."""
    for owner, name, what in (
        (Classifier, "training_step", "forward"), (torch.autograd, "backward", "backward"),
        (torch.autograd, "grad", "backward"), (torch.optim.SGD, "step", "optimizer"),
        (link, "encode", "serialisation"), (link, "decode", "serialisation"), (link.Link, "send", "wire"),
        (Inbox, "next", "waiting"), (WholeModels, "aggregate", "aggregation"),
        (Server, "start_round", "start of the round"), (_BaseDataLoaderIter, "__next__", "data"),
        *((Server, name, "ours") for name in ("arrival", "batch_of", "before_backward", "drop_gradients", "served")),
    ):  # fmt: skip
        timed(owner, name, what)
    for name in ("installed", "stepping"):
        timed_around(Server, name, "ours")
    run, begin, samples = Client.run, Client._round, []

    def of_client(self: Client) -> None:
        LEDGER.main = threading.get_ident()
        try:
            run(self)
        finally:
            own = {"wall": LEDGER.wall, "samples": samples[-1]}
            (folder / f"{os.getpid()}.json").write_text(json.dumps(own))

    def of_round(self: Client, order: Any) -> None:
        if order.frame.about["epoch"] == 1 and order.frame.about["new_epoch"]:
            LEDGER.reset()
        LEDGER.enter("ours")
        try:
            begin(self, order)
        finally:
            LEDGER.leave()
        samples.append(self._samples)

    Client.run, Client._round = of_client, of_round


def profile(model: str, rounds: int, batch: int, clients: int = 4) -> dict[str, Any]:
    """Trains one epoch to warm up and one that counts; seconds by side and by what they are spent on."""
    steps = STEPS[model]
    L.seed_everything(0, verbose=False)
    count = clients * batch * steps * rounds
    data = TensorDataset(torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,)))
    strategy = EdgeSplitStrategy(clients=clients, cuts=list(MODELS[model].cuts), round_steps=steps)
    trainer = quiet_trainer(strategy=strategy, max_epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        watch(Path(folder))
        trainer.fit(Classifier(MODELS[model].make(), lr=0.01), DataLoader(data, batch_size=batch))
        of_clients = [json.loads(path.read_text())["wall"] for path in Path(folder).glob("*.json")]
    arrivals = clients * steps * rounds
    outside = [what for what in ORDER if what not in (*COMPUTE, *PER_ROUND, "waiting")]
    step = sum(LEDGER.wall[what] for what in (*COMPUTE, *outside))
    return {
        "server": dict(LEDGER.wall), "server_cpu": dict(LEDGER.cpu), "arrivals": arrivals, "rounds": rounds,
        "clients": {what: statistics.mean(own.get(what, 0.0) for own in of_clients) for what in ORDER},
        "seconds": sum(report.seconds for report in strategy.rounds[rounds:]),
        "outside_ms": 1e3 * sum(LEDGER.cpu[what] for what in outside) / arrivals,
        "outside_wall_ms": 1e3 * sum(LEDGER.wall[what] for what in outside) / arrivals,
        "outside_share": sum(LEDGER.cpu[what] for what in outside) / step,
    }  # fmt: skip


def plain_loop(model: str, rounds: int, batch: int) -> dict[str, Any]:
    """CPU milliseconds of plain Lightning's loop around a step of the whole model, without loading data."""
    L.seed_everything(0, verbose=False)
    count = batch * STEPS[model] * rounds
    data = TensorDataset(torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,)))
    with tempfile.TemporaryDirectory() as folder:
        watch(Path(folder))
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(Classifier(MODELS[model].make(), lr=0.01), DataLoader(data, batch_size=batch))
    return {"loop_ms": 1e3 * LEDGER.cpu["loop"] / (STEPS[model] * rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="that are counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=("split", "plain"), help=argparse.SUPPRESS)  # one model, in this process
    options = parser.parse_args()
    quiet(options.threads)
    if options.one:
        measure = profile if options.one == "split" else plain_loop
        print(json.dumps(measure(options.models[0], options.rounds, options.batch)))
        return
    found = {model: in_its_own_process("split", model, options) for model in options.models}
    for side in ("server", "clients"):
        table = Table(title=f"{side}: milliseconds per {'arrival' if side == 'server' else 'local step, mean'}")
        for column in ("model", *ORDER):
            table.add_column(column, justify="right")
        for model, numbers in found.items():
            per = numbers["arrivals"] / (1 if side == "server" else 4)
            table.add_row(model, *(f"{1e3 * numbers[side].get(what, 0.0) / per:.2f}" for what in ORDER))
        Console(width=160).print(table)
    name = "resnet18_7x7" if "resnet18_7x7" in found else options.models[0]
    others = {model: own for model, own in found.items() if model != name} or found
    first, plain = found[name], in_its_own_process("plain", name, options)
    print(f"{name}: plain Lightning's loop around a step, {plain['loop_ms']:.2f} ms of the CPU")
    values = {
        "plain_loop_ms": plain["loop_ms"],
        "server_outside_ms": first["outside_ms"],
        "server_outside_share_max": max(own["outside_share"] for own in others.values()),
        "models": found,
        "threads": options.threads,
    }
    publish(values)


def in_its_own_process(side: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """A fresh interpreter, since what is watched stays watched."""
    command = [
        sys.executable, "-m", "benchmarks.where", "--one", side, "--models", model, "--rounds", str(options.rounds),
        "--batch", str(options.batch), "--threads", str(options.threads),
    ]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
