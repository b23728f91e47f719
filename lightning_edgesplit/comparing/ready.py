"""Models and data for comparisons by name: `model: resnet18`, `data: fashion_mnist_mini`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_edgesplit.data import FashionMNISTMini

__all__ = ["cifar10", "cnn", "fashion_mnist", "fashion_mnist_mini", "resnet18", "vgg11"]


class Classifier(pl.LightningModule):
    """An ordinary LightningModule of a network for images: SGD with momentum, a cosine over the epochs.

    Args:
        net: The network, images [batch, 3, 32, 32] to scores [batch, classes].
        lr: Learning rate at first.
        momentum: Of SGD.
        weight_decay: Of SGD.
    """

    def __init__(self, net: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        super().__init__()
        self.net, self._lr, self._momentum, self._decay = net, lr, momentum, weight_decay

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch (images, labels)."""
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs ``val_loss`` and ``val_accuracy``."""
        scores = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_accuracy", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        """SGD, and a step of the schedule per epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self._lr, momentum=self._momentum, weight_decay=self._decay)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)]


def cnn(width: int = 24, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 5e-4) -> Classifier:
    """Six convolutions and a linear layer: small enough for a comparison in minutes, with most weights behind."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    body = (
        block(3, width, 2), block(width, width, 1), block(width, 2 * width, 2), block(2 * width, 2 * width, 1),
        block(2 * width, 4 * width, 2), block(4 * width, 8 * width, 1),
    )  # fmt: skip
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))
    return Classifier(nn.Sequential(*body, *head), lr, momentum, weight_decay)


def resnet18(classes: int = 10, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 5e-4) -> Classifier:
    """ResNet-18 of torchvision with the stem that is usual for 32×32 images."""
    from torchvision.models import resnet18 as torchvisions

    net = torchvisions(num_classes=classes)
    net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return Classifier(net, lr, momentum, weight_decay)


def vgg11(classes: int = 10, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 5e-4) -> Classifier:
    """VGG-11 of torchvision with batch norm and the classifier that is usual for 32×32 images: one linear layer."""
    from torchvision.models import vgg11_bn

    net = vgg11_bn(num_classes=classes)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Linear(512, classes)
    return Classifier(net, lr, momentum, weight_decay)


class Images(pl.LightningDataModule):
    """Training and test images as Lightning's data module.

    Args:
        train: Gives the training set.
        test: Gives the test set, which is what is validated on.
        batch_size: Samples per client and local step.
    """

    def __init__(self, train: Any, test: Any, batch_size: int) -> None:
        super().__init__()
        self._train, self._test, self.batch_size = train, test, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled."""
        return DataLoader(self._train(), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self._test(), batch_size=100)


def fashion_mnist_mini(batch_size: int = 32) -> Images:
    """The 2,000 and 500 images that come with the package."""
    return Images(lambda: FashionMNISTMini(train=True), lambda: FashionMNISTMini(train=False), batch_size)


def cifar10(root: str = "data", batch_size: int = 32) -> Images:
    """CIFAR-10 (50,000 and 10,000 images), from `root`, or downloaded there; random crops and flips in training."""
    return _torchvisions("CIFAR10", root, batch_size, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def fashion_mnist(root: str = "data", batch_size: int = 32) -> Images:
    """Fashion-MNIST (60,000 and 10,000 images), as 3×32×32, otherwise as `cifar10`."""
    return _torchvisions("FashionMNIST", root, batch_size, (0.2860,) * 3, (0.3530,) * 3)


def _torchvisions(name: str, root: str, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    from torchvision import datasets
    from torchvision.transforms import v2

    image = [v2.RGB(), v2.ToImage(), v2.Resize((32, 32))]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    augmented = v2.Compose([*image, v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *scale])
    plain = v2.Compose([*image, *scale])

    def split(train: bool) -> Any:
        try:
            return getattr(datasets, name)(
                Path(root), train=train, transform=augmented if train else plain, download=True
            )
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{name} is neither in root={root!r} nor can it be downloaded: {error}") from error

    return Images(lambda: split(True), lambda: split(False), batch_size)
