"""Weights that travel with fewer bits: their bytes, counted by hand, and tensor by tensor what comes of them."""

from __future__ import annotations

import pytest
import torch
from weights_samples import rounded, train

from lightning_edgesplit import ClientProfile, ServerProfile
from lightning_edgesplit.runtime.weights import Begun, Masters, narrow, take, wide
from lightning_edgesplit.runtime.wire import HEADER_BYTES, Frame, Kind, decode, encode, read_header

OVERHEAD = 3000
"""Bytes of a frame's header, table and text at most."""

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


def test_with_one_server_side_model_the_clients_sides_are_averaged_with_all_of_their_bits():
    clients = [ClientProfile(f"c{k}", flops=1e9) for k in range(2)]
    server = ServerProfile(flops=1e9, uplink=16e6, downlink=8e6)
    _, _, _, strategy = train(
        "net.3", "int8", clients=clients, server=server, clock="virtual", server_model="shared", epochs=1
    )
    numbers = NUMBERS - 10 * 65 + BUFFERS / 4
    assert strategy.rounds[0].aggregation_seconds == pytest.approx(2 * numbers * 2 / 1e9)


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
