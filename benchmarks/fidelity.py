"""How far the two clocks are apart, and the token bucket from the kernel's own shaper.

- clocks: the same rounds on the wall clock (throttled) and on the virtual one, ResNet-18 and VGG-11 at 32×32, 2 and 4
  clients, bound by their processors or by their links, with divided and with scheduled links. The error of a scenario
  is that of its round time (mean of its rounds); by phase it is that of the clients' sum. Where this
  machine was slower than an emulated device (overrun), the row says so. What a round really costs here beside the
  emulated times (copying and averaging models, messages) is some tenths of a second, whatever its local steps.
- shaper: messages through a link of `tc` (token bucket filter, one network namespace to another), beside the time that
  our token bucket gives them. The kernel counts whole frames, ours the bytes of messages, so the kernel's rate is taken
  times the payload's part of a full frame (1448 of 1514 bytes).

    python -m benchmarks.fidelity [--rounds 1] [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from itertools import product

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.runtime.throttle import TokenBucket
from lightning_edgesplit.scheduling import ClientProfile, Fixed, ServerProfile

BATCH, STEPS = 8, 8
PHASES = ("download", "forward", "uplink", "server", "downlink", "backward", "upload")
MIB = 2**20


class Classifier(L.LightningModule):
    """A torchvision model for ten classes at 32×32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = models.get_model(name, num_classes=10)
        if name.startswith("vgg"):  # a head of its own, instead of the 120 million weights for 224×224
            self.net.avgpool, self.net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Scheduled:
    """Cuts that are given, and links under a discipline."""

    name = "scheduled"

    def __init__(self, cut: str, discipline: str) -> None:
        self.cut, self.discipline = cut, discipline

    def plan(self, costs, clients, server, corrections=None):
        plan = Fixed((self.cut,) * len(clients)).plan(costs, clients, server, corrections)
        if self.discipline == "static":
            return plan
        count = len(clients)
        return replace(
            plan, disciplines=(self.discipline,) * 2, order="longest_first", shares=(1.0,) * count,
            uplink=(server.uplink,) * count, downlink=(server.downlink,) * count,
        )  # fmt: skip


def scenarios(quick: bool):
    """Name, model, cut, clients, server, discipline."""
    cuts = {"resnet18": "net.layer1", "vgg11": "net.features.5"}
    for model, (count, discipline), bound in product(cuts, ((2, "static"), (4, "longest_first")), ("compute", "links")):
        if quick and (count > 2 or model != "resnet18"):
            continue
        speed, rate = (0.4e9, 160e6) if bound == "compute" else (3.2e9, 16e6)
        clients = [ClientProfile(f"c{k}", flops=speed * (1 + k % 2), latency=0.002) for k in range(count)]
        server = ServerProfile(flops=8e9, uplink=rate, downlink=rate)
        yield f"{model}, {count} clients, {bound}, {discipline}", model, cuts[model], clients, server, discipline


def fit(model: str, cut: str, clients, server, discipline: str, clock: str, rounds: int):
    torch.manual_seed(1)
    samples = len(clients) * BATCH * STEPS * rounds
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    strategy = EdgeSplitStrategy(
        clients=clients, server=server, policy=Scheduled(cut, discipline), clock=clock, round_steps=STEPS
    )
    trainer = L.Trainer(
        strategy=strategy, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, deterministic=False,
    )  # fmt: skip
    trainer.fit(Classifier(model), DataLoader(data, batch_size=BATCH))
    return strategy.rounds


def phases(reports) -> dict[str, float]:
    """Seconds of all clients by phase, mean over rounds."""
    return {
        phase: statistics.mean(sum(c.seconds.get(phase, 0.0) for c in report.clients) for report in reports)
        for phase in PHASES
    }


def clocks(rounds: int, quick: bool, console: Console) -> list[float]:
    """Errors of the round time, one per scenario."""
    table = Table(title="wall clock over virtual clock, minus 1, in %")
    for header in ("scenario", "virtual s", "wall s", "apart s", "round", *PHASES, "overrun s"):
        table.add_column(header, justify="left" if header == "scenario" else "right")
    errors = []
    for name, *scenario in scenarios(quick):
        wall = fit(*scenario, clock="wall", rounds=rounds)
        virtual = fit(*scenario, clock="virtual", rounds=rounds)
        seconds = [statistics.mean(report.seconds for report in reports) for reports in (virtual, wall)]
        error = seconds[1] / seconds[0] - 1
        errors.append(abs(error))
        expected, real = phases(virtual), phases(wall)
        by_phase = [f"{100 * (real[p] / expected[p] - 1):+.1f}" if expected[p] > 0 else "" for p in PHASES]
        overrun = statistics.mean(max(client.overrun for client in report.clients) for report in wall)
        table.add_row(
            name,
            f"{seconds[0]:.2f}",
            f"{seconds[1]:.2f}",
            f"{seconds[1] - seconds[0]:+.2f}",
            f"{100 * error:+.1f}",
            *by_phase,
            f"{overrun:.2f}",
        )
    console.print(table)
    return errors


RECEIVE = """
import socket
with socket.create_server(("10.77.0.2", 7777)) as server:
    print("ready", flush=True)
    for _ in range({count}):
        link, _ = server.accept()
        with link:
            left = int(link.recv(16).decode())
            link.sendall(b"!")
            while left:
                left -= len(link.recv(min(left, 1 << 16)))
            link.sendall(b"!")
"""
SEND = """
import socket, sys, time
for size in {sizes}:
    with socket.create_connection(("10.77.0.2", 7777)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(str(size).rjust(16).encode())
        link.recv(1)
        begun = time.monotonic()
        link.sendall(bytes(size))
        link.recv(1)
        print(time.monotonic() - begun, flush=True)
"""


def shaper(console: Console) -> float | None:
    """The token bucket's error against `tc`; None where namespaces cannot be made."""
    if not shutil.which("tc") or not shutil.which("ip") or os.geteuid() != 0:
        console.print("shaper: skipped, it needs root, `ip` and `tc` (Debian's iproute2)")
        return None
    names = [f"edgesplit-{os.getpid()}-{side}" for side in "ab"]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, text=True)

    def inside(name: str, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
        )

    made, errors = [], []
    try:
        for name in names:
            run("ip", "netns", "add", name)
            made.append(name)
        run("ip", "-n", names[0], "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", names[1])
        for name, address in zip(names, ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            run("ip", "-n", name, "addr", "add", address, "dev", "link0")
            run("ip", "-n", name, "link", "set", "link0", "up")
            # frames of the size of a real link's: no offloading, which would hand on 64 KiB at once
            if shutil.which("ethtool"):
                run("ip", "netns", "exec", name, "ethtool", "-K", "link0", "tso", "off", "gso", "off", "gro", "off")
        table = Table(title="messages through tc's token bucket filter, and through ours")
        for header in ("rate Mbit/s", "MiB", "tc s", "ours s", "error %"):
            table.add_column(header, justify="right")
        sizes = [MIB // 2, MIB, 2 * MIB]
        for rate in (10e6, 50e6, 200e6):
            run(
                "ip", "netns", "exec", names[0], "tc", "qdisc", "replace", "dev", "link0", "root", "tbf",
                "rate", f"{rate:.0f}bit", "burst", "16kb", "limit", "512kb",
            )  # fmt: skip
            receiver = inside(names[1], RECEIVE.format(count=len(sizes)))
            assert receiver.stdout is not None
            receiver.stdout.readline()
            sender = inside(names[0], SEND.format(sizes=sizes))
            seconds = [float(line) for line in sender.communicate(timeout=120)[0].split()]
            receiver.wait(timeout=30)
            for size, real in zip(sizes, seconds, strict=True):
                ours = TokenBucket(rate * 1448 / 1514).transmit(size, 0.0)
                errors.append(abs(ours / real - 1))
                table.add_row(
                    f"{rate / 1e6:g}",
                    f"{size / MIB:g}",
                    f"{real:.3f}",
                    f"{ours:.3f}",
                    f"{100 * (ours / real - 1):+.1f}",
                )
        console.print(table)
    except (subprocess.CalledProcessError, OSError) as error:
        why = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        console.print(f"shaper: skipped, the kernel does not let us: {why}")
        return None
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)
    return max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="ResNet-18 with two clients only")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console, begun = Console(width=180), time.perf_counter()
    shaped = shaper(console)
    errors = clocks(options.rounds, options.quick, console)
    print(
        json.dumps(
            {
                "median_error": round(statistics.median(errors), 4),
                "worst_error": round(max(errors), 4),
                "shaper_error": None if shaped is None else round(shaped, 4),
                "seconds": round(time.perf_counter() - begun),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": {"torch": torch.__version__, "lightning": L.__version__},
                "command": "python -m benchmarks.fidelity " + " ".join(sys.argv[1:]),
            }
        )
    )


if __name__ == "__main__":
    main()
