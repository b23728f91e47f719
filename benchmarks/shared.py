"""Seconds of the server's part of a local step: one pass over clients of several depths, or client by client.

ResNet-18 on 32×32 images, 8 clients with batch 8 and four cuts. Both servers have the same server-side model and serve
the same recorded smashed data, without any client: ``server_model="shared"`` in one pass, in which the deeper clients'
samples come in at their cut, with one step of the optimizer; and arrival by arrival, each with its own, as
``"splitfed-v2"`` does. The pairs are run in turn, and each ratio is of one pair, so that what else the machine does
hits both. Taking frames from the links and encoding gradients counts; compute before the cuts, and links, do not.

    python benchmarks/shared.py [--cuts layer1 layer2] [--pairs 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import queue
import statistics
import sys
import time

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torchvision.models import resnet18

from lightning_edgesplit.runtime.seat import Orders
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.runtime.server_models import Shared, SplitFedV2
from lightning_edgesplit.runtime.wire import Frame, Kind, encode
from lightning_edgesplit.splitting import Cut, find_cuts
from lightning_edgesplit.splitting.mixing import mix
from lightning_edgesplit.splitting.step import run_client_side
from lightning_edgesplit.splitting.tree import flatten

CUTS = ["layer1", "layer2", "layer3", "layer4"]


class Classifier(L.LightningModule):
    """ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Recorded:
    """A link on which recorded frames arrive; what is sent is encoded, and goes nowhere."""

    def __init__(self) -> None:
        self.sent = self.received = 0
        self.frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()

    def send(self, frame: Frame, pace=None, wait: bool = True) -> int:
        return sum(map(len, encode(frame)))

    def receive(self) -> Frame:
        return self.frames.get()

    def close(self) -> None:
        self.frames.put(Frame(Kind.GOODBYE))


def smashed(module: Classifier, cut: Cut, batch: int) -> Frame:
    """What a client with that cut sends in a local step."""
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    part = run_client_side(module, cut.border, [images, labels], 0)
    about = {
        "index": 0, "samples": batch, "steps": True, "logged": [], "plain": [], "outputs": part.outputs,
        "shapes": [list(images.shape), list(labels.shape)],
    }  # fmt: skip
    return Frame(Kind.SMASHED, [*(x.detach() for x in part.tensors), labels], about)


class Part:
    """A server with links to nobody.

    Args:
        kind: How it serves them.
        module: Copied.
        cuts: One per client.
        mixture: The cuts, as those of one step.
        frames: What each client sends in every local step.
    """

    def __init__(self, kind, module: Classifier, cuts, mixture, frames) -> None:
        self.module, self.cuts, self.mixture, self.frames = copy.deepcopy(module), cuts, mixture, frames
        self.optimizer, self.links = self.module.configure_optimizers(), [Recorded() for _ in cuts]
        for link, frame in zip(self.links, frames, strict=True):
            link.frames.put(Frame(Kind.HELLO, about={"batches": 1, "samples": 1, "batch": frame.about["samples"]}))
        sample = flatten([torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,))])
        names = [f"client-{k}" for k in range(len(cuts))]
        self.server = Server(self.module, self.optimizer, self.links, names, sample, heartbeat=3600, kind=kind)

    def seconds(self, steps: int) -> float:
        """Seconds per local step of all clients."""
        orders = [Orders(cut, (1,) * steps) for cut in self.cuts]
        self.server.start_round(
            orders, {"accumulate": 1, "clip": None}, mixture=self.mixture, epoch=0, global_step=0, upload_state=False
        )
        for link, frame in zip(self.links, self.frames, strict=True):
            for _ in range(steps):  # what is received may be changed in place
                link.frames.put(Frame(frame.kind, [x.clone() for x in frame.tensors], frame.about))
        begun, last = time.perf_counter(), False
        while not last:
            last = self._serve()
        return (time.perf_counter() - begun) / steps

    def _serve(self) -> bool:
        """One arrival, as Lightning's loop serves it."""
        server = self.server
        client, frame = server.arrival()
        batch = server.batch_of(client, frame)
        with server.installed(client):
            server.before_backward(client)
            with server.stepping(client, frame, lambda *args, **kwargs: None):
                loss = self.module.training_step(batch, 0)
            loss.backward()
            server.after_backward(client)
            self.optimizer.step()
            server.drop_gradients(client)
        return server.served(client)

    def close(self) -> None:
        """Ends the threads."""
        self.server.abandon()
        self.server.join(timeout=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", nargs="+", default=CUTS, help="dealt out to the clients in turn")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="local steps that are timed in each run")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="torch threads, the cores of the server")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    L.seed_everything(0, verbose=False)
    module, sample = Classifier(), [torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))]
    found = find_cuts(module, sample, only=options.cuts)
    different = [cut for cut in found if cut.name in {found.find(name).name for name in options.cuts}]
    mixture = mix(module, sample, different) if len(different) > 1 else None
    cuts = [found.find(options.cuts[k % len(options.cuts)]) for k in range(options.clients)]
    frames = [smashed(module, cut, options.batch) for cut in cuts]
    parts = {kind.name: Part(kind, module, cuts, mixture, frames) for kind in (Shared(), SplitFedV2())}

    title = f"server's part, {options.clients} clients, batch {options.batch}, {options.threads} threads"
    table = Table(title=title)
    for column in ("pair", "one by one, ms per local step", "one pass, ms", "ratio"):
        table.add_column(column, justify="right")
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    try:
        for part in parts.values():
            part.seconds(2)  # not counted
        for pair in range(options.pairs):
            for name in list(parts)[:: 1 if pair % 2 else -1]:
                seconds[name].append(parts[name].seconds(options.steps))
            own, together = seconds["splitfed-v2"][-1], seconds["shared"][-1]
            table.add_row(str(pair), f"{own * 1e3:.1f}", f"{together * 1e3:.1f}", f"{own / together:.3f}")
    finally:
        for part in parts.values():
            part.close()
    ratios = [own / together for own, together in zip(seconds["splitfed-v2"], seconds["shared"], strict=True)]
    ratio = statistics.median(ratios)
    spread = f"median {ratio:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}"
    Console().print(table, f"{spread}; cuts: {', '.join(cut.name for cut in cuts)}")
    about = {"torch": torch.__version__, "lightning": L.__version__, "machine": platform.machine(), "argv": sys.argv}
    print(json.dumps({"ratio": ratio, "ratios": ratios, "seconds": seconds, **about}))


if __name__ == "__main__":
    main()
