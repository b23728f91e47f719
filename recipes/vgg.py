"""VGG-11 or VGG-16 with batch norm, for 32x32 images, split across unequal clients.

python recipes/vgg.py configs/vgg11.yaml
python recipes/vgg.py configs/vgg16.yaml data.name=cifar10 --data-root ~/data trainer.max_epochs=100
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import torchvision
from omegaconf import MISSING, OmegaConf
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.data import FashionMNISTMini


@dataclass
class Data:
    """What is trained on."""

    name: str = "fashion-mnist-mini"
    batch_size: int = 32
    workers: int = 0


@dataclass
class Config:
    """What configs/*.yaml and the command line may say; any other key is an error."""

    seed: int = 0
    plain: bool = False
    data: Data = field(default_factory=Data)
    model: dict[str, str] = MISSING
    optimizer: dict[str, float] = field(default_factory=lambda: {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4})
    trainer: dict[str, Any] = field(default_factory=dict)
    edgesplit: dict[str, Any] = field(default_factory=dict)


def network(name: str, classes: int) -> nn.Module:
    """A torchvision VGG with batch norm and the classifier that is usual for 32x32 images: one linear layer."""
    net = {"vgg11": torchvision.models.vgg11_bn, "vgg16": torchvision.models.vgg16_bn}[name](num_classes=classes)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Linear(512, classes)
    return net


# mean and standard deviation of each set's training images, and its number of classes
SETS = {
    "fashion-mnist": (datasets.FashionMNIST, (0.2860,) * 3, (0.3530,) * 3, 10),
    "cifar10": (datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 10),
    "cifar100": (datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 100),
}


def data_sets(name: str, root: Path):
    """Training set, test set, and number of classes; images are [3, 32, 32]."""
    if name == "fashion-mnist-mini":
        return FashionMNISTMini(train=True), FashionMNISTMini(train=False), 10
    if name not in (*SETS, "folder"):
        raise SystemExit(f"data.name={name!r} is unknown: use fashion-mnist-mini, {', '.join(SETS)} or folder.")
    kind, mean, std, classes = SETS.get(name, (None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0))
    image = [v2.RGB(), v2.ToImage(), v2.Resize((32, 32))]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    train = v2.Compose([*image, v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *scale])
    test = v2.Compose([*image, *scale])
    if kind is None:
        folders = [datasets.ImageFolder(root / part, t) for part, t in (("train", train), ("val", test))]
        return *folders, len(folders[0].classes)
    try:
        return *(kind(root, train=t is train, transform=t, download=True) for t in (train, test)), classes
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"{name} is neither in --data-root={root} nor can it be downloaded: {error}") from error


class Classifier(L.LightningModule):
    """An ordinary LightningModule: it knows nothing of clients or cuts."""

    def __init__(self, net: nn.Module, optimizer: dict[str, float]) -> None:
        super().__init__()
        self.net, self.settings = net, optimizer

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_accuracy", (scores.argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), **self.settings)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="such as edgesplit.policy=exact")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    options = parser.parse_intermixed_args()
    overrides = OmegaConf.from_dotlist(options.overrides)
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(options.config), overrides)
    config = OmegaConf.to_object(merged)

    L.seed_everything(config.seed, workers=True)
    train, test, classes = data_sets(config.data.name, options.data_root)
    loader = {"batch_size": config.data.batch_size, "num_workers": config.data.workers}
    module = Classifier(network(config.model["name"], classes), config.optimizer)

    split = dict(config.edgesplit)
    if isinstance(split.get("clients"), str):
        split["clients"] = options.config.parent / split["clients"]
    strategy = "auto" if config.plain else EdgeSplitStrategy(**split)  # the one change
    trainer = L.Trainer(strategy=strategy, **config.trainer)
    trainer.fit(module, DataLoader(train, shuffle=True, **loader), DataLoader(test, **loader))
    (scores,) = trainer.validate(module, DataLoader(test, **loader), verbose=False)
    print(f"val_accuracy: {scores['val_accuracy']:.1%} after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
