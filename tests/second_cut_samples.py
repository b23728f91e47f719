"""Modules whose steps can come back to the client in ways that differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class UNet(nn.Module):
    """Goes down and up again; the first layer's output is used by the last one too."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bottom, self.up = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 10, 3, padding=1)

    def forward(self, x):
        skip = self.down(x)
        deep = self.up(F.relu(self.bottom(self.middle(skip))))
        return self.last(torch.cat([skip, deep], 1)).mean((2, 3))


@dataclass
class Hidden:
    state: torch.Tensor
    note: str


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return Hidden(self.second(self.first(x).relu_()), "encoded")


class Structured(nn.Module):
    """Outputs are dataclasses; a number is read off a tensor between the cuts, and used behind the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.encoder, self.head = nn.Linear(12, 12), Encoder(), nn.Linear(12, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        hidden = self.encoder(self.front(x))
        length = int(hidden.state.detach().abs().sum().item()) % 3 + 1
        return self.head(self.dropout(hidden.state).relu_()) * length


class WithToken(nn.Module):
    """A parameter without a module is joined to the sequence between the cuts, and noise is drawn there."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.middle, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.token, self.dropout = nn.Parameter(torch.randn(1, 1, 8)), nn.Dropout(0.2)

    def forward(self, x):
        x = self.front(x.unflatten(1, (3, 4)))
        x = torch.cat([self.token.expand(len(x), -1, -1), x + 0.1 * torch.randn_like(x)], 1)
        return self.head(self.dropout(self.middle(x)).mean(1))


class Tied(nn.Module):
    """Words in, words out: the embedding is the last layer's weight too, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(10, 12), nn.Sequential(nn.Linear(12, 12), nn.GELU(), nn.Dropout(0.1))
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12, 10, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.norm(self.block(self.words(x)))).mean(1)
