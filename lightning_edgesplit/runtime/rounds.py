"""Which clients take how many local steps in which round of which epoch. Numbers only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_edgesplit.scheduling.costs import local_steps


@dataclass(frozen=True)
class Round:
    """A round, and how its epoch stands after it.

    Attributes:
        parts: Arrivals of each local step of every client, one per micro-batch; empty for those that take no part.
        number: Rounds of the epoch up to this one, itself included.
        left: Batches of every client that remain in the epoch after it.
        taken: Batches of the epoch that every client has taken after it; whoever takes no part in a round takes none.
        waiting: Local steps of the same round that other clients take after this one, where they take turns.
        samples: Samples of each local step of every client, where plans divide batches anew (`Dealt`); then `left` and
            `taken` count samples.
        done: Local steps of the epoch that every client has taken after it, in that case.
    """

    parts: list[tuple[int, ...]]
    number: int
    left: list[int]
    taken: list[int]
    waiting: list[int] = field(default_factory=list)
    samples: list[tuple[int, ...]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        """Local steps of every client, 0 for those that take no part."""
        return [len(own) for own in self.parts]


@dataclass(frozen=True)
class Dealt:
    """Batches that plans divide anew. An epoch is then so many samples, which make more or fewer batches.

    Attributes:
        own: Samples in a batch of each client's loader.
        plan: Takes epoch, number of a round, local steps with the loaders' batches, and samples that are left; returns
            local steps and samples in each of them, of every client; asked in the order of the rounds.
    """

    own: tuple[int, ...]
    plan: Callable[[int, int, list[int], list[int]], tuple[list[int], tuple[int, ...]]]


def limited(batches: Sequence[int | None], limit: int | float, together: bool = False) -> list[int]:
    """Batches of every client in an epoch, under a limit for all together that is dealt out in turn.

    Args:
        batches: Batches in one pass over each client's data; None: its loader has no length.
        limit: The Trainer's `limit_train_batches`: a number of batches, or a fraction of all.
        together: Whether a local step of all clients is one batch of the Trainer's.

    Raises:
        ValueError: If a loader has no length and the limit is not a number of batches.
    """
    if None in batches and not (isinstance(limit, int) and limit > 0):
        raise ValueError(
            "a client's training loader has no length: say with the Trainer's limit_train_batches=… how many"
            " batches all clients together take per epoch, or give the dataset a __len__."
        )
    if isinstance(limit, float):
        if limit == 1.0:
            return [n or 0 for n in batches]
        limit = int((max if together else sum)(n or 0 for n in batches) * limit)
    if together:
        return [limit if n is None else min(n, limit) for n in batches]
    taken = [0] * len(batches)
    while sum(taken) < limit and any(n is None or n > t for n, t in zip(batches, taken, strict=True)):
        for client, n in enumerate(batches):
            if sum(taken) < limit and (n is None or n > taken[client]):
                taken[client] += 1
    return taken


class Rounds:
    """The rounds of a run: what each epoch is divided into, and where the run is.

    Args:
        batches: Batches of every client in an epoch; samples, where they are `dealt`.
        round_steps: Local steps of a round; None: all that the epoch has.
        participation: Fraction of all clients that take part in a round, at least one.
        seed: With epoch and round it draws those that do.
        choose: Takes epoch, number of the round and steps, and returns the steps without those of clients that do not
            take part after all; it is asked in the order of the rounds.
        micro_batches: Takes epoch and number of a round, and returns into how many micro-batches each client divides
            its batches, where they have that many samples; empty: one.
        samples: Takes a client and the number of a batch of its epoch, and returns the batch's samples; None: that is
            not known beforehand.
        by_turns: Whether only one client is at work at a time: each round is divided into one per client.
        together: Whether a local step of all clients is one arrival.
        dealt: Says who takes how many local steps of how many samples, instead of `choose`; None: batches are those of
            the loaders.

    Attributes:
        current: The round that began last; one without clients before the first.
        epoch: The epoch that it is of.
        ended: Rounds that have ended, those before a checkpoint included.
    """

    def __init__(
        self,
        batches: Sequence[int],
        round_steps: int | None = None,
        participation: float = 1.0,
        seed: int | str = 0,
        choose: Callable[[int, int, list[int]], list[int]] = lambda epoch, number, steps: steps,
        micro_batches: Callable[[int, int], tuple[int, ...]] = lambda epoch, number: (),
        samples: Callable[[int, int], int | None] = lambda client, batch: None,
        by_turns: bool = False,
        together: bool = False,
        dealt: Dealt | None = None,
    ) -> None:
        self._dealt = dealt
        self.batches, self._round_steps, self._by_turns = list(batches), round_steps, by_turns
        self._participation, self._seed, self._together = participation, seed, together
        self._choose, self._micro_batches, self._samples = choose, micro_batches, samples
        self.current, self.epoch = Round([], 0, [], []), -1
        self.ended = 0
        self._resumed: tuple[int, Round, int] | None = None  # an epoch, what was done of it, and that in arrivals

    def of(self, epoch: int) -> Iterator[Round]:
        """The rounds of an epoch; those that are left of it, where a checkpoint was made within it."""
        nothing = [0] * len(self.batches)
        left, taken, done_steps, number = list(self.batches), nothing, nothing, 0
        if self._resumed is not None and self._resumed[0] == epoch:
            done = self._resumed[1]
            number, left, taken, done_steps = done.number, list(done.left), list(done.taken), done.done
            if any(done.waiting):
                waiting = self._choose(epoch, number, done.waiting)
                yield from self._turns(waiting, number, left, taken)
                taken = [n + own for n, own in zip(taken, waiting, strict=True)]
                left = [n - own for n, own in zip(left, done.waiting, strict=True)]
        while any(left):
            if self._dealt is not None:
                dealt = self._deal(self._dealt, epoch, number + 1, left, taken, done_steps)
                left, taken, done_steps, number = dealt.left, dealt.taken, dealt.done, dealt.number
                yield dealt
                continue
            steps = [min(n, self._round_steps or n) for n in left]
            left = [n - own for n, own in zip(left, steps, strict=True)]
            number += 1
            steps = self._choose(epoch, number, self._wanted(steps, epoch, number))
            before, taken = taken, [n + own for n, own in zip(taken, steps, strict=True)]
            if self._by_turns:
                yield from self._turns(steps, number, [n + own for n, own in zip(left, steps, strict=True)], before)
            else:
                yield Round(self._divided(epoch, number, steps, before), number, left, taken)

    def _deal(self, dealt: Dealt, epoch: int, number: int, left: list[int], taken: list[int], done: list[int]) -> Round:
        """A round whose plan says how many samples a local step has.

        Who takes no part loses the samples of a turn with the loader's batches.
        """
        turn = [local_steps(n, own, self._round_steps) for n, own in zip(left, dealt.own, strict=True)]
        steps, sizes = dealt.plan(epoch, number, self._wanted(turn, epoch, number), left)
        samples = [
            tuple(min(size, n - size * step) for step in range(count))
            for n, size, count in zip(left, sizes, steps, strict=True)
        ]
        missed = [0 if own else min(n, t * b) for n, own, t, b in zip(left, samples, turn, dealt.own, strict=True)]
        most = self._micro_batches(epoch, number) or (1,) * len(steps)
        return Round(
            parts=[tuple(min(parts, n) for n in own) for parts, own in zip(most, samples, strict=True)],
            number=number,
            left=[n - sum(own) - m for n, own, m in zip(left, samples, missed, strict=True)],
            taken=[n + sum(own) for n, own in zip(taken, samples, strict=True)],
            samples=samples,
            done=[n + count for n, count in zip(done, steps, strict=True)],
        )

    def _wanted(self, steps: Sequence[int], epoch: int, number: int) -> list[int]:
        """The steps of the clients that are drawn for a round."""
        drawn = self._drawn([k for k, n in enumerate(steps) if n], epoch, number - 1)
        return [n if k in drawn else 0 for k, n in enumerate(steps)]

    def _divided(self, epoch: int, number: int, steps: Sequence[int], taken: Sequence[int]) -> list[tuple[int, ...]]:
        """Micro-batches of each local step of a round: as many as the plan says, but none without a sample.

        Args:
            epoch: The epoch.
            number: The number of the round.
            steps: Local steps of every client.
            taken: Batches of the epoch that every client has taken before.
        """
        most = self._micro_batches(epoch, number) or (1,) * len(steps)
        return [
            tuple(min(most[k], n or most[k]) for n in (self._samples(k, first + step) for step in range(count)))
            for k, (first, count) in enumerate(zip(taken, steps, strict=True))
        ]

    @staticmethod
    def _turns(steps: Sequence[int], number: int, left: Sequence[int], taken: Sequence[int]) -> Iterator[Round]:
        """A round of one client after the other; `left` and `taken` are what they are before it."""
        left, taken, waiting = list(left), list(taken), list(steps)
        for client, count in enumerate(steps):
            if count:
                left[client] -= count
                taken[client] += count
                waiting[client] = 0
                own = [(1,) * count if k == client else () for k in range(len(left))]
                yield Round(own, number, list(left), list(taken), list(waiting))

    def _drawn(self, clients: list[int], epoch: int, number: int) -> set[int]:
        """The clients that take part in a round: a share of all, drawn by seed, epoch and round."""
        wanted = min(len(clients), max(1, round(self._participation * len(self.batches))))
        if wanted == len(clients):
            return set(clients)
        return set(random.Random(f"{self._seed}/{epoch}/{number}").sample(clients, wanted))

    def arrivals(self, epoch: int) -> int:
        """Arrivals of all clients in an epoch, those before a checkpoint that was made within it included."""
        before = self._resumed[2] if self._resumed is not None and self._resumed[0] == epoch else 0
        return before + sum(self.arrivals_in(round_) for round_ in self.of(epoch))

    def arrivals_in(self, round_: Round) -> int:
        """The same in a round."""
        return max(round_.steps) if self._together else sum(map(sum, round_.parts))

    def go_through(self, epoch: int) -> Iterator[Round]:
        """The rounds of an epoch, each of which is then the `current` one."""
        for round_ in self.of(epoch):
            self.current, self.epoch = round_, epoch
            yield round_

    def position(self, arrivals: int, steps_left: Sequence[int] | None = None) -> dict[str, Any]:
        """Where the run is, as plain numbers.

        Args:
            arrivals: Arrivals of the current epoch so far.
            steps_left: Local steps that every client has yet to take in the current round, one of which some
                micro-batches have arrived included: it comes again. None: the round has ended.
        """
        left, taken, waiting, done = self.current.left, self.current.taken, self.current.waiting, self.current.done
        if steps_left is not None:
            to_come = list(steps_left)
            if done:
                pairs = list(zip(self.current.samples, steps_left, strict=True))
                to_come = [sum(own[len(own) - more :]) for own, more in pairs]
                done = [n - more for n, more in zip(done, steps_left, strict=True)]
            left = [n + more for n, more in zip(left, to_come, strict=True)]
            taken = [n - more for n, more in zip(taken, to_come, strict=True)]
            waiting = [n + more for n, more in zip(waiting, steps_left, strict=True)] if self._by_turns else []
        turns = {"waiting": waiting} if self._by_turns else {}
        turns |= {"done": done} if self._dealt is not None else {}
        now = {"epoch": self.epoch, "round": self.current.number, "arrivals": arrivals, "rounds": self.ended}
        return {**now, "left": left, "taken": taken, **turns}

    def fits(self, position: Mapping[str, Any]) -> bool:
        """Whether a position counts what this run does: samples where batches are dealt anew, else batches.

        Raises:
            ValueError: If it does not, and the epoch was under way there.
        """
        fits = ("done" in position) == (self._dealt is not None)
        if not fits and any(position["left"]):
            raise ValueError(
                f"the checkpoint was made within an epoch {'without' if self._dealt else 'with'} batches=True of the"
                " policy: go on from one made at the end of an epoch, or with the policy as it was."
            )
        return fits

    def resume(self, position: Mapping[str, Any]) -> None:
        """Goes on at a `position`."""
        self.ended, self.epoch = position["rounds"], position["epoch"]
        left, waiting = position["left"], position.get("waiting") or [0] * len(position["left"])
        done = position.get("done") or [0] * len(left)
        self.current = Round([()] * len(left), position["round"], left, position["taken"], waiting, done=done)
        self._resumed = self.epoch, self.current, position["arrivals"]
