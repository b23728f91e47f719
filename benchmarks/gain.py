"""The gain of `joint` over `edgesplit` as measured on the wall clock, beside the gain as simulated.

A sample of configs/suite/, with smaller batches and fewer local steps. All devices and links are slowed down by one
factor, so that this machine can be all of them at once (`--speed`: FLOP/s that it is asked for in all); plans and gains
do not change with it, for every time of a round grows alike. Both policies train the same module on the same data, and
the weights afterwards must be equal to the last bit.

    python -m benchmarks.gain [--only "resnet18 boards"]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from dataclasses import replace

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.fidelity import Classifier
from benchmarks.suite import scenarios
from lightning_edgesplit import EdgeSplitStrategy

SAMPLE = ("resnet18 boards server-cpu 200 ", "vgg11_bn boards server-cpu 50 ", "vgg11_bn boards server-cpu 200 ")


def fit(scenario, policy: str, clock: str, factor: float, batch: int, steps: int):
    """A round of a slowed-down scenario; its seconds at full speed, the overrun, and the weights."""
    torch.manual_seed(1)

    def slower(value: float | None) -> float | None:
        return None if value is None else value / factor

    clients = [
        replace(
            own, flops=slower(own.flops), uplink=slower(own.uplink), downlink=slower(own.downlink),
            latency=own.latency * factor,
        )
        for own in scenario.clients
    ]  # fmt: skip
    server = scenario.server
    server = replace(server, flops=slower(server.flops), uplink=slower(server.uplink), downlink=slower(server.downlink))
    samples = len(clients) * batch * steps
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    strategy = EdgeSplitStrategy(clients, policy, server=server, clock=clock, round_steps=steps, timeout=300)
    module = Classifier(scenario.name.split()[0])
    if hasattr(module.net, "conv1"):  # the stem for 32×32, as in the suite's costs
        module.net.conv1, module.net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    trainer = L.Trainer(
        strategy=strategy, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=batch))
    (report,) = strategy.rounds
    overrun = max(client.overrun for client in report.clients)
    return report.seconds / factor, overrun / factor, module.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenarios of the sample with this in their names")
    parser.add_argument("--speed", type=float, default=40e9, help="FLOP/s of all devices together, slowed down")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    begun, kept = time.perf_counter(), []
    table = Table(title="seconds of a round at full speed, and the gain of joint over edgesplit")
    for header in ("scenario", "slowed by", "edgesplit: simulated", "measured", "joint: simulated", "measured", "gain:"
                   " simulated", "measured", "overrun"):  # fmt: skip
        table.add_column(header, justify="left" if header == "scenario" else "right")
    for scenario in (own for name in SAMPLE for own in scenarios(name) if options.only in own.name):
        factor = (scenario.server.flops + sum(client.flops for client in scenario.clients)) / options.speed
        seconds, overrun, weights = {}, 0.0, []
        for policy in ("edgesplit", "joint"):
            for clock in ("virtual", "wall"):
                print(scenario.name, policy, clock, file=sys.stderr)
                seconds[policy, clock], late, end = fit(scenario, policy, clock, factor, options.batch, options.steps)
                overrun = max(overrun, late)
                weights.append(end)
        same = all(
            torch.equal(a, b) for end in weights[1:] for a, b in zip(end.values(), weights[0].values(), strict=True)
        )
        gains = [seconds["edgesplit", clock] / seconds["joint", clock] for clock in ("virtual", "wall")]
        kept.append((gains[1] / gains[0], same))
        cells = [seconds[policy, clock] for policy in ("edgesplit", "joint") for clock in ("virtual", "wall")]
        table.add_row(
            scenario.name, f"{factor:.0f}", *(f"{s:.3f}" for s in cells), *(f"{g:.2f}" for g in gains), f"{overrun:.3f}"
        )
    Console(width=180).print(table)
    print(
        json.dumps(
            {
                "measured_over_simulated_median": round(statistics.median(ratio for ratio, _ in kept), 3),
                "measured_over_simulated_min": round(min(ratio for ratio, _ in kept), 3),
                "same_weights": all(same for _, same in kept),
                "seconds": round(time.perf_counter() - begun),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": {"torch": torch.__version__, "lightning": L.__version__},
                "command": "python -m benchmarks.gain " + " ".join(sys.argv[1:]),
            }
        )
    )


if __name__ == "__main__":
    main()
