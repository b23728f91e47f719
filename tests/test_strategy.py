from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_edgesplit import ClientFailedError, EdgeSplitStrategy, ImpossibleCutError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*This process.*is multi-threaded:DeprecationWarning"),
]


class Classifier(L.LightningModule):
    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3))
    schedule = False

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 10)
        )

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]) if self.schedule else optimizer


class WithAdamW(Classifier):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.01))
    schedule = True


def vectors(samples: int) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 12), torch.randint(0, 10, (samples,)))


def fit(module, data, strategy="auto", batch_size=16, epochs=2, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(strategy=strategy, max_epochs=epochs, **quiet, **options)
    torch.manual_seed(2)
    trainer.fit(module, DataLoader(data, batch_size=batch_size))
    return trainer


@pytest.mark.parametrize("kind", [Classifier, WithAdamW])
@pytest.mark.parametrize("cut", ["net.0", "net.2", "end"])
def test_one_client_equals_plain_lightning(kind, cut):
    data, plain = vectors(64), kind()
    split = copy.deepcopy(plain)
    expected = fit(plain, data)
    actual = fit(split, data, EdgeSplitStrategy(clients=1, cuts=cut, timeout=30))
    torch.testing.assert_close(split.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics)


@pytest.mark.parametrize("cut", ["maxpool", "layer3"])
def test_one_client_equals_plain_lightning_on_resnet18(cut):
    plain = Classifier(torchvision.models.resnet18(num_classes=10))
    split = copy.deepcopy(plain)
    data = TensorDataset(torch.randn(24, 3, 32, 32), torch.randint(0, 10, (24,)))
    fit(plain, data, batch_size=8, epochs=1)
    fit(split, data, EdgeSplitStrategy(clients=1, cuts=cut, timeout=60), batch_size=8, epochs=1)
    torch.testing.assert_close(split.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


class Deterministic(Classifier):
    """No dropout: every client has a random stream of its own, which a plain loop does not."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
            )
        )


def fedavg(module, data, parts, batch_size, epochs, steps):
    """The oracle: federated averaging in plain PyTorch; each client keeps its optimizer."""
    clients = [copy.deepcopy(module) for _ in parts]
    optimizers = [client.configure_optimizers() for client in clients]
    batches = [torch.tensor(part).split(batch_size) for part in parts]
    for _ in range(epochs):
        for at in range(0, max(len(own) for own in batches), steps):
            samples = []
            for client, optimizer, own in zip(clients, optimizers, batches, strict=True):
                samples.append(sum(len(batch) for batch in own[at : at + steps]))
                for batch in own[at : at + steps]:
                    optimizer.zero_grad()
                    F.cross_entropy(client.net(data.tensors[0][batch]), data.tensors[1][batch]).backward()
                    optimizer.step()
            states = [client.state_dict() for client in clients]
            mean = {
                name: sum(n / sum(samples) * s[name] for n, s in zip(samples, states, strict=True))
                for name in states[0]
            }
            mean = {k: v if states[0][k].is_floating_point() else v.round().long() for k, v in mean.items()}
            for client in clients:
                client.load_state_dict(mean)
    return clients[0].state_dict()


@pytest.mark.parametrize("steps", [None, 2])
def test_mixed_cuts_and_unequal_data_equal_federated_averaging(steps):
    data, module = vectors(72), Deterministic()
    parts = [list(range(8)), list(range(8, 34)), list(range(34, 72))]  # 1, 4 and 5 batches of at most 8
    expected = fedavg(copy.deepcopy(module), data, parts, batch_size=8, epochs=2, steps=steps or 100)
    strategy = EdgeSplitStrategy(
        clients=3, cuts=["net.0", "net.3", "end"], partition=parts, round_steps=steps, timeout=30
    )
    fit(module, data, strategy, batch_size=8)
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_loads_and_continues_in_plain_lightning(tmp_path):
    module, data = WithAdamW(), vectors(64)
    trainer = fit(module, data, EdgeSplitStrategy(clients=2, cuts="net.2", timeout=30))
    trainer.save_checkpoint(tmp_path / "split.ckpt")
    again = WithAdamW.load_from_checkpoint(tmp_path / "split.ckpt")
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)


class Failing(Classifier):
    def on_train_start(self):
        self.on_server = True

    def training_step(self, batch, batch_idx):
        if batch_idx == 1 and getattr(self, "on_server", False) == self.fails_on_server:
            raise RuntimeError("deliberate")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("on_server", "error"), [(False, ClientFailedError), (True, RuntimeError)])
def test_an_exception_on_either_side_is_raised_and_the_last_aggregate_kept(on_server, error):
    module = Failing()
    module.fails_on_server = on_server
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(error, match=r"deliberate" if on_server else r"client-\d failed: RuntimeError: deliberate"):
        fit(module, vectors(64), EdgeSplitStrategy(clients=2, cuts="net.2", timeout=30))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients=0"),
        ({"clients": 2, "cuts": ["net.0"]}, "names 1 cuts for 2 clients"),
        ({"round_steps": 0}, "round_steps=0"),
        ({"partition": "shards"}, "partition='shards'"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_wrong_arguments_are_refused_with_option_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeSplitStrategy(**options)


def test_what_cannot_be_is_refused_before_any_process_starts():
    with pytest.raises(ImpossibleCutError, match="no such cut"):
        fit(Classifier(), vectors(32), EdgeSplitStrategy(clients=2, cuts="net.9"))
    with pytest.raises(ValueError, match="clients=9 for 4 training samples"):
        fit(Classifier(), vectors(4), EdgeSplitStrategy(clients=9, cuts="net.0"))
    with pytest.raises(ValueError, match="accumulate_grad_batches"):
        fit(Classifier(), vectors(32), EdgeSplitStrategy(clients=2, cuts="net.0"), accumulate_grad_batches=2)
