"""A U-shaped split beside plain Lightning and plain federated averaging: labels stay on the clients."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from rows import feature
from second_cut_samples import Structured, Tied, UNet, WithToken
from small import Classifier, Deterministic, WithAdamW, fedavg, fit, vectors
from torch import nn
from torch.utils.data import TensorDataset

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.errors import ClientFailedError
from lightning_edgesplit.launcher import CLIENT
from lightning_edgesplit.monitoring.timeline import timeline_figure
from lightning_edgesplit.runtime.client import Client
from lightning_edgesplit.scheduling import ClientProfile, Fixed, ServerProfile


def split(cuts, second, clients=1, **options):
    return EdgeSplitStrategy(clients=clients, cuts=cuts, second_cut=second, timeout=30, **options)


def deep():
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(inplace=True), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 16),
        nn.ReLU(inplace=True), nn.Dropout(0.2), nn.BatchNorm1d(16), nn.Linear(16, 10),
    )  # fmt: skip


class Logging(WithAdamW):
    """Logs in its first, its middle and its last layers."""

    def __init__(self):
        super().__init__(deep())

    def training_step(self, batch, batch_idx):
        hidden = self.net[0](batch[0])
        self.log("first", hidden.detach().abs().mean())
        hidden = self.net[4](self.net[3](self.net[2](self.net[1](hidden))))
        self.log("middle", hidden.detach().abs().mean(), on_step=True, on_epoch=True)
        loss = F.cross_entropy(self.net[8](self.net[7](self.net[6](self.net[5](hidden)))), batch[1])
        self.log("last", loss)
        return loss


PICTURES = TensorDataset(torch.randn(24, 3, 16, 16), torch.randint(0, 10, (24,)))
WORDS = TensorDataset(torch.randint(0, 10, (24, 5)), torch.randint(0, 10, (24,)))
CASES = {
    "first": (lambda: WithAdamW(deep()), "net.0", "net.4", None, {}),
    "middle": (lambda: WithAdamW(deep()), "net.2", "net.6", None, {}),
    "last": (lambda: WithAdamW(deep()), "net.5", "net.7", None, {}),
    "accumulated": (lambda: WithAdamW(deep()), "net.0", "net.4", None, {"accumulate_grad_batches": 2}),
    "clipped": (lambda: WithAdamW(deep()), "net.2", "net.4", None, {"gradient_clip_val": 0.05}),
    "double": (lambda: WithAdamW(deep()), "net.2", "net.4", None, {"precision": "64-true"}),
    "bf16": (lambda: WithAdamW(deep()), "net.2", "net.4", None, {"precision": "bf16-mixed"}),
    "U-Net": (lambda: Classifier(UNet()), "net.middle", "net.up", PICTURES, {}),
    "structured": (lambda: WithAdamW(Structured()), "net.front", "net.encoder", None, {}),
    "token": (lambda: WithAdamW(WithToken()), "net.front", "net.middle", None, {}),
    "tied": (lambda: WithAdamW(Tied()), "net.words", "net.block", WORDS, {}),
}  # fmt: skip


@feature("a second cut (U-shaped: labels, last layers and the loss stay on the client)", how="`second_cut`")
@pytest.mark.parametrize("case", CASES)
def test_one_client_with_a_second_cut_trains_as_plain_lightning_does(case):
    make, cut, second, data, options = CASES[case]
    torch.manual_seed(3)
    data = data or vectors(56)
    plain = make()
    module = copy.deepcopy(plain)
    expected = fit(plain, data, batch_size=8, **options)
    strategy = split(cut, second)
    actual = fit(module, data, strategy, batch_size=8, **options)
    rough = {"rtol": 2e-2, "atol": 2e-3} if case == "bf16" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(module.state_dict(), plain.state_dict(), **rough)
    torch.testing.assert_close(actual.callback_metrics, expected.callback_metrics, **rough)
    assert strategy.plan.cuts == (cut,)


def test_what_either_side_logs_is_logged(tmp_path):
    rows = []
    for name, strategy in (("plain", "auto"), ("split", split("net.2", "net.4"))):
        module = Logging()
        torch.manual_seed(3)
        module.load_state_dict(Logging().state_dict())
        logger = CSVLogger(tmp_path, name)
        fit(module, vectors(32), strategy, batch_size=8, logger=logger, log_every_n_steps=1)
        rows.append({k: v for k, v in module.trainer.callback_metrics.items() if not k.startswith("edgesplit")})
    torch.testing.assert_close(rows[1], rows[0])
    assert set(rows[0]) >= {"first", "middle_step", "middle_epoch", "last"}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("steps", [2, None])
def test_unequal_clients_with_a_second_cut_are_federated_averaging(steps, deterministic):
    data, parts = vectors(72), [list(range(24)), list(range(24, 40)), list(range(40, 72))]
    module = Deterministic()
    expected = fedavg(copy.deepcopy(module), data, parts, batch_size=8, epochs=2, steps=steps or 100)
    strategy = split(["net.0", "net.2", "end"], "net.3", 3, partition=parts, round_steps=steps)
    fit(module, data, strategy, batch_size=8, deterministic=deterministic)
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_cuts_move_under_a_second_cut():
    class Moving:
        name, at = "moving", 0

        def plan(self, costs, clients, server, corrections=None):
            self.at += 1
            names = [cut.name for cut in costs.cuts]
            return Fixed(tuple(names[(self.at + k) % len(names)] for k in range(len(clients)))).plan(
                costs, clients, server
            )

    data, parts = vectors(72), [list(range(24)), list(range(24, 40)), list(range(40, 72))]
    module = Deterministic()
    expected = fedavg(copy.deepcopy(module), data, parts, batch_size=8, epochs=2, steps=1)
    strategy = EdgeSplitStrategy(
        clients=3, policy=Moving(), second_cut="net.3", partition=parts, round_steps=1, timeout=30
    )
    fit(module, data, strategy, batch_size=8)
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_a_snapshot_in_mid_round_sees_whole_steps_only():
    """A validation in mid-round: batch norm between the cuts has the statistics of whole steps."""
    seen = []

    class Watched(Deterministic):
        def validation_step(self, batch, batch_idx):
            seen.append({name: x.clone() for name, x in self.state_dict().items()})

    data = vectors(48)
    torch.manual_seed(4)
    plain = Watched()
    module = copy.deepcopy(plain)
    for model, strategy in ((plain, "auto"), (module, split("net.0", "net.3"))):
        loader = torch.utils.data.DataLoader(data, batch_size=8)
        trainer = L.Trainer(
            strategy=strategy, max_epochs=1, val_check_interval=3, limit_val_batches=1, num_sanity_val_steps=0,
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader, loader)
    counts = [int(state["net.1.num_batches_tracked"]) for state in seen]
    assert counts[1] == counts[3] == 6
    torch.testing.assert_close(seen[3], seen[1], rtol=1e-5, atol=1e-6)
    assert counts[2] in (3, 4), "the client may be a step ahead, and then is so in all its layers"


def test_times_and_bytes_of_both_ways_are_reported():
    profiles = [ClientProfile("slow", flops=2e5, uplink=4e5, downlink=4e5), ClientProfile("fast", flops=1e6)]
    strategy = EdgeSplitStrategy(
        clients=profiles, cuts="net.0", second_cut="net.4", server=ServerProfile(flops=1e7), clock="wall",
        round_steps=2, timeout=30,
    )  # fmt: skip
    fit(Classifier(deep()), vectors(32), strategy, batch_size=8, epochs=1)
    report = strategy.rounds[0]
    slow = report.clients[0]
    assert slow.seconds["head"] > 0
    profile = strategy.cuts.find("net.0").profile
    assert slow.seconds["head"] >= 2 * 8 * profile.head / 2e5 * 0.99
    own = [span for span in report.spans if span.client == 0 and not span.on_server]
    order = [span.phase for span in own if span.phase != "wait"]
    step = ["forward", "uplink", "server", "downlink", "head", "uplink", "server", "downlink", "backward"]
    assert order == ["download", *step, *step, "upload"]
    assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(own))
    assert slow.seconds["uplink"] >= 2 * 8 * (64 + 64) * 8 / 4e5
    assert report.seconds >= 0.9 * report.predicted
    legend = [text.get_text() for text in timeline_figure(report).legends[0].get_texts()]
    assert "last layers, loss (client)" in legend


def test_an_exception_in_the_last_layers_names_the_client():
    class Failing(WithAdamW):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 2:
                raise RuntimeError("no more")
            return loss

    with pytest.raises(ClientFailedError, match=r"client-\d failed: RuntimeError: no more"):
        fit(Failing(deep()), vectors(64), split("net.0", "net.4", 2), batch_size=8)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_server_is_not_held_up_by_a_client_in_its_last_layers(deterministic, monkeypatch):
    the_other_has_come_back = multiprocessing.get_context("fork").Event()
    original = Client._finish_head

    def finish_head(self, *args):
        if os.environ[CLIENT] == "0":
            assert the_other_has_come_back.wait(20), "client 1 waits for the server, which waits for client 0"
        else:
            the_other_has_come_back.set()
        original(self, *args)

    monkeypatch.setattr(Client, "_finish_head", finish_head)
    fit(WithAdamW(deep()), vectors(32), split("net.0", "net.4", 2), batch_size=8, epochs=1, deterministic=deterministic)
    assert the_other_has_come_back.is_set()
