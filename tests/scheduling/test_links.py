"""A shared link by hand: 12 bytes/s, clients' own links of 8, 2 and 6 bytes/s unless said otherwise."""

from __future__ import annotations

import random

import pytest

from lightning_edgesplit.scheduling.links import INFINITE, SharedLink, bytes_per_second


def link(discipline: str, capacity: float = 12, limits: tuple[float, ...] = (8, 2, 6)) -> SharedLink:
    return SharedLink(discipline, capacity, limits)


def until_empty(shared: SharedLink) -> list[tuple[float, int]]:
    """(end, client) of every transfer, in the order in which they end."""
    ends = []
    while shared.next_end < INFINITE:
        now = shared.next_end
        ends += [(now, transfer.client) for transfer in shared.ended(now)]
    return ends


def test_a_static_share_is_what_it_is_whoever_else_sends():
    shared = link("static")
    sizes = (16, 8, 18)
    transfers = [shared.add(client, size, 0.0, now=1.0) for client, size in enumerate(sizes)]
    assert [transfer.rate for transfer in transfers] == [8, 2, 6]
    assert until_empty(shared) == [(3, 0), (4, 2), (5, 1)]


def test_fair_is_max_min_fair_who_cannot_use_its_part_leaves_it_to_the_others():
    shared = link("fair")
    first = shared.add(0, 16, 0.0, now=0.0)
    assert first.rate == 8  # its own link, though the shared one has 12
    second = shared.add(1, 4, 0.0, now=1.0)  # 8 bytes of the first are through
    assert (first.rate, second.rate) == (8, 2)
    third = shared.add(2, 14, 0.0, now=1.0)  # 12 = 2 for the one with the slow link, 5 for each of the others
    assert (first.rate, second.rate, third.rate) == (5, 2, 5)
    # the first has 8 left: 8/5 = 1.6 s, to 2.6; then the third, with 14 − 8 = 6 left, has 6: to 3.6; the second to 3
    assert until_empty(shared) == [(pytest.approx(2.6), 0), (3, 1), (pytest.approx(3.6), 2)]


def test_longest_first_gives_the_most_urgent_all_it_can_use_and_the_rest_to_the_next():
    shared = link("longest_first", limits=(8, 8, 8))
    late = shared.add(0, 8, urgency=1.0, now=0.0)
    assert late.rate == 8
    middle = shared.add(1, 8, urgency=2.0, now=0.5)  # takes 8 of the 12; the first, with 4 bytes left, keeps 4
    assert (late.rate, middle.rate) == (4, 8)
    urgent = shared.add(2, 16, urgency=3.0, now=1.0)
    assert (late.rate, middle.rate, urgent.rate) == (0, 4, 8)  # 2 bytes and 4 bytes are left
    # 1–2: middle ends its 4; the late one has 4 again: its 2 bytes to 2.5; the urgent one 16 bytes from 1 to 3
    assert until_empty(shared) == [(2, 1), (2.5, 0), (3, 2)]


def test_a_transfer_that_is_overtaken_at_once_begins_when_it_first_gets_a_rate():
    shared = link("longest_first", capacity=8, limits=(8, 8))
    shared.add(0, 8, urgency=2.0, now=0.0)
    waiting = shared.add(1, 8, urgency=1.0, now=0.25)
    assert waiting.begun is None
    assert until_empty(shared) == [(1, 0), (2, 1)]
    assert (waiting.asked, waiting.begun) == (0.25, 1)


@pytest.mark.parametrize("discipline", ["fair", "longest_first"])
def test_equally_urgent_ones_go_in_the_order_of_their_numbers_and_fair_knows_no_urgency(discipline):
    shared = link(discipline, capacity=8, limits=(8, 8))
    shared.add(1, 8, urgency=1.0, now=0.0)
    shared.add(0, 8, urgency=1.0, now=0.0)
    assert until_empty(shared) == ([(2, 0), (2, 1)] if discipline == "fair" else [(1, 0), (2, 1)])


@pytest.mark.parametrize("discipline", ["static", "fair", "longest_first"])
def test_a_client_sends_one_after_the_other_however_urgent_the_second_is(discipline):
    shared = link(discipline, capacity=8, limits=(8, 8))
    shared.add(0, 8, urgency=1.0, now=0.0)
    shared.add(0, 16, urgency=9.0, now=0.5)
    assert until_empty(shared) == [(1, 0), (3, 0)]


@pytest.mark.parametrize("discipline", ["static", "fair", "longest_first"])
def test_a_limit_that_falls_to_nothing_and_returns_stops_a_transfer_and_lets_it_go_on(discipline):
    shared = link(discipline, capacity=8, limits=(4, 4))
    shared.add(0, 8, urgency=1.0, now=0.0)
    other = shared.add(1, 8, urgency=2.0, now=0.0)
    shared.limit(0, 0.0, now=1.0)  # 4 bytes are through
    assert other.rate == 4
    assert shared.next_end == 2
    assert [transfer.client for transfer in shared.ended(2.0)] == [1]
    assert shared.next_end == INFINITE
    shared.limit(0, 1.0, now=5.0)
    assert until_empty(shared) == [(9, 0)]


def test_nothing_to_send_takes_no_time_and_without_limits_nothing_does():
    for discipline in ("static", "fair", "longest_first"):
        shared = link(discipline, capacity=INFINITE, limits=(INFINITE, 1))
        shared.add(0, 1e12, 0.0, now=2.0)
        shared.add(1, 0, 0.0, now=2.0)
        assert until_empty(shared) == [(2, 0), (2, 1)]


@pytest.mark.parametrize("discipline", ["fair", "longest_first"])
@pytest.mark.parametrize("seed", range(20))
def test_the_link_is_never_more_than_full_and_never_idle_while_somebody_could_use_it(discipline, seed):
    rng = random.Random(seed)
    limits = [rng.uniform(0.5, 10) for _ in range(8)]
    shared = link(discipline, capacity=12, limits=tuple(limits))
    open_, now, total, moved = {}, 0.0, 0.0, 0.0
    for client in rng.sample(range(8), 8):
        size, then = rng.uniform(1, 30), now + rng.uniform(0, 1)
        while shared.next_end <= then:
            moved, now = moved + sum(t.rate for t in open_.values()) * (shared.next_end - now), shared.next_end
            for transfer in shared.ended(now):
                del open_[transfer.client]
        moved, now = moved + sum(t.rate for t in open_.values()) * (then - now), then
        open_[client] = shared.add(client, size, rng.uniform(0, 9), now)
        total += size
        rates = {client: transfer.rate for client, transfer in open_.items()}
        assert sum(rates.values()) == pytest.approx(min(12, sum(limits[client] for client in rates)))
        assert all(rate <= limits[client] + 1e-12 for client, rate in rates.items())
        if discipline == "fair":  # who has less than another is at its own limit
            most = max(rates.values())
            assert all(rate == pytest.approx(most) or rate == limits[client] for client, rate in rates.items())
        else:  # whoever has something leaves nothing to want to those before it
            line = sorted(open_.values(), key=lambda transfer: -transfer.urgency)
            short = [t.client for t in line if t.rate < limits[t.client] - 1e-12]
            assert all(t.rate == 0 for t in line[line.index(open_[short[0]]) + 1 :]) if short else True
    while open_:
        moved, now = moved + sum(t.rate for t in open_.values()) * (shared.next_end - now), shared.next_end
        for transfer in shared.ended(now):
            del open_[transfer.client]
    assert moved == pytest.approx(total)


def test_an_unknown_discipline_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="discipline='random' is unknown: use one of static, fair, longest_first"):
        link("random")


def test_a_rate_in_bits_is_eight_times_one_in_bytes():
    assert bytes_per_second(80.0) == 10
    assert bytes_per_second(None) == INFINITE


@pytest.mark.parametrize("discipline", ["fair", "longest_first"])
def test_what_has_ended_is_not_held_up_by_who_comes_at_that_very_moment(discipline):
    rng = random.Random(0)
    for _ in range(300):  # in some of them a rounding error leaves a little of the first
        shared = link(discipline, capacity=3.3, limits=(3.3, 3.3))
        shared.add(0, rng.uniform(1, 9), urgency=1.0, now=rng.uniform(0, 9))
        now = shared.next_end
        shared.add(1, 1.0, urgency=2.0, now=now)
        assert [transfer.client for transfer in shared.ended(now)] == [0]
