"""Image classifiers for 32×32 that the scripts train, by name, each with four cuts from shallow to deep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer, resnet18, vgg11_bn


class Classifier(L.LightningModule):
    """Any network with a cross-entropy loss, SGD with momentum; notes when each epoch begins and the last one ends.

    Attributes:
        epochs: Moments, seconds of `time.perf_counter`.
    """

    def __init__(self, net: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.net, self._lr = net, lr
        self.epochs: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append(time.perf_counter())

    def on_train_end(self) -> None:
        self.epochs.append(time.perf_counter())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self._lr, momentum=0.9)


def resnet18_7x7() -> nn.Module:
    """Torchvision's, with its 7×7 stem of stride 2 and pooling: steps of a few milliseconds, overhead shows."""
    return resnet18(num_classes=10)


def resnet18_3x3() -> nn.Module:
    """With the stem that is usual for 32×32, 3×3 of stride 1 and no pooling: 15 times the work per image."""
    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def vgg11() -> nn.Module:
    """VGG-11-BN with the classifier that is usual for 32×32: one linear layer."""
    net = vgg11_bn(num_classes=10)
    net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return net


def vit_tiny() -> nn.Module:
    """ViT-Ti (DeiT's width and depth) on 8×8 patches of 4×4."""
    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10
    )


@dataclass(frozen=True)
class Model:
    """A network to measure with.

    Attributes:
        make: Makes it; images [batch, 3, 32, 32] to scores [batch, 10].
        cuts: Four of its cuts, from shallow to deep.
        samples: Images per epoch, so that runs of all models take about as long.
    """

    make: Callable[[], nn.Module]
    cuts: tuple[str, str, str, str]
    samples: int


_RESNET = ("layer1", "layer2", "layer3", "layer4")
_BLOCK = "encoder.layers.encoder_layer_"

MODELS = {
    "resnet18_7x7": Model(resnet18_7x7, _RESNET, 2048),
    "resnet18_3x3": Model(resnet18_3x3, _RESNET, 512),
    "vgg11_bn": Model(vgg11, ("features.3", "features.7", "features.14", "features.21"), 1024),
    "vit_tiny": Model(vit_tiny, (f"{_BLOCK}1", f"{_BLOCK}3", f"{_BLOCK}5", f"{_BLOCK}7"), 512),
}
