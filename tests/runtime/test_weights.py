"""Weights that travel with fewer bits: federated averaging with the same rounding, in plain PyTorch, is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from small import Classifier, fit, vectors
from torch import nn

from lightning_edgesplit import ClientProfile, EdgeSplitStrategy, ServerProfile
from lightning_edgesplit.runtime.weights import Begun, Masters, narrow, take, wide
from lightning_edgesplit.runtime.wire import HEADER_BYTES, Frame, Kind, decode, encode, read_header

PARTS = [list(range(20)), list(range(20, 32))]
OVERHEAD = 3000
"""Bytes of a frame's header, table and text at most."""


class Wide(Classifier):
    """Weights enough for their bytes to be seen; batch norm, so that there are buffers too."""

    optimizer = staticmethod(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))

    def __init__(self) -> None:
        layers = nn.Linear(12, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10)
        super().__init__(nn.Sequential(*layers))


def rounded(x, how):
    """The oracle's rounding: what comes out of it, in the type that went in."""
    if how == "bfloat16":
        return x.to(torch.bfloat16).to(x.dtype)
    count = len(x) if x.ndim > 1 else 1
    if x.numel() + 8 * count + 40 >= x.nbytes:
        return x
    rows = x.reshape(count, -1).float()
    low, high = rows.min(1, keepdim=True).values, rows.max(1, keepdim=True).values
    level = (high - low) / 255
    level[level == 0] = 1
    return (torch.round((rows - low) / level).clamp(0, 255) * level + low).reshape(x.shape).to(x.dtype)


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


def oracle(module, data, cut, how, epochs=3, batch=4, parts=PARTS, reset=False):
    """Federated averaging in which the parameters before the cut are rounded on their way, down and up.

    Returns:
        The averaged model, and for every round the clients' relative errors of what they returned.
    """
    layers = len(module.net) if cut == "end" else int(cut.removeprefix("net.")) + 1
    mine = [name for name, _ in module.named_parameters() if int(name.split(".")[1]) < layers]
    clients = [copy.deepcopy(module) for _ in parts]
    optimizers = [client.configure_optimizers() for client in clients]
    master, errors = copy.deepcopy(module.state_dict()), []
    for _ in range(epochs):
        models = []
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


def train(cut, how, module=Wide, epochs=3, parts=PARTS, **options):
    """Trains split between clients: what it is then, what the oracle starts from, the data, and the strategy."""
    torch.manual_seed(1)
    own, data = module(), vectors(32)
    torch.manual_seed(1)
    plain = module()
    trainer_options = {key: options.pop(key) for key in ("precision", "callbacks", "max_steps") if key in options}
    strategy = EdgeSplitStrategy(
        **{"clients": len(parts), "cuts": cut, "partition": parts, "weight_compression": how, **options}
    )
    fit(own, data, strategy, batch_size=4, epochs=epochs, **trainer_options)
    return own, plain, data, strategy


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


# ---- what is trained -------------------------------------------------------------------------------------------------


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


# ---- bytes -----------------------------------------------------------------------------------------------------------

TRAINED = {"none": 4, "bfloat16": 2}
NUMBERS = 12 * 400 + 400 + 2 * 400 + 400 * 64 + 64 + 64 * 10 + 10
BUFFERS = 2 * 4 * 400 + 8


def by_hand(how):
    """Bytes of all weights and buffers of `Wide`."""
    if how != "int8":
        return TRAINED[how] * NUMBERS + BUFFERS
    ranges = 400 + 3 + 64 + 1 + 10  # rows of three matrices, one each for the vectors but the last
    return NUMBERS + 8 * ranges + 40 * 7 + 3 * 10 + BUFFERS  # the last vector goes as it is


@pytest.mark.parametrize("processes", [None, 1])
@pytest.mark.parametrize("how", ["none", "bfloat16", "int8"])
def test_plans_count_the_bytes_that_travel(how, processes):
    _, _, _, strategy = train("end", how, processes=processes)
    weights = strategy._planner.costs([5, 3])["end"].weights
    assert weights == by_hand(how)
    for round_ in strategy.rounds:
        for client in round_.clients:
            assert weights < client.bytes_down < weights + OVERHEAD
            assert weights < client.bytes_up < weights + 2 * OVERHEAD  # a frame per local step, without smashed data


def test_half_and_about_a_quarter_of_the_bytes():
    full, half, quarter = (by_hand(how) - BUFFERS for how in ("none", "bfloat16", "int8"))
    assert half == full / 2
    assert quarter < 0.3 * full


@pytest.mark.parametrize("how", ["none", "bfloat16", "int8"])
def test_the_virtual_clock_takes_the_bytes_that_travel(how):
    clients = [ClientProfile(f"c{k}", flops=1e9) for k in range(2)]
    server = ServerProfile(flops=1e9, uplink=16e6, downlink=8e6)  # half of it each: 1e6 and 5e5 bytes per second
    _, _, _, strategy = train("end", how, clients=clients, server=server, clock="virtual", policy="fedavg", cuts=None)
    for client in strategy.rounds[0].clients:
        assert client.seconds["download"] == pytest.approx(by_hand(how) / 5e5)
        assert client.seconds["upload"] == pytest.approx(by_hand(how) / 1e6)
    average = 2 * (NUMBERS + BUFFERS / 4) * 2 / 1e9  # 2 FLOP per weight and client, however many bits had travelled
    assert strategy.rounds[0].aggregation_seconds == pytest.approx(average)


def test_a_client_keeps_what_it_was_sent():
    fixed = {how: train("end", how, epochs=1)[3]._planner.costs([5, 3])["end"].memory_fixed for how in TRAINED}
    assert fixed["bfloat16"] - fixed["none"] == 2 * NUMBERS


# ---- tensor by tensor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["none", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (7,), (50,), (6, 50), (4, 3, 5, 5), (0, 3)])
def test_tensors_survive_the_wire(shape, dtype, how):
    x = torch.randn(shape).mul(10).to(dtype)
    [piece] = encode(Frame(Kind.ROUND, [*narrow(x, how), torch.arange(3)]))
    rest = iter(decode(read_header(piece[:HEADER_BYTES]), memoryview(piece)[HEADER_BYTES:])[0].tensors)
    back = wide(take(rest, dtype), dtype)
    assert (back.shape, back.dtype) == (x.shape, x.dtype)
    assert torch.equal(next(rest), torch.arange(3)), "nothing more was taken"
    expected = x if how == "none" or not dtype.is_floating_point else rounded(x, how)
    torch.testing.assert_close(back, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_channels_that_come_last_still_do(how):
    x = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    sent = narrow(x, how)
    back = wide(sent, x.dtype)
    assert sent[0].is_contiguous(memory_format=torch.channels_last)
    assert back.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(back, rounded(x.contiguous(), how), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("came", "dtype", "message"),
    [
        ([], torch.float32, "did not come"),
        ([torch.zeros(4, dtype=torch.int64)], torch.float32, "of type torch.float32 came as torch.int64"),
        ([torch.zeros(4, dtype=torch.bfloat16)], torch.int64, "of type torch.int64 came as torch.bfloat16"),
        ([torch.zeros(4, 9, dtype=torch.uint8)], torch.float32, "without its ranges"),
        ([torch.zeros(4, 9, dtype=torch.uint8), torch.zeros(2, 3)], torch.float32, "without its ranges"),
    ],
)
def test_what_cannot_be_a_weight_is_noticed(came, dtype, message):
    with pytest.raises(ValueError, match=message):
        take(iter(came), dtype)


def test_weights_that_are_no_numbers_any_more_stay_none():
    x = torch.randn(3, 40)
    x[1, 7] = float("nan")
    x[2, 5] = float("inf")
    back = wide(narrow(x, "int8"), x.dtype)
    assert torch.isfinite(back).all(1).tolist() == [True, False, False]


def test_what_rests_goes_as_it_is():
    tensors = {"weight": torch.randn(8, 40), "running_var": torch.rand(40)}
    masters = Masters(tensors, {"running_var"}, "int8")
    assert [x.dtype for x in masters.sent("weight")] == [torch.uint8, torch.float32]
    assert masters.sent("running_var")[0] is tensors["running_var"]
    begun = Begun("int8")
    came = iter([*masters.sent("weight"), *masters.sent("running_var")])
    own = {name: begun.take(name, came, torch.float32) for name in tensors}
    back, error = begun.returned({"weight": own["weight"] + 0.1 * torch.randn(8, 40), "running_var": torch.ones(40)})
    assert [x.dtype for x in back] == [torch.uint8, torch.float32, torch.float32]
    assert torch.equal(back[2], torch.ones(40))
    assert 0 < error < 0.02
