"""Makes the embedded data set: a balanced, seeded subset of Fashion-MNIST (Zalando SE, MIT licence).

python tools/make_fashion_mnist_mini.py --raw FOLDER   # with the four idx .gz files as Zalando publishes them
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parent.parent / "lightning_edgesplit" / "data" / "fashion_mnist_mini.npz"


def read(raw: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and labels [n] of one part."""
    images = gzip.decompress((raw / f"{stem}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((raw / f"{stem}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def subset(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """`per_class` images of each class, shuffled."""
    random = np.random.default_rng(0)
    chosen = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(10)])
    chosen = random.permutation(chosen)
    return images[chosen], labels[chosen]


def main() -> None:
    """Reads, chooses, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True)
    raw = parser.parse_args().raw
    train, test = subset(*read(raw, "train"), 200), subset(*read(raw, "t10k"), 50)
    np.savez_compressed(TARGET, train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1])


if __name__ == "__main__":
    main()
