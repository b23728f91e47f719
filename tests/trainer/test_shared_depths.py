"""One server-side model whose clients have different cuts, against its definition in plain PyTorch.

In double precision: batch norm over few rows makes more of a rounding in single precision than is wanted here.
"""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from rows import feature
from small import vectors
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_edgesplit import ClientProfile, EdgeSplitStrategy, ServerProfile

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
QUIET = {
    "precision": "64-true",
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
PARTS = [list(range(8)), list(range(8, 26)), list(range(26, 46)), list(range(46, 64))]
BATCHES = [8, 5, 7, 4]  # 1, 4, 3 and 5 batches


class Layers(L.LightningModule):
    """Layers one after the other, whose names are ``net.0``, ``net.1``…"""

    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3))

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Norms(Layers):
    def __init__(self):
        blocks = [nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True)) for _ in range(4)]
        super().__init__(*blocks, nn.Linear(12, 10))


class NormsAdamW(Norms):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-3))


class Block(nn.Module):
    def __init__(self, channels, stride=1):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels))
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))
        self.shortcut = nn.Conv2d(channels, channels, 1, stride, bias=False) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class Residual(Layers):
    def __init__(self):
        stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        super().__init__(stem, Block(4), Block(4, 2), Block(4), head)


def images(samples):
    return TensorDataset(torch.randn(samples, 1, 8, 8), torch.randint(0, 10, (samples,)))


DATA = {Norms: vectors, NormsAdamW: vectors, Residual: images}


def one_pass(module, data, depths, epochs, steps, parts=PARTS, sizes=BATCHES, clip=None):
    """The oracle: client k runs ``net[:depths[k]]`` of its own, and one server-side model the rest in one pass.

    A layer of the server's sees the concatenation of all activations that came in before it.
    """
    module, data = module.double(), TensorDataset(data.tensors[0].double(), data.tensors[1])
    clients, server = [copy.deepcopy(module) for _ in parts], copy.deepcopy(module)
    optimizers = [c.optimizer(c.net[:depth].parameters()) for c, depth in zip(clients, depths, strict=True)]
    behind = server.optimizer(server.net[min(depths) :].parameters())
    own = [list(torch.tensor(part).split(size)) for part, size in zip(parts, sizes, strict=True)]
    for _ in range(epochs):
        for at in range(0, max(map(len, own)), steps):
            for step in range(at, min(at + steps, max(map(len, own)))):
                present = sorted((depths[k], k) for k, batches in enumerate(own) if step < len(batches))
                for optimizer in (behind, *optimizers):
                    optimizer.zero_grad(set_to_none=True)
                smashed = {k: clients[k].net[:depth](data.tensors[0][own[k][step]]) for depth, k in present}
                received = {k: x.detach().requires_grad_() for k, x in smashed.items()}
                running = []
                for depth, layer in enumerate(server.net):
                    running += [received[k] for own_depth, k in present if own_depth == depth]
                    if running:
                        running = [layer(torch.cat(running))]
                labels = torch.cat([data.tensors[1][own[k][step]] for _, k in present])
                F.cross_entropy(running[0], labels).backward()
                for k, x in smashed.items():
                    x.backward(received[k].grad)
                for optimizer in (behind, *(optimizers[k] for _, k in present)):
                    if clip is not None:
                        torch.nn.utils.clip_grad_value_(optimizer.param_groups[0]["params"], clip)
                    optimizer.step()
            samples = [sum(len(batch) for batch in batches[at : at + steps]) for batches in own]
            average(clients, server, depths, samples)
    return server.state_dict()


def average(clients, server, depths, samples):
    """Whole models: each client's own layers, and the server's for the rest."""
    whole = []
    for client, depth in zip(clients, depths, strict=True):
        model = copy.deepcopy(server)
        model.net[:depth].load_state_dict(client.net[:depth].state_dict())
        whole.append(model.state_dict())
    mean = {n: sum(s / sum(samples) * w[n] for s, w in zip(samples, whole, strict=True)) for n in whole[0]}
    mean = {n: x if whole[0][n].is_floating_point() else x.round().long() for n, x in mean.items()}
    for model in (*clients, server):
        model.load_state_dict(mean)


def split(cuts, count=4, **options):
    return EdgeSplitStrategy(clients=count, cuts=cuts, server_model="shared", partition=None, timeout=30, **options)


def loaders(data, parts=PARTS, sizes=BATCHES):
    def loader(part, size):
        return DataLoader(TensorDataset(*(x[part] for x in data.tensors)), batch_size=size)

    return [loader(part, size) for part, size in zip(parts, sizes, strict=True)]


def fit(module, train, strategy, epochs=2, **options):
    trainer = L.Trainer(strategy=strategy, max_epochs=epochs, **{**QUIET, "enable_checkpointing": False, **options})
    trainer.fit(module, train)
    return trainer


def close(module, expected):
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-8, atol=1e-9)


CUTS = {"net.2": 3, "net.0": 1, "net.1": 2, "net.3": 4}


@feature(
    '`server_model="shared"`, cuts of several depths', how="one pass; deeper clients' samples come in at their cut"
)
@pytest.mark.parametrize("cuts", [["net.2", "net.0", "net.1", "net.0"], ["net.0", "net.3", "net.1", "net.3"]], ids=str)
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("kind", [Norms, NormsAdamW, Residual])
def test_one_pass_over_clients_of_several_depths_is_its_definition(kind, steps, cuts):
    data, module = DATA[kind](64), kind()
    depths = [CUTS[name] for name in cuts]
    expected = one_pass(copy.deepcopy(module), data, depths, epochs=2, steps=steps or 100)
    trainer = fit(module, loaders(data), split(cuts, round_steps=steps))
    close(module, expected)
    assert trainer.global_step == 10


def test_clipping_by_value_with_cuts_of_several_depths():
    data, module, cuts = vectors(64), Norms(), ["net.0", "net.1", "net.2", "net.1"]
    expected = one_pass(copy.deepcopy(module), data, [CUTS[c] for c in cuts], epochs=2, steps=100, clip=0.003)
    fit(module, loaders(data), split(cuts), gradient_clip_val=0.003, gradient_clip_algorithm="value")
    close(module, expected)
