"""What splitting adds: bytes on the wire over payload, the server's time before the cut, and the launch of clients.

- wire over payload: what the links counted in a round over the tensors that had to travel (smashed data, labels,
  gradients, client-side weights both ways), ResNet-18, 32×32, batch 32.
- time before the cut: from the call of the user's training_step to the moment the cut is reached on the server, over
  the whole of its step (forward, backward, optimizer), for a deep cut, where most modules lie before it.
- launch: from the first fork to the moment that all clients have said hello.

    python benchmarks/overhead.py [--cut layer3] [--clients 8]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from lightning_edgesplit import EdgeSplitStrategy, strategy
from lightning_edgesplit.splitting.step import ServerSide


class Classifier(L.LightningModule):
    """ResNet-18 that notes when its step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)
        self.began = 0.0

    def training_step(self, batch, batch_idx):
        self.began = time.perf_counter()
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fit(module, clients: int, samples: int, **options) -> EdgeSplitStrategy:
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    split = EdgeSplitStrategy(clients=clients, **options)
    trainer = L.Trainer(
        strategy=split, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=32))
    return split


def traffic(cut: str) -> tuple[float, float]:
    """Bytes on the wire over payload of a round of one client, and the share of server time before the cut."""
    module, before, receiving = Classifier(), [], ServerSide.receiving

    def watched(self, tensors, outputs, notes, send, at_cut=lambda: None, entering=()):
        def reached() -> None:
            before.append(time.perf_counter() - module.began)
            at_cut()

        return receiving(self, tensors, outputs, notes, send, reached, entering)

    steps = 16
    ServerSide.receiving = watched
    try:
        split = fit(module, clients=1, samples=32 * steps, cuts=cut)
    finally:
        ServerSide.receiving = receiving
    report, (client,) = split.rounds[-1], split.rounds[-1].clients
    profile = split.cuts.find(cut).profile
    payload = steps * 32 * (profile.smashed_bytes + profile.gradient_bytes) + 2 * profile.weight_bytes
    share = sum(before[-steps:]) / report.server_seconds
    return (client.bytes_up + client.bytes_down) / payload, share


def launch_seconds(clients: int) -> float:
    """From the first fork until all clients have said hello."""
    moments: dict[str, float] = {}
    fork, server = strategy.ForkLauncher, strategy.Server

    class Timed(fork):
        def __init__(self, *arguments) -> None:
            moments["fork"] = time.perf_counter()
            super().__init__(*arguments)

    def greeted(*arguments, **options):
        made = server(*arguments, **options)
        moments["hello"] = time.perf_counter()
        return made

    strategy.ForkLauncher, strategy.Server = Timed, greeted
    try:
        fit(Classifier(), clients=clients, samples=32 * clients, cuts="layer3")
    finally:
        strategy.ForkLauncher, strategy.Server = fork, server
    return moments["hello"] - moments["fork"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", default="layer3")
    parser.add_argument("--clients", type=int, default=8, help="that are launched")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    wire, share = traffic(options.cut)
    launch = launch_seconds(options.clients)
    table = Table("what", "value", title=f"ResNet-18, 32×32, batch 32, cut {options.cut}, {options.threads} threads")
    table.add_row("bytes on the wire over payload", f"{wire:.5f}")
    table.add_row("server's time before the cut", f"{share:.2%}")
    table.add_row(f"launch of {options.clients} clients", f"{launch:.2f} s")
    Console().print(table)
    about = {"torch": torch.__version__, "lightning": L.__version__, "machine": platform.machine(), "argv": sys.argv}
    values = {
        "wire_over_payload": wire,
        "server_before_cut_share": share,
        f"launch_{options.clients}_clients_s": launch,
    }
    print(json.dumps({**values, **about}))


if __name__ == "__main__":
    main()
