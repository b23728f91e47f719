from __future__ import annotations

import pytest
from small import Deterministic, fit, vectors

from lightning_edgesplit import EdgeSplitStrategy
from lightning_edgesplit.scheduling import ClientProfile, ServerProfile


def test_on_the_wall_clock_a_round_lasts_at_least_as_long_as_the_emulated_devices_need():
    module = Deterministic()
    weights = sum(p.nbytes for name, p in module.state_dict().items() if name.startswith("net.0."))
    strategy = EdgeSplitStrategy(
        clients=[ClientProfile("near", flops=1e12), ClientProfile("far", flops=1e4, uplink=80e3, latency=0.02)],
        cuts="net.0",
        server=ServerProfile(downlink=1e6),
        clock="wall",
        timeout=30,
    )
    fit(module, vectors(32), strategy, batch_size=8, epochs=1)
    near, far = strategy.rounds[0].clients
    # by hand, per step of 8 samples: 2·12·16 FLOP forward and twice that less the input's gradient backward
    compute = 2 * 8 * (2 * 12 * 16) / 1e4
    assert far.seconds["forward"] == pytest.approx(compute, rel=0.05)
    sent = far.seconds["uplink"] + far.seconds["upload"]
    assert sent >= (2 * 8 * (16 * 4 + 8) + weights) / 10e3 + 3 * 0.02
    assert far.seconds["downlink"] >= 2 * (8 * 16 * 4 / 62.5e3 + 0.02)
    assert near.seconds["forward"] < far.seconds["forward"]
    assert near.overrun > 0  # no machine does it in a microsecond
    assert strategy.rounds[0].predicted > 2 * compute
    assert far.round_time >= 0.95 * far.predicted
