"""What one model of the zoo is, and the LightningModules that the models of libraries are put into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Module(L.LightningModule):
    """Any network with a loss; a small rate, so that rounding does not grow over the steps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=1e-3, momentum=0.9)


class Classifier(Module):
    """Images and labels; auxiliary outputs count with 0.3, as GoogLeNet's authors do."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        output = self.net(images)
        outputs = output if isinstance(output, tuple) else (output,)
        loss = F.cross_entropy(outputs[0], labels)
        for auxiliary in outputs[1:]:
            loss = loss + 0.3 * F.cross_entropy(auxiliary, labels)
        return loss


class Segmenter(Module):
    """Images and a class per pixel."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, classes = batch
        output = self.net(images)
        loss = F.cross_entropy(output["out"], classes)
        return loss + 0.5 * F.cross_entropy(output["aux"], classes) if "aux" in output else loss


class Detector(Module):
    """Images of different sizes and boxes, as torchvision's detectors take them."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        return sum(self.net(images, targets).values())  # type: ignore[return-value]


class HuggingFace(Module):
    """A model of Hugging Face, which has its loss in it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(**batch).loss
        return loss


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: Its name.
        library: Where it comes from; what has to be installed.
        module: Makes the LightningModule, with random weights.
        batch: Makes one batch.
        private: As `lightning_edgesplit.EdgeSplitStrategy` has it.
        second_cut: The same: where the step comes back, so that labels stay; None: it does not.
    """

    name: str
    library: str
    module: Callable[[], L.LightningModule]
    batch: Callable[[], Any]
    private: Sequence[str] | None = None
    second_cut: str | None = None


def images(size: int, classes: int = 10, samples: int = 2) -> Callable[[], Any]:
    """Makes batches of random images and labels."""
    return lambda: (torch.randn(samples, 3, size, size), torch.randint(0, classes, (samples,)))


def words(samples: int = 2, length: int = 6, vocabulary: int = 50) -> Tensor:
    """Random token numbers, [samples, length]; 0 is left for padding."""
    return torch.randint(1, vocabulary, (samples, length))
