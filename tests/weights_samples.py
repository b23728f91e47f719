"""A module with weights enough for their bytes to be seen, how to train it, and the rounding as the oracle has it."""

from __future__ import annotations

import torch
from small import Classifier, fit, vectors
from torch import nn

from lightning_edgesplit import EdgeSplitStrategy

PARTS = [list(range(20)), list(range(20, 32))]


class Wide(Classifier):
    """Weights enough for their bytes to be seen; batch norm, so that there are buffers too."""

    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))

    def __init__(self) -> None:
        layers = nn.Linear(12, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10)
        super().__init__(nn.Sequential(*layers))


def rounded(x, how):
    """The oracle's rounding: what comes out of it, in the type that went in."""
    if how == "bfloat16":
        return x.to(torch.bfloat16).to(x.dtype)
    count = len(x) if x.ndim > 1 else 1
    if x.numel() + 8 * count + 40 >= x.nbytes:
        return x
    rows = x.reshape(count, -1).float()
    low, high = rows.min(1, keepdim=True).values, rows.max(1, keepdim=True).values
    level = (high - low) / 255
    level[level == 0] = 1
    return (torch.round((rows - low) / level).clamp(0, 255) * level + low).reshape(x.shape).to(x.dtype)


def train(cut, how, module=Wide, epochs=3, parts=PARTS, **options):
    """Trains split between clients: what it is then, what the oracle starts from, the data, and the strategy."""
    torch.manual_seed(1)
    own, data = module(), vectors(32)
    torch.manual_seed(1)
    plain = module()
    trainer_options = {key: options.pop(key) for key in ("precision", "callbacks", "max_steps") if key in options}
    strategy = EdgeSplitStrategy(
        **{"clients": len(parts), "cuts": cut, "partition": parts, "weight_compression": how, **options}
    )
    fit(own, data, strategy, batch_size=4, epochs=epochs, **trainer_options)
    return own, plain, data, strategy
