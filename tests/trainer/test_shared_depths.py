"""One server-side model whose clients have different cuts, against its definition in plain PyTorch.

In double precision: batch norm over few rows makes more of a rounding in single precision than is wanted here.
"""

from __future__ import annotations

import copy
import itertools
from functools import partial

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
from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.runtime.server import Server
from lightning_edgesplit.scheduling import Fixed

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
    options = {"partition": None, "timeout": 30, **options}
    return EdgeSplitStrategy(clients=count, cuts=cuts, server_model="shared", **options)


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


@pytest.mark.parametrize("rule", ["keep", "average", "reset"])
@pytest.mark.parametrize("at", [2, 3], ids=lambda n: f"after step {n}")
def test_cuts_of_several_depths_go_on_from_a_checkpoint(tmp_path, rule, at):
    """At the end of a round with the same bits; layers between cuts have a state here and one at a client."""
    cuts, data, states = ["net.1", "net.0", "net.0", "net.2"], vectors(64), []
    for path in (None, tmp_path / f"step={at}.ckpt"):
        torch.manual_seed(1)
        module = NormsAdamW()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=at, save_top_k=-1)
        trainer = L.Trainer(
            strategy=split(cuts, round_steps=at, optimizer_state=rule), max_epochs=2, deterministic=True,
            callbacks=[keep] if path is None else [], enable_checkpointing=path is None, default_root_dir=tmp_path,
            **{**QUIET, "precision": "32-true"},
        )  # fmt: skip
        trainer.fit(module, loaders(data), ckpt_path=path)
        assert trainer.global_step == 10
        states.append(module.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    if rule == "keep":  # what plain Lightning would take: the mean of whole states
        saved = torch.load(tmp_path / f"step={at}.ckpt", weights_only=True)
        clients, names = saved["edgesplit"]["clients"], [name for name, _ in module.named_parameters()]
        samples = [min(len(part), at * size) for part, size in zip(PARTS, BATCHES, strict=True)]
        for name in ("net.0.0.weight", "net.1.0.weight", "net.2.0.weight", "net.4.weight"):
            own = [client["state"][name]["exp_avg"] for client in clients]
            mean = sum(n / sum(samples) * x for n, x in zip(samples, own, strict=True))
            torch.testing.assert_close(saved["optimizer_states"][0]["state"][names.index(name)]["exp_avg"], mean)


def test_the_gradient_of_the_deepest_cut_leaves_first(monkeypatch):
    sent, send_to = [], Server._send_to

    def watched(self, client, tensors, now):
        sent.append(client)
        send_to(self, client, tensors, now)

    monkeypatch.setattr(Server, "_send_to", watched)
    fit(Norms(), loaders(vectors(64)), split(["net.2", "net.0", "net.1", "net.0"]), epochs=1)
    assert sent[:4] == [0, 2, 1, 3]  # the first client has one batch
    assert sent[4:7] == [2, 1, 3]


class Watched(Norms):
    def on_train_batch_start(self, batch, batch_idx):
        self.seen = [*getattr(self, "seen", []), batch[1].tolist()]


def test_the_step_sees_its_labels_in_the_order_of_the_rows():
    data, module = vectors(64), Watched()
    fit(module, loaders(data), split(["net.2", "net.0", "net.1", "net.0"]), epochs=1)
    labels = data.tensors[1]
    assert module.seen[0] == labels[[*range(8, 13), *range(46, 50), *range(26, 33), *range(8)]].tolist()
    assert module.seen[1] == labels[[*range(13, 18), *range(50, 54), *range(33, 40)]].tolist()


class Dropouts(Layers):
    def __init__(self):
        super().__init__(nn.Linear(12, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 12), nn.Dropout(0.3))
        self.head = nn.Linear(12, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.net(batch[0])), batch[1])


def test_dropout_between_and_behind_the_cuts_draws_one_stream_and_repeats():
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        module = Dropouts()
        fit(module, loaders(vectors(64)), split(["net.3", "net.0", "net", "net.0"]))
        states.append(module.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


class Gate(nn.Module):
    def __init__(self, masks=True):
        super().__init__()
        self.layer, self.masks = nn.Linear(12, 12), masks

    def forward(self, x, mask):
        return self.layer(x * mask[:, None] if self.masks else x)


class Masked(Layers):
    """The batch has a mask, which two layers may use."""

    def __init__(self, first, second):
        super().__init__(nn.Linear(12, 12), nn.Linear(12, 10))
        self.gates = nn.ModuleList([Gate(first), Gate(second)])

    def training_step(self, batch, batch_idx):
        x = self.net[0](batch[0])
        for gate in self.gates:
            x = gate(x, batch[2])
        return F.cross_entropy(self.net[1](x), batch[1])


class Skipping(Layers):
    """A cut inside the residual path, where two activations cross."""

    def __init__(self):
        super().__init__(nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU())
        self.head = nn.Linear(12, 10)

    def training_step(self, batch, batch_idx):
        x = self.net[0](batch[0])
        return F.cross_entropy(self.head(x + self.net[2](self.net[1](x))), batch[1])


class Twice(Layers):
    """A layer without a class for batch statistics, which looks at its rows all the same."""

    def __init__(self):
        super().__init__(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10))

    def training_step(self, batch, batch_idx):
        x = self.net[0](batch[0])
        return F.cross_entropy(self.net[2](self.net[1](x - x.mean(0))), batch[1])


def masked(samples):
    return TensorDataset(*vectors(samples).tensors, torch.randint(0, 2, (samples,)))


@feature(
    '`server_model="shared"`, labels or masks used between the cuts', "refused", "their rows are those of all clients"
)
@pytest.mark.parametrize(
    ("kind", "data", "cuts", "message"),
    [
        (partial(Masked, True, False), masked, ["net.0", "gates.0"], "other parts of the batch are needed than behind"),
        (partial(Masked, True, True), masked, ["net.0", "gates.0"], "no labels or masks, whose rows are those of all"),
        (Skipping, vectors, ["net.0", "net.1"], "more than one activation crosses at 'net.1'"),
        (Twice, vectors, ["net.0", "net.1"], "gradients differ from the uncut step's"),
    ],
)
def test_cuts_that_one_pass_cannot_have_are_refused_before_any_process_starts(kind, data, cuts, message, monkeypatch):
    monkeypatch.setattr("lightning_edgesplit.launcher.ForkLauncher", None)
    strategy = EdgeSplitStrategy(clients=2, cuts=cuts, server_model="shared", timeout=30)
    with pytest.raises(ImpossibleCutError, match=message) as error:
        fit(kind(), DataLoader(data(32), batch_size=8), strategy)
    assert "give `cuts` one name for all" in str(error.value)


def test_a_mask_behind_all_cuts_is_no_obstacle():
    data, module = masked(24), Masked(False, True)
    parts, sizes = [list(range(14)), list(range(14, 24))], [14, 10]
    expected = copy.deepcopy(module).double()
    optimizer = expected.optimizer(expected.parameters())
    order = [*range(14, 24), *range(14)]  # nothing but the sum's order: the second client's rows come first
    x, y, mask = data.tensors[0].double()[order], data.tensors[1][order], data.tensors[2][order]
    x = expected.gates[1](expected.gates[0](expected.net[0](x), mask), mask)
    F.cross_entropy(expected.net[1](x), y).backward()
    optimizer.step()
    fit(module, loaders(data, parts, sizes), split(["gates.0", "net.0"], 2), epochs=1)
    for layer, own in ((module.net[1], expected.net[1]), (module.gates[1], expected.gates[1])):
        torch.testing.assert_close(layer.state_dict(), own.state_dict(), rtol=1e-8, atol=1e-9)


class Reused(Layers):
    """One ReLU that is called behind every layer: cuts are its first and its third call."""

    def __init__(self):
        super().__init__(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10))
        self.relu = nn.ReLU()

    def training_step(self, batch, batch_idx):
        x = batch[0]
        for layer in self.net[:3]:
            x = self.relu(layer(x))
        return F.cross_entropy(self.net[3](x), batch[1])


def test_a_module_that_is_called_several_times_may_be_the_cut_of_several_depths():
    """Where there are no batch statistics, one round of one step is a step of SGD on all samples."""
    data, module = vectors(24), Reused()
    parts, sizes = [list(range(8)), list(range(8, 14)), list(range(14, 24))], [8, 6, 10]
    expected = copy.deepcopy(module).double()
    optimizer = expected.optimizer(expected.parameters())
    x, y = data.tensors[0].double(), data.tensors[1]
    for layer in expected.net[:3]:
        x = F.relu(layer(x))
    F.cross_entropy(expected.net[3](x), y).backward()
    optimizer.step()
    # each version of a layer has the gradient of its own rows; behind all cuts that is the gradient of all
    fit(module, loaders(data, parts, sizes), split(["relu#3", "relu#1", "relu#2"], 3), epochs=1)
    torch.testing.assert_close(module.net[3].state_dict(), expected.net[3].state_dict(), rtol=1e-6, atol=0)


class Narrowing(Layers):
    """The deeper a cut, the less crosses: slow clients had better cut early, and others late."""

    def __init__(self):
        sizes = [12, 64, 8, 8, 10]
        super().__init__(*(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b)) for a, b in itertools.pairwise(sizes)))


class Turning:
    """A policy that deals out its cuts otherwise whenever it is asked."""

    name = "turning"

    def __init__(self):
        self.asked = 0

    def plan(self, costs, clients, server, corrections=None):
        self.asked += 1
        names = [cut.name for cut in costs.cuts if cut.name.count(".") == 1]
        cuts = tuple(names[(self.asked + k) % len(names)] for k in range(len(clients)))
        return Fixed(cuts).plan(costs, clients, server, corrections)


def test_a_policy_that_moves_cuts_does_not_move_those_of_a_shared_model():
    policy = Turning()
    strategy = EdgeSplitStrategy(clients=3, policy=policy, server_model="shared", round_steps=1, timeout=30)
    fit(Norms(), DataLoader(vectors(48), batch_size=8), strategy, epochs=2)
    cuts = [[client.cut for client in report.clients] for report in strategy.rounds]
    assert policy.asked > 2
    assert len(cuts) == 4
    assert len(set(cuts[0])) == 3
    assert all(own == cuts[0] for own in cuts)


def profiles():
    return [ClientProfile(f"c{k}", flops=speed) for k, speed in enumerate([5e4, 1e8, 1e9])]


@pytest.mark.parametrize("policy", ["edgesplit", "exact", "joint"])
def test_policies_mix_depths_and_every_client_keeps_its_cut(policy):
    strategy = EdgeSplitStrategy(
        clients=profiles(), policy=policy, server=ServerProfile(flops=1e9, uplink=1e6, downlink=1e6), clock="virtual",
        server_model="shared", round_steps=4, participation=0.7, timeout=30,
    )  # fmt: skip
    module = Narrowing()
    fit(module, DataLoader(vectors(96), batch_size=8), strategy, epochs=3)
    assert len(set(strategy.plan.cuts)) > 1
    kept = {}
    for report in strategy.rounds:
        for client in report.clients:
            assert kept.setdefault(client.client, client.cut) == client.cut
    assert len(kept) == 3
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
