from __future__ import annotations

import threading
import time

import pytest

from lightning_edgesplit.runtime.arbiter import DOWN, UP, Arbiter
from lightning_edgesplit.scheduling.links import SharedLink

INFINITE = float("inf")


class Held:
    """A clock that stands at 0 until all have asked, so that the fluid model's times are exact on any machine."""

    def __init__(self) -> None:
        self._began: float | None = None

    def go(self) -> None:
        self._began = time.monotonic()

    def __call__(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began


def arbiter(discipline: str, capacity: float = 1000.0, clock: Held | None = None) -> Arbiter:
    links = [SharedLink(discipline, capacity, [INFINITE, INFINITE]) for _ in range(2)]
    return Arbiter(links, [0.0, 0.0], clock or Held())


def finish(discipline: str, asks: list[tuple[int, int, int, float]]) -> list[tuple[int, float]]:
    """Asks for all at once; in what order, and after how many seconds by the fluid model, transfers are through."""
    came, all_here, clock = list[tuple[int, float]](), threading.Event(), Held()
    own = arbiter(discipline, clock=clock)

    def done(transfer):
        came.append((transfer.client, transfer.end - transfer.asked))
        if len(came) == len(asks):
            all_here.set()

    try:
        for client, way, size, urgency in asks:
            own.ask(client, way, size, urgency, done)
        clock.go()
        assert all_here.wait(20)
    finally:
        own.close()
    return came


def test_who_has_the_longest_way_to_go_overtakes():
    came = finish("longest_first", [(0, UP, 100, 1.0), (1, UP, 50, 2.0)])
    assert [client for client, _ in came] == [1, 0]
    assert came[0][1] == pytest.approx(0.05)  # alone on the link, though it asked second
    assert came[1][1] == pytest.approx(0.15)  # its own 100 bytes, and the other's 50


def test_directions_do_not_disturb_each_other():
    came = finish("longest_first", [(0, UP, 100, 1.0), (1, DOWN, 100, 2.0)])
    assert [seconds for _, seconds in came] == pytest.approx([0.1, 0.1])


def test_fair_links_are_shared_by_those_that_send():
    came = finish("fair", [(0, UP, 100, 1.0), (1, UP, 100, 2.0)])
    assert [seconds for _, seconds in came] == pytest.approx([0.2, 0.2])


def test_frames_of_one_client_stay_in_their_order():
    order = []
    links = [SharedLink("longest_first", 1e4, [INFINITE]) for _ in range(2)]
    own, last = Arbiter(links, [0.0]), threading.Event()
    try:
        for number, size in enumerate([300, 200, 1]):
            own.ask(0, UP, size, 0.0, lambda t, n=number: (order.append(n), last.set() if n == 2 else None))
        assert last.wait(20)
    finally:
        own.close()
    assert order == [0, 1, 2]


def test_a_closed_arbiter_leaves_no_thread_and_grants_nothing_more():
    own = arbiter("fair", capacity=1e-3)
    own.ask(0, UP, 1000, 0.0, lambda transfer: None)
    own.close()
    assert not own._thread.is_alive()
