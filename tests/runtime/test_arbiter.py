from __future__ import annotations

import threading

from lightning_edgesplit.runtime.arbiter import DOWN, UP, Arbiter
from lightning_edgesplit.scheduling.links import SharedLink

INFINITE = float("inf")


def arbiter(discipline: str, latency: float = 0.0, capacity: float = 1000.0) -> Arbiter:
    links = [SharedLink(discipline, capacity, [INFINITE, INFINITE]) for _ in range(2)]
    return Arbiter(links, [latency, latency])


def finish(arbiter: Arbiter, asks: list[tuple[int, int, int, float]]) -> list[tuple[int, float]]:
    """Asks for all; in what order, and after how many seconds by the fluid model, transfers are through."""
    came, all_here = list[tuple[int, float]](), threading.Event()

    def done(transfer):
        came.append((transfer.client, transfer.end - transfer.asked))
        if len(came) == len(asks):
            all_here.set()

    try:
        for client, way, size, urgency in asks:
            arbiter.ask(client, way, size, urgency, done)
        assert all_here.wait(20)
    finally:
        arbiter.close()
    return came


def test_who_has_the_longest_way_to_go_overtakes():
    came = finish(arbiter("longest_first"), [(0, UP, 100, 1.0), (1, UP, 50, 2.0)])
    assert [client for client, _ in came] == [1, 0]
    assert abs(came[0][1] - 0.05) < 1e-9  # alone on the link from the moment it asked
    assert 0.15 <= came[1][1] + 1e-3 < 0.151 + 0.02  # its own 100 bytes, and the other's 50


def test_directions_do_not_disturb_each_other():
    came = finish(arbiter("longest_first"), [(0, UP, 100, 1.0), (1, DOWN, 100, 2.0)])
    assert all(abs(seconds - 0.1) < 1e-9 for _, seconds in came)


def test_fair_links_are_shared_by_those_that_send():
    came = dict(finish(arbiter("fair"), [(0, UP, 100, 1.0), (1, UP, 100, 2.0)]))
    assert all(0.19 < seconds <= 0.2 + 1e-9 for seconds in came.values())


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
