"""How much memory a client needs at a shallow, a middle and a deep cut, beside plain Lightning.

Every row is a process of its own, which takes three steps with one thread: plain ones, or a client's against a server
in another process. "peak" is the growth of the process's largest resident size over what it had before its first step's
model was made; "counted" is weights, gradients, optimizer state and activations as `find_cuts` counts them.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
import torchvision
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import publish, quiet
from lightning_edgesplit.splitting import END, Cut, find_cuts
from lightning_edgesplit.splitting.sides import Sides
from lightning_edgesplit.splitting.step import run_client_side

STEPS = 3


class Classifier(L.LightningModule):
    """Any network with a cross-entropy loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


def vgg16() -> nn.Module:
    """VGG-16-BN for 32×32: the convolutions of torchvision's, and one linear layer, as is usual at that size."""
    features = torchvision.models.vgg16_bn().features
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512, 10))


def vit() -> nn.Module:
    return torchvision.models.vit_b_16(num_classes=10)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int, tuple[str, ...]]] = {  # side, batch, cuts
    "ResNet-18": (resnet18, 32, 64, ("net.maxpool", "net.layer2", "net.layer4")),
    "VGG-16-BN": (vgg16, 32, 64, ("net.0.6", "net.0.23", "net.0.43")),
    "ViT-B": (
        vit, 224, 4,
        ("net.encoder.layers.encoder_layer_0", "net.encoder.layers.encoder_layer_5",
         "net.encoder.layers.encoder_layer_11"),
    ),
}  # fmt: skip


def memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the largest so far) of this process, bytes. Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not say {field} in /proc/self/status")


def run(model: str, cut: Cut | None, results: multiprocessing.Queue) -> None:
    """Takes steps in this process, whole or up to the cut, and reports how much its peak has grown."""
    torch.set_num_threads(1)
    make, side, batch_size, _ = MODELS[model]
    batch = torch.randn(batch_size, 3, side, side), torch.randint(0, 10, (batch_size,))
    torch.randn(8, 8) @ torch.randn(8, 8)  # libraries
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far starts anew: it is inherited
    before = memory("VmRSS")
    with torch.device("meta"):  # what is not this process's own never gets memory
        module = Classifier(make()).train()
    mine = set(Sides(module).names if cut is None else cut.client)
    for name in mine:
        owner, _, key = name.rpartition(".")
        entries = module.get_submodule(owner)._parameters
        if key in entries:
            entries[key] = nn.Parameter(torch.zeros_like(entries[key], device="cpu"))
        else:
            buffers = module.get_submodule(owner)._buffers
            buffers[key] = torch.zeros_like(buffers[key], device="cpu")
    sides = Sides(module)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d) and child.weight is not None and not child.weight.is_meta:
            nn.init.ones_(child.weight)
    own = [p for name, p in sides.parameters.items() if name in mine]
    optimizer = torch.optim.SGD(own, lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        if cut is None:
            module.training_step(batch, 0).backward()
        else:
            assert cut.border is not None
            part = run_client_side(module, cut.border, batch, 0)
            part.backward(cut.border, [torch.zeros_like(x) for x in part.tensors])
        optimizer.step()
    results.put(memory("VmHWM") - before)


def measured(model: str, cut: Cut | None) -> int:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=run, args=(model, cut, results))
    process.start()
    grown = results.get(timeout=300)
    process.join()
    return int(grown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(MODELS), help="one model")
    options = parser.parse_args()
    quiet(threads=1)
    table = Table("model", "batch", "cut", "counted", "peak", "counted / plain", "peak / plain", title="client memory")
    rows = []
    for model, (make, side, batch_size, names) in MODELS.items():
        if options.only not in (None, model):
            continue
        module = Classifier(make()).train()
        images, labels = torch.randn(2, 3, side, side), torch.randint(0, 10, (2,))
        wanted = frozenset(names)
        cuts = find_cuts(module, (images, labels), module.configure_optimizers(), only=wanted.__contains__)
        del module

        def counted(cut: Cut, batch_size: int = batch_size) -> float:
            profile = cut.profile
            assert profile is not None
            fixed = profile.weight_bytes + profile.parameter_bytes + (profile.optimizer_bytes or 0)
            return fixed + batch_size * profile.activation_bytes

        plain, plain_peak = counted(cuts.find(END)), measured(model, None)
        for name in (*names, None):
            cut = None if name is None else cuts.find(name)
            size = plain if cut is None else counted(cut)
            peak = plain_peak if cut is None else measured(model, cut)
            row = {
                "model": model, "cut": name or "plain", "counted": size, "peak": peak,
                "counted_over_plain": size / plain, "peak_over_plain": peak / plain_peak,
            }  # fmt: skip
            rows.append(row)
            table.add_row(
                model, str(batch_size), row["cut"], f"{size / 1e6:.0f} MB", f"{peak / 1e6:.0f} MB",
                f"{size / plain:.2f}", f"{peak / plain_peak:.2f}",
            )  # fmt: skip
    shallow = {row["model"]: row for row in reversed(rows) if row["cut"] == MODELS[row["model"]][3][0]}
    figures = {}
    if "VGG-16-BN" in shallow:
        figures = {
            "vgg16_shallow_over_plain": shallow["VGG-16-BN"]["counted_over_plain"],
            "vgg16_shallow_peak_over_plain": shallow["VGG-16-BN"]["peak_over_plain"],
        }
    publish({**figures, "rows": rows}, table, width=130)


if __name__ == "__main__":
    main()
