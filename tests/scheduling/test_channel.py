from __future__ import annotations

import math
import random

import numpy as np
import pytest

from lightning_edgesplit.scheduling import Channel, make_policy
from lightning_edgesplit.scheduling.policies.channel import least_power, poured, shannon


def bits(powers, snr) -> float:
    """Shannon's rate over subchannels of 1 Hz."""
    return sum(math.log2(1 + p * s) for p, s in zip(powers, snr, strict=True))


def case(seed):
    rng = random.Random(seed)
    return 10 ** rng.uniform(-2, 1), [10 ** rng.uniform(-1, 2) for _ in range(3)]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_to_pour_the_power_sends_more(seed):
    power, snr = case(seed)
    powers = poured(power, snr)
    assert sum(powers) == pytest.approx(power)
    assert min(powers) >= 0
    parts = np.linspace(0, 1, 201)
    others = max(bits([power * a, power * b, power * (1 - a - b)], snr) for a in parts for b in parts if a + b <= 1)
    assert bits(powers, snr) >= others
    assert bits(powers, snr) == pytest.approx(others, rel=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_the_least_power_for_a_rate_is_the_one_with_which_water_filling_reaches_it(seed):
    power, snr = case(seed)
    reached = bits(poured(power, snr), snr)
    assert least_power(5e5 * reached, snr, bandwidth=5e5) == pytest.approx(power)
    assert shannon(poured(power, snr), snr, bandwidth=5e5) == pytest.approx(5e5 * reached)


def test_a_rate_out_of_reach_needs_infinite_power_and_none_needs_none():
    assert least_power(1e9, [1.0], bandwidth=1.0) == math.inf
    assert least_power(1.0, [], bandwidth=1.0) == math.inf
    assert least_power(0.0, [1.0], bandwidth=1.0) == 0.0


def test_bad_subchannels_are_left_alone():
    assert poured(1.0, [10.0, 0.1]) == pytest.approx([1.0, 0.0])  # 1/0.1 is above any level that 1 W reaches


GOOD = {"subchannels": 2, "bandwidth": 1e6, "noise": 4e-21, "gains": {"a": 1e-9, "b": [1e-9, 2e-9]}, "power": 0.1}


def test_a_mapping_describes_a_channel():
    made = make_policy({"policy": "epsl", "channel": GOOD}).channel
    assert made == Channel(**GOOD)
    assert made.snr("b") == pytest.approx([1e-9 / 4e-15, 2e-9 / 4e-15])
    assert made.snr("a") == pytest.approx([1e-9 / 4e-15] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwith": 1.0}, "'bandwith' of a channel is unknown: its keys are subchannels, bandwidth"),
        ({"noise": 0}, "noise=0 of a channel must be a number > 0"),
        ({"power": {"a": -1}}, "power of 'a'=-1 of a channel must be"),
        ({"gains": {"b": [1e-9]}}, "gains of 'b' are 1 for 2 subchannels"),
        ({"gains": {"b": [1e-9, -1]}}, "gains of 'b'=-1 of a channel"),
        ({"gains": {"b": [-1, 1e-9]}}, "gains of 'b'=-1 of a channel"),
        ({"subchannels": 2.5}, "subchannels=2.5 of a channel must be a whole number"),
        ({"total_power": "much"}, "total_power='much' of a channel must be a number"),
    ],
)
def test_a_channel_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Channel.of({**GOOD, **change})


def test_a_key_that_is_missing_and_a_client_that_is_unknown_are_named():
    with pytest.raises(ValueError, match="a channel needs 'noise'"):
        Channel.of({key: value for key, value in GOOD.items() if key != "noise"})
    with pytest.raises(ValueError, match="gains of a channel lack client 'c': they have a, b"):
        Channel(**GOOD).snr("c")
    with pytest.raises(ValueError, match="power of a channel lacks client 'b': it has a"):
        Channel(**{**GOOD, "power": {"a": 1.0}}).most_power("b")
