"""What splitting adds: bytes on the wire over payload, the server's time before the cut, and the launch of clients.

- wire over payload: what the links counted in a round over the tensors that had to travel (smashed data, labels,
  gradients, client-side weights both ways), ResNet-18, 32×32, batch 32.
- time before the cut: from the call of the user's training_step to the moment the cut is reached on the server, over
  the whole of its step (forward, backward, optimizer), for a deep cut, where most modules lie before it.
- launch: from the call of `fit` until the first smashed data is at the server, beyond the time from the call of `fit`
  until plain Lightning's first training_step begins, in fresh processes that have imported everything and run in turn;
  the cut is named. "cold": the cut has to be found and proven; "warm": it comes from the cache. A client's first
  forward pass is in both, as is the copying of its data. "forked" is from the first fork until all clients have said
  hello.

"ratio" is the launch, cold, in seconds over a goal of one second: what somebody waits for the first time.

    python -m benchmarks.overhead [--cut layer3] [--clients 8] [--pairs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import PAIRS, cell, interleaved, publish, quiet, quiet_trainer, spread
from benchmarks.models import MODELS
from benchmarks.models import Classifier as Plain
from lightning_edgesplit import EdgeSplitStrategy, launcher, strategy
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.splitting.step import ServerSide

GOAL = 1.0
"""Seconds from `fit` to the first smashed data of 8 forked clients, beyond plain Lightning's first step."""


class Classifier(Plain):
    """ResNet-18 that notes when its step begins.

    Attributes:
        first: When a step began first, `time.perf_counter`; None: not yet.
        began: When the last one did.
    """

    def __init__(self) -> None:
        super().__init__(MODELS["resnet18_7x7"].make())
        self.first: float | None = None
        self.began = 0.0

    def training_step(self, batch, batch_idx):
        self.began = time.perf_counter()
        self.first = self.first or self.began
        return super().training_step(batch, batch_idx)


def fit(module, split: EdgeSplitStrategy | str, samples: int, epochs: int) -> float:
    """Trains; returns when `fit` was called."""
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    trainer, loader = quiet_trainer(strategy=split, max_epochs=epochs), DataLoader(data, batch_size=32)
    called = time.perf_counter()
    trainer.fit(module, loader)
    return called


def traffic(cut: str) -> tuple[float, float]:
    """Bytes on the wire over payload of a round of one client, and the share of server time before the cut."""
    module, before, receiving = Classifier(), [], ServerSide.receiving

    def watched(self, tensors, outputs, notes, send, at_cut=lambda: None, entering=()):
        def reached() -> None:
            before.append(time.perf_counter() - module.began)
            at_cut()

        return receiving(self, tensors, outputs, notes, send, reached, entering)

    steps, split = 16, EdgeSplitStrategy(clients=1, cuts=cut)
    ServerSide.receiving = watched
    try:
        fit(module, split, samples=32 * steps, epochs=2)
    finally:
        ServerSide.receiving = receiving
    report, (client,) = split.rounds[-1], split.rounds[-1].clients
    profile = split.cuts.find(cut).profile
    payload = steps * 32 * (profile.smashed_bytes + profile.gradient_bytes) + 2 * profile.weight_bytes
    share = sum(before[-steps:]) / report.server_seconds
    return (client.bytes_up + client.bytes_down) / payload, share


def launch(clients: int, cut: str) -> dict[str, float]:
    """From `fit` to the first smashed data, and from the first fork until all clients have said hello; seconds."""
    moments: dict[str, float] = {}
    fork, server, arrival = launcher.ForkLauncher, strategy.Server, Server.arrival

    class Timed(fork):
        def __init__(self, *arguments) -> None:
            moments["fork"] = time.perf_counter()
            super().__init__(*arguments)

    def greeted(*arguments, **options):
        made = server(*arguments, **options)
        moments["hello"] = time.perf_counter()
        return made

    def arrived(self):
        result = arrival(self)
        moments.setdefault("smashed", time.perf_counter())
        return result

    launcher.ForkLauncher, strategy.Server, Server.arrival = Timed, greeted, arrived
    called = fit(Classifier(), EdgeSplitStrategy(clients=clients, cuts=cut), samples=32 * clients, epochs=1)
    return {"first": moments["smashed"] - called, "forked": moments["hello"] - moments["fork"]}


def plain(clients: int) -> dict[str, float]:
    """From `fit` to the beginning of plain Lightning's first step, on the same data; seconds."""
    module = Classifier()
    called = fit(module, "auto", samples=32 * clients, epochs=1)
    assert module.first is not None
    return {"first": module.first - called}


def in_its_own_process(side: str, cache: Path | None, options: argparse.Namespace) -> dict[str, float]:
    """One of the two above in a fresh interpreter, whose first `fit` it is."""
    command = [
        sys.executable, "-m", "benchmarks.overhead", "--side", side, "--cut", options.cut,
        "--clients", str(options.clients), "--threads", str(options.threads),
    ]  # fmt: skip
    environment = {**os.environ, "EDGESPLIT_CACHE": "" if cache is None else str(cache)}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(ran.stdout.splitlines()[-1])


def launches(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Plain Lightning, a launch with an empty cache, and one with what that has left in it; in turn."""
    with tempfile.TemporaryDirectory() as folder:
        made: list[Path] = []

        def cold() -> dict[str, float]:
            made.append(Path(folder, str(len(made))))
            return in_its_own_process("split", made[-1], options)

        warm = Path(folder, "warm")
        in_its_own_process("split", warm, options)
        sides = {
            "plain": partial(in_its_own_process, "plain", None, options),
            "cold": cold,
            "warm": partial(in_its_own_process, "split", warm, options),
        }
        return interleaved(options.pairs, sides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", default="layer3")
    parser.add_argument("--clients", type=int, default=8, help="that are launched")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=("plain", "split"), help=argparse.SUPPRESS)  # one launch, in this process
    options = parser.parse_args()
    quiet(options.threads)
    if options.side:
        seconds = plain(options.clients) if options.side == "plain" else launch(options.clients, options.cut)
        print(json.dumps(seconds))
        return
    wire, share = traffic(options.cut)
    times = launches(options)
    first = {side: [own["first"] for own in rows] for side, rows in times.items()}
    beyond = {
        side: [ours - theirs for ours, theirs in zip(first[side], first["plain"], strict=True)]
        for side in ("cold", "warm")
    }
    forked = [own["forked"] for own in (*times["cold"], *times["warm"])]
    clients = f"{options.clients} clients"
    table = Table("what", "value", title=f"ResNet-18, 32×32, batch 32, cut {options.cut}, {options.threads} threads")
    table.add_row("bytes on the wire over payload", f"{wire:.5f}")
    table.add_row("server's time before the cut", f"{share:.2%}")
    table.add_row("plain Lightning, until its first step, s", cell(first["plain"], ".2f"))
    for side, said in (("cold", "cut proven anew"), ("warm", "cut from the cache")):
        table.add_row(f"{clients}, until the first smashed data, {said}, s", cell(first[side], ".2f"))
        table.add_row("  beyond plain Lightning, s", cell(beyond[side], ".2f"))
    table.add_row(f"{clients}, first fork until all have said hello, s", cell(forked, ".2f"))
    figures = {
        "ratio": statistics.median(beyond["cold"]) / GOAL,
        "beyond_seconds": statistics.median(beyond["cold"]),
        "beyond_seconds_warm": statistics.median(beyond["warm"]),
        "plain_first_step_s": statistics.median(first["plain"]),
        "spread": {
            "ratio": [value / GOAL for value in spread(beyond["cold"])],
            "beyond_seconds": spread(beyond["cold"]),
            "beyond_seconds_warm": spread(beyond["warm"]),
            "launch_s": spread(forked),
        },
        "wire_over_payload": wire,
        "server_before_cut_share": share,
        "launch_s": statistics.median(forked),
        f"launch_{options.clients}_clients_s": statistics.median(forked),
    }
    publish(figures, table, width=110)


if __name__ == "__main__":
    main()
