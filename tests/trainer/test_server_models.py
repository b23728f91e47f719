"""Sequential, SplitFed-V2 and shared server-side models, each against its definition in plain PyTorch."""

from __future__ import annotations

import copy
import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from rows import feature
from small import Classifier, Deterministic, vectors
from torch.utils.data import DataLoader

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import Fixed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
PARTS = [list(range(8)), list(range(8, 34)), list(range(34, 64))]  # 1, 4 and 4 batches of at most 8


class WithAdamW(Deterministic):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-4))


def split(server_model, cuts="net.2", parts=PARTS, **options):
    return EdgeSplitStrategy(
        clients=len(parts), cuts=cuts, server_model=server_model, partition=parts, timeout=30, **options
    )


def fit(module, data, strategy, epochs=2, **options):
    trainer = L.Trainer(strategy=strategy, max_epochs=epochs, **{**QUIET, "enable_checkpointing": False, **options})
    trainer.fit(module, DataLoader(data, batch_size=8))
    return trainer


def batches_of(parts, batch_size=8):
    return [list(torch.tensor(part).split(batch_size)) for part in parts]


def close(module, expected):
    torch.testing.assert_close(module.state_dict(), expected, rtol=1e-5, atol=1e-6)


# ---- sequential ------------------------------------------------------------------------------------------------------


def in_turns(module, data, parts, epochs, steps, clip=None, accumulate=1, forget=False):
    """The oracle: one model, one optimizer, the clients' batches one after the other."""
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        own = batches_of(parts)
        for at in range(0, max(len(batches) for batches in own), steps):
            for batches in own:
                if forget:
                    optimizer.state.clear()
                for number, batch in enumerate(batches[at : at + steps]):
                    if number % accumulate == 0:
                        optimizer.zero_grad()
                    loss = F.cross_entropy(module.net(data.tensors[0][batch]), data.tensors[1][batch])
                    (loss / accumulate).backward()
                    if (number + 1) % accumulate and at + number + 1 < len(batches):
                        continue
                    if clip is not None:
                        torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                    optimizer.step()
    return module.state_dict()


@feature('`server_model="sequential"`', how="plain training on the clients' batches one after the other")
@pytest.mark.parametrize("kind", [Deterministic, WithAdamW])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("cuts", ["net.2", "end", ["net.0", "net.3", "end"]], ids=str)
def test_clients_in_turn_are_plain_training_on_their_batches_in_that_order(kind, steps, cuts):
    data, module = vectors(64), kind()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=steps or 100)
    strategy = split("sequential", cuts, round_steps=steps)
    trainer = fit(module, data, strategy)
    close(module, expected)
    assert trainer.global_step == 18
    assert [[c.client for c in report.clients] for report in strategy.rounds[:3]] == [[0], [1], [2]]


@pytest.mark.parametrize("options", [{"clip": 0.05}, {"accumulate": 2}], ids=str)
def test_turns_with_clipping_and_accumulation(options):
    data, module = vectors(64), Deterministic()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=2, **options)
    trainers = {"gradient_clip_val": options.get("clip"), "accumulate_grad_batches": options.get("accumulate", 1)}
    fit(module, data, split("sequential", round_steps=2), **trainers)
    close(module, expected)


def test_turns_may_begin_with_a_fresh_optimizer():
    data, module = vectors(64), WithAdamW()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=2, forget=True)
    fit(module, data, split("sequential", round_steps=2, optimizer_state="reset"))
    close(module, expected)


def test_turns_with_a_second_cut():
    data, module = vectors(64), Deterministic()
    expected = in_turns(copy.deepcopy(module), data, PARTS, epochs=2, steps=100)
    fit(module, data, split("sequential", "net.0", second_cut="net.3"))
    close(module, expected)


class Stepped(Deterministic):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_turns_under_a_schedule_per_step():
    data, module = vectors(64), Stepped()
    expected = copy.deepcopy(module)
    [optimizer], [schedule] = expected.configure_optimizers()
    for batches in batches_of(PARTS):
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(expected.net(data.tensors[0][batch]), data.tensors[1][batch]).backward()
            optimizer.step()
            schedule["scheduler"].step()
    fit(module, data, split("sequential"), epochs=1)
    close(module, expected.state_dict())


@pytest.mark.parametrize("at", [1, 2, 4, 7], ids=lambda n: f"after step {n}")
def test_turns_go_on_from_a_checkpoint_with_the_same_bits(tmp_path, at):
    data = vectors(64)
    states = []
    for path in (None, tmp_path / f"step={at}.ckpt"):
        torch.manual_seed(1)
        module = WithAdamW()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            strategy=split("sequential", round_steps=2), max_epochs=2, callbacks=[keep] if path is None else [],
            enable_checkpointing=path is None, default_root_dir=tmp_path, deterministic=True, **QUIET,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=path)
        assert trainer.global_step == 18
        states.append(module.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_validation_sees_the_model_of_the_client_whose_turn_it_was():
    data, module = vectors(64), Deterministic()
    seen = []
    module.validation_step = lambda batch, batch_idx: seen.append(copy.deepcopy(module.state_dict()))
    expected = copy.deepcopy(module)
    del expected.validation_step
    trainer = L.Trainer(
        strategy=split("sequential"), max_epochs=1, val_check_interval=3, num_sanity_val_steps=0,
        enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    loader = DataLoader(data, batch_size=8)
    trainer.fit(module, loader, DataLoader(data, batch_size=64))
    assert len(seen) == 3
    first = in_turns(expected, data, [PARTS[0], PARTS[1][:16]], epochs=1, steps=100)  # three steps
    torch.testing.assert_close(seen[0], first, rtol=1e-5, atol=1e-6)
    close(module, seen[2])


# ---- one server-side model -------------------------------------------------------------------------------------------


class Halves:
    """The oracle's clients and server: client-side models `net[:at]`, one server-side model."""

    def __init__(self, module, parts, at=3):
        self.clients = [copy.deepcopy(module) for _ in parts]
        self.server = copy.deepcopy(module)
        self.front = [module.net[:at] for module in self.clients]
        self.behind = self.server.net[at:]
        self.client_optimizers = [module.optimizer(front.parameters()) for front in self.front]
        self.server_optimizer = self.server.optimizer(self.behind.parameters())
        self.at = at

    def average(self, samples):
        states = [front.state_dict() for front in self.front]
        mean = {
            name: sum(n / sum(samples) * s[name] for n, s in zip(samples, states, strict=True)) for name in states[0]
        }
        mean = {k: v if states[0][k].is_floating_point() else v.round().long() for k, v in mean.items()}
        for front in self.front:
            front.load_state_dict(mean)
        return mean

    def state_dict(self):
        """The whole model: the mean of client-side models (all are equal after a round) and the server-side model."""
        whole = copy.deepcopy(self.server)
        whole.net[: self.at].load_state_dict(self.front[0].state_dict())
        return whole.state_dict()


def order_of_service(report):
    spans = sorted((s.start, s.client) for s in report.spans if s.on_server and s.phase == "server")
    return [client for _, client in spans]


def splitfed_v2(module, data, parts, orders, steps, accumulate=1, clip=None, forget=False):
    """The oracle: as the authors' program loops, with optimizers that live on."""
    halves, own = Halves(module, parts), batches_of(parts)
    per_epoch = range(0, max(len(batches) for batches in own), steps)
    for number, order in enumerate(orders):
        at = per_epoch[number % len(per_epoch)]
        if forget:
            for optimizer in (halves.server_optimizer, *halves.client_optimizers):
                optimizer.state.clear()
        for k in order:
            turn = own[k][at : at + steps]
            optimizers = (halves.client_optimizers[k], halves.server_optimizer)
            for i, batch in enumerate(turn):
                if i % accumulate == 0:
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                fx = halves.front[k](data.tensors[0][batch])
                received = fx.detach().requires_grad_()
                (F.cross_entropy(halves.behind(received), data.tensors[1][batch]) / accumulate).backward()
                fx.backward(received.grad)
                if (i + 1) % accumulate and i + 1 < len(turn):
                    continue
                if clip is not None:
                    parameters = [*halves.front[k].parameters(), *halves.behind.parameters()]
                    torch.nn.utils.clip_grad_norm_(parameters, clip)
                for optimizer in optimizers:
                    optimizer.step()
        halves.average([sum(len(b) for b in batches[at : at + steps]) for batches in own])
    return halves.state_dict()


@feature('`server_model="splitfed-v2"`', how="one server-side model, client after client in random order; one cut")
@pytest.mark.parametrize(
    ("kind", "steps", "options", "oracle"),
    [
        (Deterministic, None, {}, {}), (WithAdamW, 2, {}, {}),
        (WithAdamW, 2, {"gradient_clip_val": 0.05}, {"clip": 0.05}),
        (Deterministic, 2, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
        (WithAdamW, 2, {"optimizer_state": "reset"}, {"forget": True}),
    ],
    ids=str,
)  # fmt: skip
def test_splitfed_v2_is_its_authors_loop(kind, steps, options, oracle):
    data, module = vectors(64), kind()
    undone = copy.deepcopy(module)
    rule = {key: options.pop(key) for key in ("optimizer_state",) if key in options}
    strategy = split("splitfed-v2", round_steps=steps, **rule)
    trainer = fit(module, data, strategy, **options)
    assert trainer.global_step == (18 if "accumulate" not in oracle else trainer.global_step)
    served = [order_of_service(report) for report in strategy.rounds]
    orders = [list(dict.fromkeys(own)) for own in served]
    for own, order in zip(served, orders, strict=True):  # one client after the other
        assert own == [k for k in order for _ in range(own.count(k))]
    close(module, splitfed_v2(undone, data, PARTS, orders, steps or 100, **oracle))


def test_the_order_of_splitfed_v2_is_drawn_by_the_seed():
    orders = []
    for _ in range(2):
        torch.manual_seed(1)
        strategy = split("splitfed-v2", parts=[[0, 1], [2, 3], [4, 5]])
        fit(Deterministic(), vectors(6), strategy, epochs=6)
        orders.append([order_of_service(report) for report in strategy.rounds])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders[0]}) > 2


def parallel(module, data, parts, epochs, steps, backward):
    """The oracle: in each local step one batch of all clients, one step of the server's optimizer."""
    halves, own = Halves(module, parts), batches_of(parts)
    for _ in range(epochs):
        for at in range(0, max(len(batches) for batches in own), steps):
            for step in range(at, at + steps):
                present = [k for k, batches in enumerate(own) if step < len(batches)]
                if not present:
                    break
                batches = [own[k][step] for k in present]
                for optimizer in (halves.server_optimizer, *(halves.client_optimizers[k] for k in present)):
                    optimizer.zero_grad()
                smashed = [halves.front[k](data.tensors[0][batch]) for k, batch in zip(present, batches, strict=True)]
                received = [x.detach().requires_grad_() for x in smashed]
                backward(halves.behind, received, [data.tensors[1][batch] for batch in batches])
                for x, own_part in zip(smashed, received, strict=True):
                    x.backward(own_part.grad)
                for optimizer in (halves.server_optimizer, *(halves.client_optimizers[k] for k in present)):
                    optimizer.step()
            halves.average([sum(len(b) for b in batches[at : at + steps]) for batches in own])
    return halves.state_dict()


def one_loss(behind, smashed, labels):
    F.cross_entropy(behind(torch.cat(smashed)), torch.cat(labels)).backward()


class NormBehind(Classifier):
    """Batch norm on both sides of the cut, and SGD with momentum."""

    def __init__(self):
        layers = [torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU()]
        behind = [torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(inplace=True)]
        super().__init__(torch.nn.Sequential(*layers, *behind, torch.nn.Linear(16, 10)))


class NormBehindAdamW(NormBehind):
    optimizer = staticmethod(lambda p: torch.optim.AdamW(p, lr=0.003, eps=1e-3))


@feature('`server_model="shared"`', how="one step of the server's per local step of all clients (PSL)")
@pytest.mark.parametrize("kind", [NormBehind, NormBehindAdamW])
@pytest.mark.parametrize("steps", [None, 2])
def test_a_shared_model_takes_one_step_per_local_step_of_all(kind, steps):
    data, module = vectors(64), kind()
    expected = parallel(copy.deepcopy(module), data, PARTS, epochs=2, steps=steps or 100, backward=one_loss)
    trainer = fit(module, data, split("shared", round_steps=steps))
    close(module, expected)
    assert trainer.global_step == 8


def epsl(fraction):
    """The oracle: `runtime.epsl`'s formulas, line by line. The network has one loss behind its last layer."""

    def backward(behind, smashed, labels):
        b = [len(x) for x in smashed]
        n, m = sum(b), math.ceil(fraction * min(b))
        if len(b) == 1 or not m:
            return one_loss(behind, smashed, labels)
        z = behind(torch.cat(smashed)).detach().requires_grad_()
        running = copy.deepcopy(behind.state_dict())
        F.cross_entropy(z, torch.cat(labels)).backward()
        g = z.grad.split(b)
        g_bar = sum(part[:m] for part in g)
        a_bar = sum(len(x) / n * x[:m] for x in smashed)  # its gradient at a_k is λ_k times that at the mean
        z_tilde = behind(torch.cat([a_bar, *(x[m:] for x in smashed)]))
        z_tilde.backward(torch.cat([g_bar, *(part[m:] for part in g)]))
        buffers = dict(behind.named_buffers())
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(running[name])

    return backward


class TwoTowers(L.LightningModule):
    """The loss looks at more than the last layer."""

    optimizer = staticmethod(Deterministic.optimizer)

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
        self.one, self.two = torch.nn.Linear(16, 10), torch.nn.Linear(16, 10)

    def training_step(self, batch, batch_idx):
        hidden = self.net(batch[0])
        return sum(F.cross_entropy(head(hidden), batch[1]) for head in (self.one, self.two))

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


EPSL_PARTS = [list(range(22)), list(range(22, 44)), list(range(44, 59))]  # batches of 8, 8, 6; 8, 8, 6; 8, 7


@feature('EPSL: `server_model="shared", aggregated=φ`', how="as reconstructed; dropout behind the cut: refused")
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", [NormBehind, NormBehindAdamW, Deterministic])
def test_aggregated_gradients_are_those_of_the_formulas(fraction, kind):
    data, module = vectors(59), kind()
    backward = epsl(fraction)
    expected = parallel(copy.deepcopy(module), data, EPSL_PARTS, epochs=2, steps=2, backward=backward)
    trainer = fit(module, data, split("shared", parts=EPSL_PARTS, round_steps=2, aggregated=fraction))
    close(module, expected)
    assert trainer.global_step == 6


def test_aggregation_changes_the_result_and_the_logged_loss_is_that_of_all_samples():
    ends, losses = [], []
    for fraction in (0.0, 1.0):
        torch.manual_seed(3)
        module, data = NormBehind(), vectors(32)
        strategy = split("shared", parts=[list(range(16)), list(range(16, 32))], aggregated=fraction)
        losses.append(fit(module, data, strategy, epochs=1, limit_train_batches=1).callback_metrics["loss"])
        ends.append(module.state_dict())
    assert any(not torch.allclose(ends[0][name], ends[1][name]) for name in ends[0])
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("kind", "cut", "message"),
    [
        (Classifier, "net.0", r"draw random numbers \(dropout\)"),
        (TwoTowers, "net.0", "the last layer 'two', and the loss depends on other trained tensors too"),
        (Deterministic, "net.5", "the last layer 'net.5' is not behind it"),
    ],
)
def test_what_cannot_be_aggregated_is_refused_before_any_process_starts(kind, cut, message, monkeypatch):
    monkeypatch.setattr("lightning_edgesplit.launcher.ForkLauncher", None)
    with pytest.raises(ValueError, match=message):
        fit(kind(), vectors(64), split("shared", cut, aggregated=0.5))


@pytest.mark.parametrize("server_model", ["splitfed-v2", "shared"])
def test_one_client_with_one_server_side_model_is_plain_training(server_model):
    data, plain = vectors(44), Classifier()  # with dropout behind the cut
    module = copy.deepcopy(plain)
    for own, strategy in ((plain, "auto"), (module, split(server_model, "net.0", [list(range(44))]))):
        torch.manual_seed(2)
        fit(own, data, strategy)
    close(module, plain.state_dict())


def test_a_shared_model_draws_with_the_first_clients_stream_and_repeats():
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        module = Classifier()
        fit(module, vectors(64), split("shared", "net.0"))
        states.append(module.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_shared_model_under_a_schedule_per_step_clipping_by_value_and_a_limit():
    data, module = vectors(64), Stepped()
    trainer = fit(
        module, data, split("shared"), limit_train_batches=3, gradient_clip_val=0.01, gradient_clip_algorithm="value"
    )
    assert trainer.global_step == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**6)


@pytest.mark.parametrize("server_model", ["splitfed-v2", "shared"])
@pytest.mark.parametrize("rule", ["keep", "average", "reset"])
def test_one_server_side_model_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path, server_model, rule):
    data, at = vectors(64), {"shared": 2, "splitfed-v2": 5}[server_model]  # after the first round
    states = []
    for path in (None, tmp_path / f"step={at}.ckpt"):
        torch.manual_seed(1)
        module = NormBehindAdamW()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=at, save_top_k=-1)
        trainer = L.Trainer(
            strategy=split(server_model, round_steps=2, optimizer_state=rule, participation=1.0), max_epochs=2,
            callbacks=[keep] if path is None else [], enable_checkpointing=path is None, default_root_dir=tmp_path,
            deterministic=True, **QUIET,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=path)
        states.append(module.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    saved = torch.load(tmp_path / f"step={at}.ckpt", weights_only=True)
    if rule == "keep":  # the one server-side state is saved as it is, not as a mean of three that rounding changed
        names = [name for name, _ in module.named_parameters()]
        for client in saved["edgesplit"]["clients"]:
            for name in ("net.6.weight", "net.3.weight"):
                torch.testing.assert_close(
                    saved["optimizer_states"][0]["state"][names.index(name)], client["state"][name], rtol=0, atol=0
                )


@pytest.mark.parametrize("server_model", ["splitfed-v2", "shared"])
def test_validation_in_mid_round_sees_the_server_side_model_and_the_mean_of_clients(server_model):
    data, module = vectors(64), NormBehind()
    seen = []
    module.validation_step = lambda batch, batch_idx: seen.append(copy.deepcopy(module.state_dict()))
    undisturbed = copy.deepcopy(module)
    del undisturbed.validation_step
    fit(undisturbed, data, split(server_model))
    trainer = L.Trainer(
        strategy=split(server_model), max_epochs=2, val_check_interval=2, num_sanity_val_steps=0,
        enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=8), DataLoader(data, batch_size=64))
    assert len(seen) > 3
    close(module, undisturbed.state_dict())
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0] if name.startswith("net.6"))


def test_clients_sit_out_rounds_of_a_shared_model():
    module = NormBehindAdamW()
    strategy = split("shared", round_steps=1, participation=0.67)
    fit(module, vectors(64), strategy, epochs=3)
    assert {len(report.clients) for report in strategy.rounds} == {2}
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"server_model": "common"},
            "server_model='common' is unknown: use one of per_client, sequential, shared, splitfed-v2",
        ),
        ({"server_model": "shared", "second_cut": "net.3"}, "second_cut='net.3' does not go with"),
        ({"server_model": "shared", "aggregated": 1.5}, "aggregated=1.5 must be a fraction"),
        ({"aggregated": 0.5}, "aggregated=0.5 does not go with server_model='per_client'"),
        ({"server_model": "sequential", "optimizer_state": "average"}, 'optimizer_state="average" does not go'),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeSplitStrategy(clients=2, **options)


@pytest.mark.parametrize(
    ("strategy", "trainer", "message"),
    [
        (
            {"cuts": ["net.0", "net.2"], "server_model": "splitfed-v2"},
            {},
            "the cuts net.0, net.2: give `cuts` one name",
        ),
        ({"cuts": "end"}, {}, 'the cut is "end"'),
        ({"cuts": ["net.0", "end"]}, {}, 'the cut is "end"'),
        ({"cuts": ["net.0", "net.2"], "aggregated": 0.5}, {}, "aggregated > 0 takes the mean of smashed data"),
        ({"cuts": "net.0"}, {"accumulate_grad_batches": 2}, "`accumulate_grad_batches`.*all clients step at once"),
        ({"cuts": "net.0"}, {"gradient_clip_val": 0.1}, "`gradient_clip_val`.*clip by value"),
    ],
)
def test_what_a_shared_model_cannot_do_is_refused_before_any_process_starts(strategy, trainer, message, monkeypatch):
    monkeypatch.setattr("lightning_edgesplit.launcher.ForkLauncher", None)
    with pytest.raises(ValueError, match=message):
        fit(
            Deterministic(),
            vectors(32),
            EdgeSplitStrategy(clients=2, **{"server_model": "shared", **strategy}),
            **trainer,
        )


class Deepest:
    """A policy that takes the deepest cut which it is offered."""

    name = "deepest"

    def plan(self, costs, clients, server, corrections=None):
        names = (costs.cuts[-1].name,) * len(clients)
        return Fixed(names).plan(costs, clients, server, corrections)


@pytest.mark.parametrize(("server_model", "cut"), [("per_client", "end"), ("shared", "net"), ("splitfed-v2", "net")])
def test_a_policy_leaves_layers_behind_the_cut_for_one_server_side_model(server_model, cut):
    strategy = EdgeSplitStrategy(clients=2, policy=Deepest(), server_model=server_model, timeout=30)
    fit(WithAdamW(), vectors(32), strategy, epochs=1)
    assert strategy.plan.cuts == (cut, cut)
