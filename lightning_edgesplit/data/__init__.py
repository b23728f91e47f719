"""A small data set that ships with the package, so that the recipes run without a network."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset


class FashionMNISTMini(Dataset[tuple[Tensor, Tensor]]):
    """2,000 training and 500 test images of Fashion-MNIST, balanced over its ten classes (Zalando SE, MIT licence).

    Each item is an image [3, 32, 32], padded from 28×28, with three equal channels of zero mean and unit variance over
    the training images, and its label (int64, 0 to 9).

    Args:
        train: The training images, or the test images.
    """

    def __init__(self, train: bool) -> None:
        part = "train" if train else "test"
        with (files(__package__) / "fashion_mnist_mini.npz").open("rb") as file, np.load(file) as arrays:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
            reference = arrays["train_images"] / np.float32(255)
        scaled = (torch.from_numpy(images).float() / 255 - float(reference.mean())) / float(reference.std())
        background = -float(reference.mean()) / float(reference.std())
        self.images = pad(scaled, (2, 2, 2, 2), value=background)[:, None]
        self.targets = torch.from_numpy(labels).long()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].expand(3, -1, -1), self.targets[index]
