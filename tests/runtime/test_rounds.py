from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from lightning_edgesplit.runtime.resume import Resume
from lightning_edgesplit.runtime.rounds import Rounds, limited
from lightning_edgesplit.scheduling import Corrections


@pytest.mark.parametrize("batches", [[5, 2, 0, 3], [1], [4, 4], [0, 7]])
@pytest.mark.parametrize("limit", [1, 2, 6, 9, 100, 0.3, 0.5, 1.0])
def test_a_limit_is_dealt_out_to_the_clients_in_turn(batches, limit):
    total = int(limit * sum(batches)) if isinstance(limit, float) else limit
    # the oracle: cards on a table, one row per turn, read row by row
    table = [client for turn in range(max(batches)) for client, n in enumerate(batches) if turn < n]
    dealt = table[:total]
    assert limited(batches, limit) == [dealt.count(client) for client in range(len(batches))]


def test_a_stream_takes_its_turns_for_ever_and_needs_a_number():
    assert limited([None, 2], 7) == [5, 2]
    for limit in (1.0, 0.5, 0):
        with pytest.raises(ValueError, match="limit_train_batches"):
            limited([None, 2], limit)


def test_unequal_clients_leave_a_round_when_their_data_end():
    rounds = list(Rounds([5, 2, 0], round_steps=2).of(0))
    assert [r.steps for r in rounds] == [[2, 2, 0], [2, 0, 0], [1, 0, 0]]
    assert [r.left for r in rounds] == [[3, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert [r.number for r in rounds] == [1, 2, 3]
    assert Rounds([5, 2, 0], round_steps=2).arrivals(4) == 7


def test_without_round_steps_an_epoch_is_one_round():
    assert [r.steps for r in Rounds([5, 2, 3]).of(0)] == [[5, 2, 3]]


@pytest.mark.parametrize(("participation", "clients"), [(0.01, 1), (0.5, 2), (0.6, 2), (0.7, 3), (1.0, 4)])
def test_a_fraction_of_all_clients_is_drawn_and_those_left_out_lose_their_turn(participation, clients):
    rounds = list(Rounds([6, 6, 6, 6], round_steps=1, participation=participation, seed=1).of(0))
    assert [sum(n > 0 for n in r.steps) for r in rounds] == [clients] * 6
    assert [r.left for r in rounds] == [[n] * 4 for n in (5, 4, 3, 2, 1, 0)]


def test_the_draw_depends_on_seed_epoch_and_round_alone():
    def drawn(seed, epoch):
        return [tuple(r.steps) for r in Rounds([40] * 5, 1, participation=0.4, seed=seed).of(epoch)]

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn("1", 0) == drawn(1, 0), "as the environment gives it"
    assert drawn(1, 0) != drawn(1, 1)
    assert drawn(1, 0) != drawn(2, 0)
    assert set(drawn(1, 0)) == {
        tuple(int(k in pair) for k in range(5)) for pair in itertools.combinations(range(5), 2)
    }, "in forty rounds every pair is drawn"


def test_only_sampled_epochs_differ_in_length():
    assert {Rounds([9, 1], participation=0.5, seed=0).arrivals(epoch) for epoch in range(20)} == {9, 1}
    assert {Rounds([9, 1]).arrivals(epoch) for epoch in range(20)} == {10}


@pytest.mark.parametrize("participation", [0.5, 1.0])
@pytest.mark.parametrize("after", range(1, 6))
def test_a_resumed_epoch_goes_on_with_the_rounds_that_were_left(after, participation):
    first = Rounds([5, 2, 4], round_steps=1, participation=participation, seed=3)
    whole = list(first.of(2))
    for _ in itertools.islice(first.go_through(2), after):
        first.ended += 1
    second = Rounds([5, 2, 4], round_steps=1, participation=participation, seed=3)
    second.resume(first.position(sum(sum(r.steps) for r in whole[:after])))
    assert second.ended == after
    assert list(second.of(2)) == whole[after:]
    assert second.arrivals(2) == sum(sum(r.steps) for r in whole), "as the Trainer was told"
    assert list(second.of(3)) == list(first.of(3)), "the next epoch is a whole one"


def test_a_position_in_mid_round_holds_the_steps_that_were_not_taken():
    rounds = Rounds([5, 2, 4], round_steps=3)
    next(rounds.go_through(0))
    where = rounds.position(3, [2, 0, 3])
    counted = {"left": [4, 0, 4], "taken": [1, 2, 0]}
    assert where == {"epoch": 0, "round": 1, "arrivals": 3, "rounds": 0, **counted}
    again = Rounds([5, 2, 4], round_steps=3)
    again.resume(where)
    assert again.position(3) == where, "of a checkpoint before the first round"
    assert [r.steps for r in again.of(0)] == [[3, 0, 3], [1, 0, 1]]


def test_a_position_of_another_epoch_begins_a_whole_one():
    rounds = Rounds([2, 2], round_steps=1)
    rounds.resume({"epoch": 1, "round": 1, "left": [1, 1], "taken": [1, 1], "arrivals": 2, "rounds": 3})
    assert [r.steps for r in rounds.of(2)] == [[1, 1], [1, 1]]
    assert rounds.arrivals(2) == 4


@pytest.mark.parametrize("round_steps", [1, 2, None])
@pytest.mark.parametrize("participation", [0.3, 0.6, 1.0])
def test_a_batch_has_no_more_micro_batches_than_samples(round_steps, participation):
    sizes, most = [[8, 8, 8, 3], [8, 1], [None, None, None]], (4, 2, 5)
    batches = [len(own) for own in sizes]
    options = {"micro_batches": lambda epoch, number: most, "samples": lambda client, batch: sizes[client][batch]}
    rounds = Rounds(batches, round_steps, participation, seed=5, **options)
    for epoch in range(6):
        drawn = [r.steps for r in Rounds(batches, round_steps, participation, seed=5).of(epoch)]
        piles = [iter(own) for own in sizes]  # the oracle: every client takes its next batches off its own pile
        expected = [
            [[min(most[k], n or most[k]) for n in itertools.islice(piles[k], count)] for k, count in enumerate(steps)]
            for steps in drawn
        ]
        assert [[list(own) for own in r.parts] for r in rounds.of(epoch)] == expected
        assert rounds.arrivals(epoch) == sum(part for r in expected for own in r for part in own)


def test_a_resumed_epoch_has_the_arrivals_before_and_those_to_come():
    def made():
        sizes = [8, 8, 3]
        return Rounds([3, 3], 2, micro_batches=lambda epoch, number: (4, 4), samples=lambda client, k: sizes[k])

    first = made()
    assert first.arrivals(0) == 2 * (4 + 4 + 3)
    next(first.go_through(0))
    second = made()
    second.resume(first.position(7, [1, 2]))  # of the other client three of four have come, and come again
    assert [r.parts for r in second.of(0)] == [[(4, 3), (4, 4)], [(), (3,)]]
    assert second.arrivals(0) == 7 + 4 + 3 + 4 + 4 + 3


def test_of_a_client_that_missed_a_round_a_checkpoint_leaves_out_no_batch_that_was_not_served():
    rounds = Rounds([4, 4], 1, choose=lambda epoch, number, steps: [steps[0] if number > 1 else 0, steps[1]])
    for _ in itertools.islice(rounds.go_through(0), 2):
        pass
    # both are at work on their batch of round 2
    positions = [{"epoch": 0, "position": {"taken": 1}}, {"epoch": 0, "position": {"taken": 2}}]
    whole = SimpleNamespace(steps_left=[1, 1], positions=lambda: positions)
    planner, timetable = SimpleNamespace(corrections=Corrections.none(2)), SimpleNamespace(now=0.0)
    noted = Resume().note(1, rounds, whole, planner, timetable)
    assert [client["position"]["taken"] for client in noted["clients"]] == [0, 1]
