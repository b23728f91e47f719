"""Steps of every shape: sequences, graphs, several inputs, several losses, frozen parts, odd batches."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from benchmarks.zoo.entry import Entry, Module, words


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Recurrent(Module):
    """Padded sequences of features, packed before and unpacked behind two recurrent layers."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__(nn.ModuleDict({"first": kind(5, 8, batch_first=True), "second": kind(8, 8, batch_first=True)}))
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        packed = pack_padded_sequence(batch["x"], batch["lengths"], batch_first=True, enforce_sorted=False)
        hidden, _ = self.net["second"](self.net["first"](packed)[0])
        last = pad_packed_sequence(hidden, batch_first=True)[0].sum(1)
        return F.cross_entropy(self.head(last), batch["y"])


class Encoder(Module):
    """Words through a transformer encoder with a padding mask, which comes with the batch or is computed."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        super().__init__(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
        self.words, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        numbers, labels = batch["words"], batch["y"]
        padding = batch.get("padding", numbers == 0)
        return F.cross_entropy(self.head(self.net(self.words(numbers), src_key_padding_mask=padding).mean(1)), labels)


class Audio(Module):
    """Waveforms through convolutions, a GRU and a mean over time, in log-mel style."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv1d(1, 8, 9, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 5, 2)))
        self.gru, self.head = nn.GRU(8, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features = self.net(batch[0][:, None]).transpose(1, 2)
        return F.cross_entropy(self.head(self.gru(features)[0].mean(1)), batch[1])


class TwoTowers(Module):
    """Two inputs, each with an encoder of its own."""

    def __init__(self) -> None:
        super().__init__(perceptron(6, 8, 8))
        self.other, self.head = perceptron(4, 8, 8), perceptron(16, 8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        both = torch.cat([self.net(batch["user"]), self.other(batch["item"])], 1)
        return F.cross_entropy(self.head(both), batch["y"])


class Graph(Module):
    """Message passing along edges; nodes are the batch's first dimension."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)]))
        self.head = nn.Linear(8, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, edges, y = batch
        for layer in self.net:
            x = F.relu(layer(x))
            x = x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return F.cross_entropy(self.head(x), y)


class Autoencoder(Module):
    """The loss needs the input again."""

    def __init__(self) -> None:
        super().__init__(perceptron(12, 8, 4, 8, 12))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch), batch)


class Variational(Module):
    """A bottleneck of random numbers."""

    def __init__(self) -> None:
        super().__init__(perceptron(12, 8, 8))
        self.decoder = perceptron(4, 8, 12)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean, scale = self.net(batch["x"]).chunk(2, 1)
        z = mean + torch.randn_like(mean) * scale.exp()
        return F.mse_loss(self.decoder(z), batch["target"]) + 0.1 * (mean.square() + scale.exp() - scale).mean()


class Contrastive(Module):
    """Two views through one encoder, one after the other."""

    def __init__(self) -> None:
        super().__init__(perceptron(12, 16, 16))
        self.projection = perceptron(16, 8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        one, two = (F.normalize(self.projection(self.net(view)), dim=1) for view in batch)
        return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(one)))


class ContrastiveTogether(Contrastive):
    """Two views through one encoder, as one batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        one, two = F.normalize(self.projection(self.net(torch.cat(list(batch)))), dim=1).chunk(2)
        return F.cross_entropy(one @ two.T / 0.1, torch.arange(len(one)))


class SeveralLosses(Module):
    """A trunk with two heads."""

    def __init__(self) -> None:
        super().__init__(perceptron(12, 16, 16))
        self.classes, self.value = perceptron(16, 8, 3), perceptron(16, 8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        trunk = self.net(batch.x)
        loss = F.cross_entropy(self.classes(trunk), batch.y.cls)
        return {"loss": loss + 0.5 * F.mse_loss(self.value(trunk)[:, 0], batch.y.value)}


class Distillation(Module):
    """A frozen teacher beside the student."""

    def __init__(self) -> None:
        super().__init__(perceptron(12, 8, 8, 3))
        self.teacher = perceptron(12, 32, 3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(batch[0]).softmax(1)
        return F.cross_entropy(self.net(batch[0]), wanted) + F.cross_entropy(self.net(batch[0]), batch[1])


class Checkpointed(Module):
    """Activations are computed again in the backward pass, dropout included."""

    def __init__(self) -> None:
        blocks = [nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Dropout(0.2)) for _ in range(4)]
        super().__init__(nn.ModuleList(blocks))
        self.head = nn.Linear(12, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        for block in self.net:
            x = checkpoint(block, x, use_reentrant=False)
        return F.cross_entropy(self.head(x), batch[1])


class Branching(Module):
    """Numbers read off tensors, before and behind, decide what is computed; rows are chosen by their values."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.net[0](batch[0])
        scale = 2.0 if x.mean().item() > 0 else 0.5
        x = F.relu(self.net[1](x * scale))
        rows = x.sum(1) >= x.sum(1).median()
        if rows.sum().item() > 1:
            x = x * rows[:, None]
        return F.cross_entropy(self.net[2](x) * x.amax().clamp_min(1).item(), batch[1])


@dataclass
class Samples:
    """A batch with a field that is no tensor."""

    x: Tensor
    y: Any
    ids: list[str]


Targets = namedtuple("Targets", ["cls", "value"])


class Structured(Module):
    """Parameters without a module of their own, a buffer that is updated, an output that is a dataclass."""

    class Trunk(nn.Module):
        """Returns a dataclass."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(12, 8), nn.Parameter(torch.ones(8))
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Samples:
            self.seen = self.seen + len(x)
            hidden = self.linear(x) * self.scale
            return Samples(hidden.relu(), hidden.tanh(), ["a", "b"])

    def __init__(self) -> None:
        super().__init__(self.Trunk())
        self.bias, self.head = nn.Parameter(torch.zeros(8)), nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        both = self.net(batch.x)
        return F.cross_entropy(self.head(both.x + both.y + self.bias), batch.y["label"])


def entries() -> Iterator[Entry]:
    """All of them."""

    def labelled(*shape: int, classes: int = 3) -> Any:
        return lambda: (torch.randn(*shape), torch.randint(0, classes, (shape[0],)))

    def sequences() -> dict[str, Tensor]:
        return {"x": torch.randn(4, 7, 5), "lengths": torch.tensor([7, 3, 5, 2]), "y": torch.randint(0, 3, (4,))}

    def sentences(mask: bool = False) -> dict[str, Tensor]:
        numbers = words(4)
        numbers[1, 4:] = 0
        given = {"padding": numbers == 0} if mask else {}
        return {"words": numbers, "y": torch.randint(0, 3, (4,)), **given}

    def structured() -> Samples:
        return Samples(torch.randn(4, 12), {"label": torch.randint(0, 3, (4,))}, [f"sample {i}" for i in range(4)])

    def targets() -> Samples:
        return Samples(torch.randn(4, 12), Targets(torch.randint(0, 3, (4,)), torch.randn(4)), ["a"] * 4)

    def graph() -> Any:
        return torch.randn(9, 5), torch.randint(0, 9, (2, 20)), torch.randint(0, 2, (9,))

    def views() -> list[Tensor]:
        return [torch.randn(6, 12), torch.randn(6, 12)]

    yield Entry("LSTM, packed", "ours", lambda: Recurrent(nn.LSTM), sequences)
    yield Entry("GRU, packed", "ours", lambda: Recurrent(nn.GRU), sequences)
    yield Entry("transformer encoder, mask given", "ours", Encoder, lambda: sentences(mask=True))
    yield Entry("transformer encoder, mask computed", "ours", Encoder, sentences)
    yield Entry("transformer encoder, words sent", "ours", Encoder, sentences, private=())
    yield Entry("audio, GRU", "ours", Audio, labelled(4, 400))
    towers = {"user": (4, 6), "item": (4, 4)}
    yield Entry(
        "two towers", "ours", TwoTowers,
        lambda: {**{k: torch.randn(*s) for k, s in towers.items()}, "y": torch.randint(0, 3, (4,))},
        private=("user", "item"),
    )  # fmt: skip
    yield Entry("graph, edge index", "ours", Graph, graph)
    yield Entry("autoencoder, input private", "ours", Autoencoder, lambda: torch.randn(4, 12))
    yield Entry("autoencoder, input sent", "ours", Autoencoder, lambda: torch.randn(4, 12), private=())
    yield Entry(
        "variational autoencoder", "ours", Variational, lambda: {"x": torch.randn(4, 12), "target": torch.randn(4, 12)}
    )
    yield Entry("contrastive, one by one", "ours", Contrastive, views)
    yield Entry("contrastive, together", "ours", ContrastiveTogether, views)
    yield Entry("several losses", "ours", SeveralLosses, targets)
    yield Entry("teacher and student", "ours", Distillation, labelled(4, 12))
    yield Entry("activation checkpointing", "ours", Checkpointed, labelled(4, 12))
    yield Entry("numbers decide", "ours", Branching, labelled(4, 12))
    yield Entry("dataclass in and out", "ours", Structured, structured)
