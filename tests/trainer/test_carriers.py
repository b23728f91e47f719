"""Clients that share processes: the weights are those of clients with a process each, to the bit."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small import Augmented, Classifier, Deterministic, WithAdamW, fedavg, vectors
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.errors import ClientFailedError, ClientLostError
from lightning_edgesplit.scheduling import Fixed

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]


def fit(processes, module=Classifier, epochs=3, callbacks=(), ckpt_path=None, trainer_options=(), **options):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    own = module()
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"clients": 4, "cuts": ["net.0", "net.2", "end", "net.3"][: options.get("clients", 4)], "timeout": 30}
    strategy = EdgeSplitStrategy(processes=processes, **{**defaults, **options})
    trainer = L.Trainer(
        strategy=strategy, max_epochs=epochs, callbacks=list(callbacks), enable_checkpointing=checkpoints,
        **{**QUIET, **dict(trainer_options)},
    )  # fmt: skip
    data = DataLoader(Augmented(76), batch_size=4, shuffle=True)
    torch.manual_seed(9)
    trainer.fit(own, data, ckpt_path=ckpt_path)
    return own, trainer


def equal(one: L.LightningModule, other: L.LightningModule) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("rule", ["keep", "average", "reset"])
@pytest.mark.parametrize("module", [Classifier, WithAdamW])
def test_the_weights_do_not_depend_on_the_number_of_processes(module, rule):
    options = {"round_steps": 2, "participation": 0.75, "optimizer_state": rule, "partition": "dirichlet:1"}
    alone, trainer = fit(None, module, **options)
    rounds = [[(c.client, c.cut, c.steps, c.samples) for c in r.clients] for r in trainer.strategy.rounds]
    assert len({client for (client, *_) in itertools.chain(*rounds)}) == 4
    for processes in (1, 2, 3):
        shared, again = fit(processes, module, **options)
        assert equal(shared, alone), processes
        assert [[(c.client, c.cut, c.steps, c.samples) for c in r.clients] for r in again.strategy.rounds] == rounds


@pytest.mark.parametrize("processes", [1, 2])
def test_a_round_is_federated_averaging_of_those_that_take_part(processes):
    torch.manual_seed(1)
    module, data = Deterministic(), vectors(72)
    parts = [list(range(0, 24)), list(range(24, 32)), list(range(32, 60)), list(range(60, 72))]
    expected = fedavg(module, data, parts, batch_size=8, epochs=3, steps=2)
    strategy = EdgeSplitStrategy(
        clients=4, cuts=["net.0", "net.2", "end", "net.3"], partition=parts, round_steps=2, processes=processes
    )
    trainer = L.Trainer(strategy=strategy, max_epochs=3, enable_checkpointing=False, **QUIET)
    trainer.fit(module, DataLoader(data, batch_size=8))
    torch.testing.assert_close(dict(module.state_dict()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipping_and_accumulation(clip):
    options = {
        "round_steps": 2, "participation": 0.75,
        "trainer_options": {
            "gradient_clip_val": 0.05, "gradient_clip_algorithm": clip, "accumulate_grad_batches": 2,
        },
    }  # fmt: skip
    alone, _ = fit(None, **options)
    shared, _ = fit(2, **options)
    assert equal(shared, alone)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_fixed_order_goes_by_waves(clip):
    """What is served in which order, and that it is: a client's last step may wait for its norm."""
    order = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            order.append(trainer.strategy._now[0])

    options = {"trainer_options": {"deterministic": True, "gradient_clip_val": clip}, "round_steps": 2, "epochs": 1}
    options["cuts"] = ["net.0", "net.2", "net.3", "net.3"]  # with "end", the client does not wait for the server
    alone, _ = fit(None, **options)
    shared, _ = fit(3, callbacks=[Watch()], **options)
    assert equal(shared, alone)
    # 76 samples: 5 batches of 4 for each of 4 clients, so rounds of 2, 2 and 1 steps
    assert order == 2 * [0, 1, 2, 0, 1, 2, 3, 3] + [0, 1, 2, 3]


class Decaying(Deterministic):
    """The rate of a step depends on how many were taken before it."""

    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1))

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("cuts", ["net.2", "end", ["net.0", "end", "net.3"]])
def test_a_schedule_per_step_goes_by_waves(cuts):
    torch.manual_seed(1)
    module, data = Decaying(), vectors(48)
    nets = [Decaying() for _ in range(3)]
    for net in nets:
        net.load_state_dict(module.state_dict())
    parts = [list(range(16 * k, 16 * k + 16)) for k in range(3)]
    for taken, k in enumerate([0, 1, 0, 1, 2, 2]):  # two processes, two batches of 8 each
        first = 16 * k + (8 if taken in (2, 3, 5) else 0)
        loss = F.cross_entropy(nets[k].net(data.tensors[0][first : first + 8]), data.tensors[1][first : first + 8])
        gradients = torch.autograd.grad(loss, list(nets[k].parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(nets[k].parameters(), gradients, strict=True):
                parameter -= 0.1 * 0.8**taken * gradient
    expected = {n: sum(net.state_dict()[n] for net in nets) / 3 for n, _ in module.named_parameters()}
    strategy = EdgeSplitStrategy(clients=3, cuts=cuts, partition=parts, processes=2, timeout=30)
    trainer = L.Trainer(strategy=strategy, max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(module, DataLoader(data, batch_size=8))
    torch.testing.assert_close(dict(module.named_parameters()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["keep", "average", "reset"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, None), (None, 3)])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, rule, before, after):
    options = {
        "round_steps": 2, "optimizer_state": rule, "participation": 0.5, "module": WithAdamW,
        "trainer_options": {"default_root_dir": tmp_path, "deterministic": True},
    }  # fmt: skip
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    whole, first = fit(before, callbacks=[keep], **options)
    paths = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(paths) >= 3
    for path in (paths[0], paths[1], paths[-2]):  # each at the end of a round of two clients: in mid-epoch, and not
        resumed, second = fit(after, ckpt_path=path, **options)
        assert second.global_step == first.global_step
        assert equal(resumed, whole), path


class Looks(Callback):
    """What the module and the optimizer's state are in the middle of a round."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, None

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.at:
            self.seen = {k: v.clone() for k, v in trainer.strategy.lightning_module_state_dict().items()}
            self.state = trainer.strategy.optimizer_state(trainer.optimizers[0])["state"]


def test_a_look_in_mid_round_sees_those_that_are_done_and_disturbs_nothing():
    """One process, clients of 2 steps each, a look after the first is done and the second is not."""
    torch.manual_seed(1)
    parts = [list(range(16 * k, 16 * k + 16)) for k in range(3)]
    data = vectors(48)

    def run(callbacks):
        torch.manual_seed(1)
        module = Deterministic()
        strategy = EdgeSplitStrategy(clients=3, cuts="net.2", partition=parts, processes=1, timeout=30)
        trainer = L.Trainer(strategy=strategy, max_epochs=2, enable_checkpointing=False, callbacks=callbacks, **QUIET)
        trainer.fit(module, DataLoader(data, batch_size=8))
        return module

    looks = Looks(at=3)
    assert equal(run([looks]), run([]))
    torch.manual_seed(1)
    start = Deterministic()
    ends, states = [], []
    for k, steps in ((0, 2), (1, 1)):
        net = Deterministic()
        net.load_state_dict(start.state_dict())
        optimizer = net.configure_optimizers()
        for x, y in list(zip(data.tensors[0][parts[k]].split(8), data.tensors[1][parts[k]].split(8), strict=True))[
            :steps
        ]:
            optimizer.zero_grad()
            F.cross_entropy(net.net(x), y).backward()
            optimizer.step()
        ends.append(net.state_dict())
        states.append(optimizer.state_dict()["state"])
    for name, seen in looks.seen.items():
        if seen.is_floating_point():
            torch.testing.assert_close(seen, (2 * ends[0][name] + ends[1][name]) / 3, rtol=1e-5, atol=1e-6)
    for index, entries in looks.state.items():
        mean = (2 * states[0][index]["momentum_buffer"] + states[1][index]["momentum_buffer"]) / 3
        torch.testing.assert_close(entries["momentum_buffer"], mean, rtol=1e-5, atol=1e-6)


def test_a_run_may_stop_in_mid_round():
    module, trainer = fit(2, epochs=-1, trainer_options={"max_steps": 3})
    assert trainer.global_step == 3
    assert not any(torch.isnan(tensor).any() for tensor in module.state_dict().values())


class Failing(Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index):
        if index == 17:
            raise RuntimeError("a broken sample")
        return torch.zeros(12), 0


def test_the_client_that_fails_is_named():
    strategy = EdgeSplitStrategy(
        clients=3, cuts="net.2", partition=[range(8), range(8, 16), range(16, 24)], processes=1, timeout=30
    )
    trainer = L.Trainer(strategy=strategy, max_epochs=1, enable_checkpointing=False, **QUIET)
    with pytest.raises(ClientFailedError, match=r"client-2 \(in process 0\) failed: RuntimeError: .*a broken sample"):
        trainer.fit(Deterministic(), DataLoader(Failing(), batch_size=8))


class Dying(Deterministic):
    def training_step(self, batch, batch_idx):
        if os.environ.get("EDGESPLIT_CLIENT") == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def test_the_client_whose_process_dies_is_named():
    strategy = EdgeSplitStrategy(clients=4, cuts="net.2", processes=1, timeout=10)
    trainer = L.Trainer(strategy=strategy, max_epochs=1, enable_checkpointing=False, **QUIET)
    with pytest.raises(ClientLostError, match=r"client-2 \(in process 0\) is lost"):
        trainer.fit(Dying(), DataLoader(vectors(64), batch_size=8))


class Moving:
    """Another cut for every client in every round."""

    name = "moving"

    def __init__(self) -> None:
        self.at = 0

    def plan(self, costs, clients, server, corrections=None):
        self.at += 1
        names = [cut.name for cut in costs.cuts]
        cuts = tuple(names[(self.at + k) % len(names)] for k in range(len(clients)))
        return Fixed(cuts).plan(costs, clients, server, corrections)


@pytest.mark.parametrize("rule", ["keep", "average"])
def test_cuts_may_move(rule):
    ends = []
    for processes in (None, 2):
        module, trainer = fit(
            processes, WithAdamW, policy=Moving(), cuts=None, round_steps=1, participation=0.75, optimizer_state=rule
        )
        ends.append(module)
    cuts = {(c.client, c.cut) for report in trainer.strategy.rounds for c in report.clients}
    assert len(cuts) > 8
    assert equal(*ends)


def test_clients_may_run_the_last_layers_too():
    options = {"second_cut": "net.2", "cuts": ["end", "net.0", "net.1", "net.0"], "participation": 0.75}
    alone, _ = fit(None, WithAdamW, **{**options, "cuts": ["net.0", "net.0", "net.1", "net.0"]})
    shared, _ = fit(2, WithAdamW, **{**options, "cuts": ["net.0", "net.0", "net.1", "net.0"]})
    assert equal(shared, alone)
    mixed, _ = fit(1, WithAdamW, **options)  # a process that was a client without a second cut before
    assert mixed.trainer.global_step > 0


def test_every_client_may_have_a_loader_of_its_own():
    ends = []
    for processes in (None, 1, 2):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5)
        loaders = [
            DataLoader(vectors(12 + 4 * k), batch_size=4, shuffle=True, generator=generator if k else None)
            for k in range(3)
        ]  # two of them share a generator
        own = vectors(16)
        loaders.append(DataLoader(own, batch_size=4, sampler=RandomSampler(own, generator=generator.clone_state())))
        module = Classifier()
        strategy = EdgeSplitStrategy(clients=4, cuts="net.2", round_steps=2, processes=processes, timeout=30)
        trainer = L.Trainer(strategy=strategy, max_epochs=2, enable_checkpointing=False, **QUIET)
        trainer.fit(module, loaders)
        ends.append(module)
    assert equal(ends[1], ends[0])
    assert equal(ends[2], ends[0])


class Counts(Callback):
    """How many models the server has at once: of clients that are played, and waiting to be added to the sum."""

    def __init__(self) -> None:
        self.models = self.waiting = self.states = 0
        self.children: set[int] = set()

    def on_train_batch_end(self, trainer, *_):
        server = trainer.strategy._server
        self.models = max(self.models, sum(1 for seat in server.seats if seat.model))
        self.states = max(self.states, sum(1 for seat in server.seats if seat.state))
        self.waiting = max(self.waiting, len(server._waiting))
        self.children.update(process.pid for process in multiprocessing.active_children())


def test_a_thousand_clients_need_two_processes_and_no_model_while_they_are_absent():
    torch.manual_seed(1)
    counts, data = Counts(), vectors(2000)
    parts = [range(2 * k, 2 * k + 2) if k % 7 else range(k, k + 14) for k in range(1000)]
    strategy = EdgeSplitStrategy(
        clients=1000,
        cuts="net.2",
        participation=0.05,
        processes=2,
        partition=parts,
        optimizer_state="reset",
        timeout=60,
    )
    trainer = L.Trainer(strategy=strategy, max_epochs=2, enable_checkpointing=False, callbacks=[counts], **QUIET)
    trainer.fit(Deterministic(), DataLoader(data, batch_size=2))
    assert len(counts.children) == 2
    assert 0 < counts.models <= 2
    assert counts.states <= 2
    assert counts.waiting < 4 * 2
    assert [len(report.clients) for report in strategy.rounds] == [50, 50]
    for report in strategy.rounds:
        for client in report.clients:
            assert client.steps == (1 if client.client % 7 else 7)
            assert client.samples == 2 * client.steps
            assert 0 < client.round_time < report.seconds
            assert client.bytes_up > 0 < client.bytes_down
