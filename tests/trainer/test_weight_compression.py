"""Weights that travel with fewer bits: federated averaging with the same rounding, in plain PyTorch, is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from small import fit, vectors
from weights_samples import PARTS, Wide, rounded, train

from lightning_edgesplit import EdgeSplitStrategy


def one_round(module, master, optimizer, batches, mine, how):
    """A client's local steps from rounded weights: master plus rounded change of its own, the rest as trained."""
    sent = {name: rounded(x, how) if name in mine else x for name, x in master.items()}
    module.load_state_dict(sent)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(module.net(x), y).backward()
        optimizer.step()
    after = {name: x.clone() for name, x in module.state_dict().items()}
    changes = {name: after[name] - sent[name] for name in mine if sent[name] is not master[name]}
    back = {name: rounded(change, how) for name, change in changes.items()}
    lost = sum((back[name] - change).double().square().sum() for name, change in changes.items())
    norm = sum(change.double().square().sum() for change in changes.values())
    return {**after, **{name: master[name] + change for name, change in back.items()}}, float((lost / norm).sqrt())


def oracle(module, data, cut, how, epochs=3, batch=4, parts=PARTS, reset=False, head=99, thaw=None):
    """Federated averaging in which the parameters before the cut are rounded on their way, down and up.

    Args:
        module: The model; so are
        data: all samples,
        cut: the last layer of the clients' first ones,
        how: the rounding,
        epochs: passes over the data, a round each,
        batch: samples per local step,
        parts: and the clients' sample numbers.
        reset: Whether every round begins with a new optimizer.
        head: The first one of the clients' last layers.
        thaw: The epoch in which what was frozen no longer is.

    Returns:
        The averaged model, and for every round the clients' relative errors of what they returned.
    """
    layers = len(module.net) if cut == "end" else int(cut.removeprefix("net.")) + 1
    clients = [copy.deepcopy(module) for _ in parts]
    optimizers = [client.configure_optimizers() for client in clients]
    master, errors = copy.deepcopy(module.state_dict()), []
    for epoch in range(epochs):
        models = []
        if epoch == thaw:
            for net in (module, *clients):
                net.requires_grad_(True)
        trained = [(name, int(name.split(".")[1])) for name, p in module.named_parameters() if p.requires_grad]
        mine = [name for name, layer in trained if layer < layers or layer >= head]
        for client, part, number in zip(clients, parts, range(len(parts)), strict=True):
            if reset:
                optimizers[number] = client.configure_optimizers()
            batches = [[x[b] for x in data.tensors] for b in torch.tensor(part).split(batch)]
            models.append(one_round(client, master, optimizers[number], batches, mine, how))
        errors.append([error for _, error in models])
        n = [len(part) for part in parts]
        for name, x in master.items():
            mean = sum(k * own[name].double() for k, (own, _) in zip(n, models, strict=True)) / sum(n)
            master[name] = (mean if x.is_floating_point() else mean.round()).to(x.dtype)
    return master, errors


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("cut", ["net.0", "net.3", "end"])
@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_a_run_is_federated_averaging_with_rounded_weights_on_their_way(how, cut):
    own, plain, data, strategy = train(cut, how)
    expected, errors = oracle(plain, data, cut, how)
    torch.testing.assert_close(dict(own.state_dict()), dict(expected), rtol=1e-5, atol=1e-6)
    measured = [[client.weight_error for client in round_.clients] for round_ in strategy.rounds]
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(errors), rtol=1e-3, atol=0)
    exact, _ = oracle(plain, data, cut, "bfloat16" if how == "int8" else "int8")
    assert not torch.allclose(own.net[0].weight, exact["net.0.weight"], rtol=1e-5, atol=1e-6), "the two differ"


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_the_clients_last_layers_are_rounded_like_its_first(how):
    own, plain, data, _ = train("net.0", how, second_cut="net.3")
    expected, _ = oracle(plain, data, "net.0", how, head=4)
    torch.testing.assert_close(dict(own.state_dict()), dict(expected), rtol=1e-5, atol=1e-6)


class Thaws(Callback):
    """Freezes nothing any more from the second epoch on."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            module.requires_grad_(True)


@pytest.mark.parametrize("processes", [None, 1])
@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_what_thaws_travels_with_fewer_bits_from_then_on(how, processes):
    own, plain, data, _ = train("net.3", how, module=Frozen, callbacks=[Thaws()], processes=processes)
    expected, _ = oracle(plain, data, "net.3", how, thaw=1)
    torch.testing.assert_close(dict(own.state_dict()), dict(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_one_client(how):
    parts = [list(range(32))]
    own, plain, data, _ = train("net.3", how, parts=parts)
    expected, _ = oracle(plain, data, "net.3", how, parts=parts)
    torch.testing.assert_close(dict(own.state_dict()), dict(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
@pytest.mark.parametrize("rule", ["keep", "average", "reset"])
def test_processes_give_the_same_bits(how, rule):
    alone, _, _, one = train(["net.3", "end"], how, optimizer_state=rule)
    shared, _, _, other = train(["net.3", "end"], how, optimizer_state=rule, processes=1)
    assert same(alone.state_dict(), shared.state_dict())
    errors = [[[client.weight_error for client in round_.clients] for round_ in s.rounds] for s in (one, other)]
    assert errors[0] == errors[1]


class Unmoved(Wide):
    """Its rate is 0: clients return what they were sent."""

    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.0))


@pytest.mark.parametrize("processes", [None, 1])
@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_rounding_never_gets_into_the_servers_weights(how, processes):
    own, plain, _, strategy = train(["net.3", "end"], how, module=Unmoved, processes=processes)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), plain.parameters(), strict=True))
    assert all(client.weight_error is None for round_ in strategy.rounds for client in round_.clients)


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_cuts_may_move(how):
    policy = {"policy": "random", "seed": 3}
    own, plain, _, strategy = train(None, how, module=Unmoved, policy=policy, round_steps=1)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), plain.parameters(), strict=True))
    assert len({client.cut for round_ in strategy.rounds for client in round_.clients}) > 2


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_a_look_in_mid_round_shows_the_servers_weights_and_exact_changes(how):
    class Looks(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.strategy._server.in_mid_round:
                seen.append({name: x.clone() for name, x in trainer.strategy.lightning_module_state_dict().items()})

    seen: list = []
    _, plain, _, _ = train("net.3", how, module=Unmoved, epochs=1, callbacks=[Looks()])
    before = dict(plain.named_parameters())
    assert seen
    for state in seen:
        for name, x in before.items():
            torch.testing.assert_close(state[name], x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("server_model", ["sequential", "shared", "splitfed-v2"])
@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_other_server_side_models_keep_the_servers_weights_too(server_model, how):
    own, plain, _, _ = train("net.3", how, module=Unmoved, server_model=server_model)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), plain.parameters(), strict=True))


class Fronts:
    """Clients' sides of a model with one server-side rest, in plain PyTorch; the fronts are averaged."""

    def __init__(self, module, how, clients=2, layers=4):
        self.module, self.how, self.layers = module, how, layers
        self.mine = [name for name, _ in module.named_parameters() if int(name.split(".")[1]) < layers]
        self.clients = [copy.deepcopy(module) for _ in range(clients)]
        self.optimizers = [client.optimizer(client.net[:layers].parameters()) for client in self.clients]
        self.back = module.optimizer(module.net[layers:].parameters())

    def begin(self):
        master = self.module.state_dict()
        self.sent = {name: rounded(x, self.how) if name in self.mine else x for name, x in master.items()}
        for client in self.clients:
            client.load_state_dict(self.sent)

    def step(self, batches):
        """One step of the server's, of the batches of these clients."""
        for optimizer in (self.back, *(self.optimizers[k] for k in batches)):
            optimizer.zero_grad()
        fronts = [self.clients[k].net[: self.layers](x) for k, (x, _) in batches.items()]
        F.cross_entropy(
            self.module.net[self.layers :](torch.cat(fronts)), torch.cat([y for _, y in batches.values()])
        ).backward()
        for optimizer in (self.back, *(self.optimizers[k] for k in batches)):
            optimizer.step()

    def end(self):
        """Clients have equally many samples."""
        master, states = self.module.state_dict(), [client.state_dict() for client in self.clients]
        for name, x in master.items():
            if int(name.split(".")[1]) >= self.layers:
                continue
            own = [state[name] for state in states]
            if name in self.mine and self.sent[name] is not x:
                own = [x + rounded(after - self.sent[name], self.how) for after in own]
            x.copy_(sum(after.double() for after in own) / len(own))


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
@pytest.mark.parametrize("server_model", ["shared", "splitfed-v2"])
def test_one_server_side_model_and_averaged_clients(server_model, how):
    parts, turns = [list(range(16)), list(range(16, 32))], []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            turns.append(trainer.strategy._now[0])

    own, plain, data, _ = train("net.3", how, server_model=server_model, parts=parts, callbacks=[Watch()], epochs=2)
    fronts, steps = Fronts(plain, how), 4
    for epoch in range(2):
        fronts.begin()
        batches = [[[x[b] for x in data.tensors] for b in torch.tensor(part).split(4)] for part in parts]
        if server_model == "shared":
            for step in range(steps):
                fronts.step({k: batches[k][step] for k in range(2)})
        else:
            for k in turns[2 * steps * epoch : 2 * steps * (epoch + 1)]:
                fronts.step({k: batches[k].pop(0)})
        fronts.end()
    torch.testing.assert_close(dict(own.state_dict()), dict(plain.state_dict()), rtol=1e-5, atol=1e-6)


def test_vanilla_split_learning_hands_on_master_and_change():
    own, plain, data, _ = train("net.3", "bfloat16", server_model="sequential", optimizer_state="reset")
    master = plain.state_dict()
    for part in 3 * PARTS:
        plain.load_state_dict(master)  # one client after the other begins with what the one before left
        master, _ = oracle(plain, data, "net.3", "bfloat16", epochs=1, parts=[part], reset=True)
    torch.testing.assert_close(dict(own.state_dict()), dict(master), rtol=1e-5, atol=1e-6)


class Frozen(Wide):
    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


@pytest.mark.parametrize("processes", [None, 1])
def test_what_is_frozen_stays_what_it_is_to_the_bit_and_travels_once(processes):
    own, plain, _, strategy = train("net.3", "int8", module=Frozen, processes=processes)
    assert torch.equal(own.net[0].weight, plain.net[0].weight)
    down = [client.bytes_down for round_ in strategy.rounds for client in round_.clients]
    frozen = 4 * (12 * 400 + 400)
    later = down[2:] if processes is None else down[1:]
    assert all(one + frozen < down[0] + 100 for one in later)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_other_types_of_weights(how, precision, dtype):
    own, _, _, strategy = train("net.3", how, precision=precision, epochs=2)
    _, _, _, exact = train("net.3", "none", precision=precision, epochs=2)
    assert all(p.dtype == dtype and p.isfinite().all() for p in own.parameters())
    narrow_bytes, full = (s.rounds[1].clients[0].bytes_down for s in (strategy, exact))
    if (how, dtype) == ("bfloat16", torch.bfloat16):
        assert full <= narrow_bytes < full + 100, "it goes as it is"
    else:
        assert narrow_bytes < full


def test_none_is_the_default_and_changes_no_bit_and_no_byte():
    default, _, _, one = train("net.3", "none")
    torch.manual_seed(1)
    module, data = Wide(), vectors(32)
    other = EdgeSplitStrategy(clients=2, cuts="net.3", partition=PARTS)
    fit(module, data, other, batch_size=4, epochs=3)
    assert same(default.state_dict(), module.state_dict())
    down = [[[client.bytes_down for client in round_.clients] for round_ in s.rounds] for s in (one, other)]
    assert down[0] == down[1]
    assert all(client.weight_error is None for round_ in other.rounds for client in round_.clients)


def test_another_value_is_refused():
    with pytest.raises(ValueError, match="weight_compression='fp8' is unknown: use one of none, bfloat16, int8"):
        EdgeSplitStrategy(weight_compression="fp8")
