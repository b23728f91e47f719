"""Batches that the plan sizes: the update is federated averaging's with those batches, every sample once an epoch."""

from __future__ import annotations

import copy
from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small import fit, go_on
from test_overlap import Plain, same, vectors_of
from torch.utils.data import DataLoader

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.monitoring.planned import planned_report
from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.scheduling import ClientProfile, Corrections, Fixed, Joint, ServerProfile
from lightning_edgesplit.splitting import find_cuts

PARTS = [list(range(0, 23)), list(range(23, 34)), list(range(34, 40))]
SIZES = ((7, 2, 1), (3, 4, 3))
"""Samples in a local step of three clients, in rounds of odd and of even number; loaders give 4 each."""


class Deals:
    """Fixed cuts, and batches that go from one round to the next."""

    name, batches = "deals", True

    def __init__(self, *sizes, cut="net.2", **fields) -> None:
        self.sizes, self.cut, self.fields, self.now = sizes, cut, fields, sizes[0]

    def in_round(self, epoch, number):
        own = copy.copy(self)
        own.now = self.sizes[(number - 1) % len(self.sizes)]
        return own

    def plan(self, costs, clients, server, corrections=None):
        numbers = [int(client.name.removeprefix("c")) for client in clients]
        plan = Fixed((self.cut,) * len(clients)).plan(costs, clients, server, corrections)
        fields = {name: tuple(values[k] for k in numbers) for name, values in self.fields.items()}
        return replace(plan, batches=tuple(self.now[k] for k in numbers), **fields)


def profiles(count=3):
    return [ClientProfile(f"c{k}", flops=1e9) for k in range(count)]


def start() -> Plain:
    torch.manual_seed(1)
    return Plain()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rounds_of(parts, sizes, steps):
    """The oracle's rounds of an epoch: the rows of each local step of each client, taken off a pile card by card."""
    piles, number = [list(part) for part in parts], 0
    while any(piles):
        of_all = []
        for k, pile in enumerate(piles):
            own = []
            while pile and (steps is None or len(own) < steps):
                own.append([pile.pop(0) for _ in range(min(sizes[number % len(sizes)][k], len(pile)))])
            of_all.append(own)
        yield of_all
        number += 1


def fedavg(module, data, rounds, accumulate=1, clip=None, numbered_from=None):
    """Federated averaging in plain PyTorch over rounds of given rows; each client keeps its optimizer.

    With `numbered_from`, the rounds that begin an epoch, a loss counts as often as the number of its batch, from 1.
    """
    clients = [copy.deepcopy(module) for _ in rounds[0]]
    optimizers = [client.configure_optimizers() for client in clients]
    numbers = [0] * len(clients)
    for place, of_all in enumerate(rounds):
        numbers = [0] * len(clients) if place in (numbered_from or ()) else numbers
        samples = [sum(map(len, own)) for own in of_all]
        for k, (client, optimizer, own) in enumerate(zip(clients, optimizers, of_all, strict=True)):
            for at in range(0, len(own), accumulate):
                optimizer.zero_grad()
                for rows in own[at : at + accumulate]:
                    loss = F.cross_entropy(client.net(data.tensors[0][rows]), data.tensors[1][rows])
                    numbers[k] += 1
                    (loss / accumulate * (numbers[k] if numbered_from else 1)).backward()
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(client.parameters(), clip)
                optimizer.step()
        states = [client.state_dict() for client in clients]
        mean = {
            name: sum(n / sum(samples) * s[name] for n, s in zip(samples, states, strict=True)) for name in states[0]
        }
        for client in clients:
            client.load_state_dict(mean)
    return clients[0].state_dict()


@pytest.mark.parametrize(
    ("options", "trainer_options"),
    [
        ({"round_steps": 2}, {}),
        ({"round_steps": 2, "processes": 2}, {"deterministic": True}),
        ({"round_steps": 3, "processes": 1}, {}),
        ({"round_steps": 2, "clock": "virtual"}, {}),
        ({}, {}),
    ],
    ids=["as they come", "two processes in order", "one process", "virtual clock", "a round is an epoch"],
)
def test_the_update_is_that_of_federated_averaging_with_those_batches(options, trainer_options):
    module, data = start(), vectors_of(40)
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(
        clients=profiles(), server=ServerProfile(flops=1e9), policy=Deals(*SIZES), partition=PARTS, timeout=30,
        **options,
    )  # fmt: skip
    trainer = fit(module, data, strategy, batch_size=4, epochs=2, **trainer_options)
    rounds = list(rounds_of(PARTS, SIZES, options.get("round_steps")))
    same(module.state_dict(), fedavg(plain, data, 2 * rounds))
    assert trainer.global_step == 2 * sum(len(own) for of_all in rounds for own in of_all)
    steps = [[{c.client: c.steps for c in report.clients}.get(k, 0) for k in range(3)] for report in strategy.rounds]
    assert steps == 2 * [[len(own) for own in of_all] for of_all in rounds]
    samples = [sum(c.samples for r in strategy.rounds for c in r.clients if c.client == k) for k in range(3)]
    assert samples == [2 * len(part) for part in PARTS], "every sample once an epoch"


def test_micro_batches_of_planned_batches_add_up_to_the_same():
    module, data = start(), vectors_of(40)
    plain = copy.deepcopy(module)
    policy = Deals(*SIZES, micro_batches=(3, 2, 2))
    strategy = EdgeSplitStrategy(clients=profiles(), policy=policy, partition=PARTS, round_steps=2, timeout=30)
    trainer = fit(module, data, strategy, batch_size=4, epochs=2)
    rounds = list(rounds_of(PARTS, SIZES, 2))
    same(module.state_dict(), fedavg(plain, data, 2 * rounds))
    parts = [
        min(most, len(rows)) for of_all in rounds for most, own in zip((3, 2, 2), of_all, strict=True) for rows in own
    ]
    assert trainer.global_step == 2 * sum(parts)


def test_gradients_are_accumulated_over_planned_batches_and_the_last_ones_of_an_epoch():
    # 3 and 6 batches of client 0 in rounds of 4 at most: the last step of its epoch is of one batch
    sizes, parts = ((5, 2), (3, 2)), [list(range(23)), list(range(23, 40))]
    module, data = start(), vectors_of(40)
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(clients=profiles(2), policy=Deals(*sizes), partition=parts, round_steps=4, timeout=30)
    fit(module, data, strategy, batch_size=4, epochs=2, accumulate_grad_batches=2, deterministic=True)
    rounds = list(rounds_of(parts, sizes, 4))
    assert {len(own) % 2 for of_all in rounds for own in of_all} == {0, 1}
    same(module.state_dict(), fedavg(plain, data, 2 * rounds, accumulate=2))


@pytest.mark.parametrize(
    ("options", "clip"),
    [({}, 0.05), ({"second_cut": "net.3"}, None), ({"clock": "wall"}, None)],
)
def test_clipping_a_second_cut_and_the_wall_clock_go_with_it(options, clip):
    module, data = start(), vectors_of(40)
    plain = copy.deepcopy(module)
    strategy = EdgeSplitStrategy(
        clients=profiles(), policy=Deals(*SIZES, cut="net.1"), partition=PARTS, round_steps=2, timeout=30, **options
    )
    fit(module, data, strategy, batch_size=4, epochs=2, gradient_clip_val=clip)
    same(module.state_dict(), fedavg(plain, data, 2 * list(rounds_of(PARTS, SIZES, 2)), clip=clip))


class Indexed(Plain):
    """Its loss depends on the number of the batch in the epoch."""

    def training_step(self, batch, batch_idx):
        return (1 + batch_idx) * F.cross_entropy(self.net(batch[0]), batch[1])


def test_batches_are_numbered_through_the_epoch():
    torch.manual_seed(1)
    module, data = Indexed(), vectors_of(23)
    plain = copy.deepcopy(module)
    sizes = ((5,), (2,))
    strategy = EdgeSplitStrategy(clients=profiles(1), policy=Deals(*sizes), round_steps=2, timeout=30)
    fit(module, data, strategy, batch_size=4, epochs=2)
    optimizer = plain.configure_optimizers()
    for _ in range(2):
        batches = (own for (of_one,) in rounds_of([range(23)], sizes, 2) for own in of_one)
        for number, rows in enumerate(batches):
            optimizer.zero_grad()
            ((1 + number) * F.cross_entropy(plain.net(data.tensors[0][rows]), data.tensors[1][rows])).backward()
            optimizer.step()
    same(module.state_dict(), plain.state_dict())


def test_one_client_of_joint_is_plain_lightning_shuffling_and_dropout_included():
    class Dropping(Plain):
        def __init__(self):
            super().__init__()
            self.net.insert(2, torch.nn.Dropout(0.3))

    def trained(strategy):
        torch.manual_seed(1)
        module = Dropping()
        trainer = L.Trainer(
            strategy=strategy, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_train_batches=4,
        )  # fmt: skip
        torch.manual_seed(2)
        trainer.fit(module, DataLoader(vectors_of(23), batch_size=5, shuffle=True))
        return module.state_dict()

    torch.manual_seed(2)
    same(trained(EdgeSplitStrategy(clients=1, policy=Joint(batches=True), round_steps=3, timeout=30)), trained("auto"))


def test_who_misses_a_round_loses_the_samples_of_a_turn():
    module, data = start(), vectors_of(46)
    plain, parts = copy.deepcopy(module), [list(range(23)), list(range(23, 46))]
    strategy = EdgeSplitStrategy(
        clients=profiles(2), policy=Deals((7, 2), (3, 6)), partition=parts, participation=0.5, round_steps=1, timeout=30
    )
    trainer = fit(module, data, strategy, batch_size=4, epochs=3)
    optimizers, steps = [plain.configure_optimizers() for _ in parts], 0
    reports = iter(strategy.rounds)
    for _ in range(3):
        left, piles, number = [23, 23], [list(part) for part in parts], 0
        while any(left):
            k, size = next(reports).clients[0].client, ((7, 2), (3, 6))[number % 2]
            other, number = 1 - k, number + 1
            rows = [piles[k].pop(0) for _ in range(min(size[k], left[k]))]
            left[k] -= len(rows)
            left[other] -= min(4, left[other])
            optimizers[k].zero_grad()
            F.cross_entropy(plain.net(data.tensors[0][rows]), data.tensors[1][rows]).backward()
            optimizers[k].step()
            steps += 1
    assert next(reports, None) is None
    same(module.state_dict(), plain.state_dict())
    assert trainer.global_step == steps


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable", "ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize("arrivals", [6, 9, 8])
def test_a_run_goes_on_from_a_checkpoint_within_an_epoch(tmp_path, arrivals, processes):
    # arrivals in order, with the sizes of (7, 2, 1) and (3, 4, 3): round 1 is 7 2 1 7 2 1, round 2 is 3 4 3 3 3 1
    sizes = SIZES

    def run(epochs, path=None, callbacks=()):
        strategy = EdgeSplitStrategy(
            clients=profiles(), policy=Deals(*sizes), partition=PARTS, round_steps=2, processes=processes, timeout=30,
        )  # fmt: skip
        torch.manual_seed(1)
        module = Indexed()
        return module, go_on(module, DataLoader(data, batch_size=4), strategy, tmp_path, epochs, path, callbacks)

    data = vectors_of(40)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=arrivals, save_top_k=-1)
    run(1, callbacks=[keep])
    module, trainer = run(2, path=tmp_path / f"step={arrivals}.ckpt")
    rounds = list(rounds_of(PARTS, sizes, 2))
    if arrivals == 6:
        expected = fedavg(start(), data, 2 * rounds, numbered_from=(0, len(rounds)))
    else:  # round 2 is stopped within: in waves of two the first two are done before the third has begun
        done = {(9, None): (1, 1, 1), (8, None): (1, 1, 0), (9, 2): (2, 1, 0), (8, 2): (1, 1, 0)}[arrivals, processes]
        piles = [list(part) for part in PARTS]
        trained = [[own[:n] for own, n in zip(rounds[1], done, strict=True)]]
        for pile, of_one, more in zip(piles, rounds[0], trained[0], strict=True):
            del pile[: sum(map(len, of_one)) + sum(map(len, more))]
        # what is left of the epoch, from round 3 on, which has the sizes of an odd one
        left = list(rounds_of(piles, sizes, 2))
        expected = fedavg(start(), data, [rounds[0], *trained, *left, *rounds], numbered_from=(0, 2 + len(left)))
    same(module.state_dict(), expected)
    assert trainer.current_epoch == 2


def test_with_joint_slow_clients_get_smaller_batches_and_the_global_batch_stays():
    clients = [ClientProfile("fast", flops=4e8), ClientProfile("slow", flops=1e8, uplink=1e6)]
    server = ServerProfile(flops=1e9, uplink=1e7, downlink=1e7)
    times = {}
    for policy in (Joint(), Joint(batches=True)):
        strategy = EdgeSplitStrategy(
            clients=clients, server=server, policy=policy, round_steps=2, clock="virtual", timeout=30
        )
        fit(start(), vectors_of(80), strategy, batch_size=10, epochs=1)
        times[policy.batches] = strategy.rounds[0].seconds
        if policy.batches:
            batches = [{c.name: c.batch for c in report.clients} for report in strategy.rounds]
            assert batches[0]["slow"] < 10 < batches[0]["fast"]
            assert all(sum(batch or 10 for batch in own.values()) == 10 * len(own) for own in batches)
            assert sum(c.samples for report in strategy.rounds for c in report.clients) == 80
            assert all(c.round_time == pytest.approx(c.predicted) for r in strategy.rounds for c in r.clients)
        else:
            assert all(c.batch is None for c in strategy.rounds[0].clients)
    assert times[True] < times[False]


def test_a_plan_with_batches_of_a_policy_that_does_not_say_so_is_refused():
    class Silent(Deals):
        batches = False

    with pytest.raises(ValueError, match=r"plans batches=\(3, 4, 3\).*attribute `batches`"):
        fit(start(), vectors_of(40), EdgeSplitStrategy(clients=profiles(), policy=Silent(*SIZES)), batch_size=4)


@pytest.mark.parametrize("server_model", ["sequential", "shared", "splitfed-v2"])
def test_other_server_side_models_are_refused(server_model):
    with pytest.raises(ValueError, match=rf"batches=True of policy='joint' does not go with.*{server_model}"):
        EdgeSplitStrategy(clients=2, policy={"policy": "joint", "batches": True}, server_model=server_model)


def test_loaders_that_cannot_be_dealt_anew_are_refused_before_any_process_starts(monkeypatch):
    monkeypatch.setattr("lightning_edgesplit.strategy.launch", lambda *args: pytest.fail("a process was started"))
    strategy = EdgeSplitStrategy(clients=1, policy=Joint(batches=True), partition=None)
    trainer = L.Trainer(strategy=strategy, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"batches=True of the policy.*batch_size=None"):
        trainer.fit(start(), DataLoader(vectors_of(8), batch_size=None))


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable", "ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(("before", "after", "word"), [(False, True, "without"), (True, False, "with")])
def test_a_checkpoint_within_an_epoch_is_not_gone_on_with_in_other_units(tmp_path, before, after, word):
    def run(batches, epochs, path=None, callbacks=()):
        strategy = EdgeSplitStrategy(clients=2, policy=Joint(batches=batches, budget=50), round_steps=1, timeout=30)
        loader = DataLoader(vectors_of(24), batch_size=4)
        return go_on(start(), loader, strategy, tmp_path, epochs, path, callbacks)

    within = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    end = ModelCheckpoint(tmp_path, filename="end", every_n_epochs=1)
    run(before, 1, callbacks=[within, end])
    with pytest.raises(ValueError, match=rf"within an epoch {word} batches=True"):
        run(after, 2, tmp_path / "step=2.ckpt")
    assert run(after, 2, tmp_path / "end.ckpt").current_epoch == 2


class OnceLearned(Deals):
    """Other batches once measured times have changed what is known."""

    def plan(self, costs, clients, server, corrections=None):
        learned = corrections is not None and any(factor != 1 for factor in corrections.compute)
        self.now = self.sizes[1 if learned else 0]
        return super().plan(costs, clients, server, corrections)


def test_what_is_learnt_within_an_epoch_changes_the_batches_of_the_next_one(monkeypatch):
    def learn(planner, plan, steps, report):  # as if every client had been slower than its profile
        planner.corrections = replace(planner.corrections, compute=(2.0, 2.0))

    monkeypatch.setattr(Planner, "learn", learn)
    module, data, parts = start(), vectors_of(40), [list(range(23)), list(range(23, 40))]
    plain, sizes = copy.deepcopy(module), ((6, 2), (3, 5))
    strategy = EdgeSplitStrategy(
        clients=profiles(2), policy=OnceLearned(*sizes), partition=parts, round_steps=1, timeout=30
    )
    fit(module, data, strategy, batch_size=4, epochs=2)
    rounds = [*rounds_of(parts, sizes[:1], 1), *rounds_of(parts, sizes[1:], 1)]
    same(module.state_dict(), fedavg(plain, data, rounds))
    told = [{client.batch for client in report.clients if client.client == 0} for report in strategy.rounds]
    assert [own for own in told if own] == [{6}] * 4 + [{3}] * 8


class OnceThawed(Deals):
    """Other batches once the first layer is trained, which costs more than before."""

    least = float("inf")

    def plan(self, costs, clients, server, corrections=None):
        backward = next(cut.client_backward for cut in costs.cuts if cut.name == self.cut)
        OnceThawed.least = min(self.least, backward)
        self.now = self.sizes[1 if backward > self.least else 0]
        return super().plan(costs, clients, server, corrections)


class Thaw(Callback):
    """Trains the first layer from the third batch on."""

    def on_fit_start(self, trainer, module):
        module.net[0].requires_grad_(False)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            module.net[0].requires_grad_(True)


def test_rounds_that_are_planned_anew_within_an_epoch_go_on_with_what_is_left():
    module, data = start(), vectors_of(23)
    plain, policy = copy.deepcopy(module), OnceThawed((5,), (2,))
    strategy = EdgeSplitStrategy(clients=profiles(1), policy=policy, round_steps=2, timeout=30)
    trainer = fit(module, data, strategy, batch_size=4, epochs=1, callbacks=[Thaw()])
    optimizer = plain.configure_optimizers()
    plain.net[0].requires_grad_(False)
    batches = [range(0, 5), range(5, 10), *(range(at, min(at + 2, 23)) for at in range(10, 23, 2))]
    for number, rows in enumerate(map(list, batches)):
        plain.net[0].requires_grad_(number > 1)
        optimizer.zero_grad()
        F.cross_entropy(plain.net(data.tensors[0][rows]), data.tensors[1][rows]).backward()
        optimizer.step()
    same(module.state_dict(), plain.state_dict())
    assert trainer.global_step == len(batches)
    assert [report.clients[0].steps for report in strategy.rounds] == [2, 2, 2, 2, 1]


def test_links_are_granted_and_times_are_learnt_by_the_plans_batches():
    clients, server = [ClientProfile(f"c{k}", flops=1e5) for k in range(2)], ServerProfile(flops=1e5, uplink=1e5)
    cuts = find_cuts(start(), [torch.randn(4, 12), torch.randint(0, 10, (4,))])
    planner = Planner(cuts, Deals((7, 1)), clients, server, batch=[4, 4], emulate=True, round_steps=2)
    plan, expected = planner.plan([2, 2], samples=(23, 23))
    granted = planner.arbitration(replace(plan, disciplines=("fair", "fair")), [2, 2])
    assert granted.works[0].forward == pytest.approx(7 * granted.works[1].forward), "both are as fast"
    # a round that is as predicted teaches nothing
    planner.learn(plan, [2, 2], planned_report(plan, expected, planner.costs([2, 2]), ["c0", "c1"]))
    assert planner.corrections == Corrections.none(2)


def test_how_many_steps_there_will_be_is_not_known_in_configure_optimizers():
    class Asking(Plain):
        def configure_optimizers(self):
            self.trainer.estimated_stepping_batches  # noqa: B018  # asks
            return super().configure_optimizers()

    with pytest.raises(ValueError, match=r"estimated_stepping_batches.*batches=True of the policy"):
        fit(Asking(), vectors_of(20), EdgeSplitStrategy(clients=2, policy=Joint(batches=True)))
