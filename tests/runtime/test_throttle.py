from __future__ import annotations

import pytest

from lightning_edgesplit.runtime.throttle import Emulation, Throttle, TokenBucket


class Clock:
    """Time that passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def throttle(clock: Clock, **emulation) -> Throttle:
    return Throttle(Emulation(**{"forward": 0.1, "backward": 0.2, **emulation}), clock=clock, sleep=clock.sleep)


def test_compute_takes_the_emulated_time_however_long_the_real_work_took():
    clock = Clock()
    slow = throttle(clock)
    start = clock()
    clock.now += 0.3  # the real work
    slow.forward(start, samples=8)
    assert clock() == pytest.approx(100.8)
    slow.backward(clock(), samples=8)
    assert clock() == pytest.approx(102.4)
    assert slow.overrun == 0


def test_what_the_machine_could_not_keep_up_with_is_added_up():
    clock = Clock()
    fast = throttle(clock)
    for _ in range(2):
        start = clock()
        clock.now += 1.0
        fast.forward(start, samples=8)  # 0.8 s emulated
    assert clock() == pytest.approx(102.0)
    assert fast.overrun == pytest.approx(0.4)


def test_a_message_takes_its_bits_over_the_rate_plus_the_latency():
    clock = Clock()
    link = throttle(clock, uplink=8e6, downlink=4e6, latency=0.05)
    link.sending(1_000_000)
    assert clock() == pytest.approx(100 + 1.0 + 0.05)
    arrived = clock()
    clock.now += 0.5  # it was here half a second ago
    link.received(1_000_000, arrived)
    assert clock() == pytest.approx(arrived + 2.0 + 0.05)


def test_messages_in_a_row_share_the_rate_and_idle_time_is_not_saved_up():
    bucket = TokenBucket(8e6, burst=1500)
    assert bucket.transmit(1_001_500, 10.0) == pytest.approx(11.0)
    assert bucket.transmit(1_000_000, 10.5) == pytest.approx(12.0)  # behind the first
    assert bucket.transmit(1_001_500, 100.0) == pytest.approx(101.0)


def test_without_emulation_or_limit_nothing_waits():
    clock = Clock()
    for free in (Throttle(clock=clock, sleep=clock.sleep), throttle(clock, forward=0.0, backward=0.0)):
        free.forward(clock(), 1000)
        free.sending(10**9)
        free.received(10**9, clock())
    assert clock() == 100.0
