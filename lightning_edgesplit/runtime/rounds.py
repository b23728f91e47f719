"""Which clients take how many local steps in which round of which epoch. Numbers only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Round:
    """A round, and how its epoch stands after it.

    Attributes:
        steps: Local steps of every client, 0 for those that take no part.
        number: Rounds of the epoch up to this one, itself included.
        left: Batches of every client that remain in the epoch after it.
        parts: Arrivals of a local step of each client; empty: one.
        waiting: Local steps of the same round that other clients take after this one, where they take turns.
    """

    steps: list[int]
    number: int
    left: list[int]
    waiting: list[int] = field(default_factory=list)
    parts: tuple[int, ...] = ()


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
        batches: Batches of every client in an epoch.
        round_steps: Local steps of a round; None: all that the epoch has.
        participation: Fraction of all clients that take part in a round, at least one.
        seed: With epoch and round it draws those that do.
        choose: Takes epoch, number of the round and steps, and returns the steps without those of clients that do not
            take part after all; it is asked in the order of the rounds.
        parts: Takes epoch and number of a round, and returns the arrivals of a local step of each client; empty: one.
        by_turns: Whether only one client is at work at a time: each round is divided into one per client.
        together: Whether a local step of all clients is one arrival.

    Attributes:
        current: The round that began last; one without clients before the first.
        ended: Rounds that have ended, those before a checkpoint included.
    """

    def __init__(
        self,
        batches: Sequence[int],
        round_steps: int | None = None,
        participation: float = 1.0,
        seed: int | str = 0,
        choose: Callable[[int, int, list[int]], list[int]] = lambda epoch, number, steps: steps,
        parts: Callable[[int, int], tuple[int, ...]] = lambda epoch, number: (),
        by_turns: bool = False,
        together: bool = False,
    ) -> None:
        self.batches, self._round_steps, self._by_turns = list(batches), round_steps, by_turns
        self._participation, self._seed, self._together = participation, seed, together
        self._choose, self._parts, self._changing = choose, parts, False
        self.current = Round([], 0, [])
        self.ended = 0
        self._resumed: tuple[int, Round] | None = None  # epoch and end of the one that was under way

    @property
    def differ(self) -> bool:
        """Whether epochs may differ in length, since it changes from round to round which clients take part."""
        return self._participation < 1 or self._changing

    def of(self, epoch: int) -> Iterator[Round]:
        """The rounds of an epoch; those that are left of it, where a checkpoint was made within it."""
        left, number = list(self.batches), 0
        if self._resumed is not None and self._resumed[0] == epoch:
            done = self._resumed[1]
            number = done.number
            if any(done.waiting):
                waiting = self._choose(epoch, number, done.waiting)
                yield from self._turns(replace(done, steps=waiting))
            left = [n - waiting for n, waiting in zip(done.left, done.waiting, strict=True)]
        while any(left):
            steps = [min(n, self._round_steps or n) for n in left]
            left = [n - taken for n, taken in zip(left, steps, strict=True)]
            drawn = self._drawn([k for k, n in enumerate(steps) if n], epoch, number)
            number += 1
            wanted = [n if k in drawn else 0 for k, n in enumerate(steps)]
            taken = self._choose(epoch, number, wanted)
            self._changing = self._changing or taken != wanted
            whole = Round(taken, number, left, parts=self._parts(epoch, number))
            self._changing = self._changing or bool(whole.parts)
            if self._by_turns:
                before = [n + own for n, own in zip(left, whole.steps, strict=True)]
                yield from self._turns(replace(whole, left=before))
            else:
                yield whole

    @staticmethod
    def _turns(whole: Round) -> Iterator[Round]:
        """A round of one client after the other; `left` is what remains in the epoch before it."""
        left, waiting = list(whole.left), list(whole.steps)
        for client, steps in enumerate(whole.steps):
            if steps:
                left[client] -= steps
                waiting[client] = 0
                own = [steps if k == client else 0 for k in range(len(left))]
                yield Round(own, whole.number, list(left), list(waiting))

    def _drawn(self, clients: list[int], epoch: int, number: int) -> set[int]:
        """The clients that take part in a round: a share of all, drawn by seed, epoch and round."""
        wanted = min(len(clients), max(1, round(self._participation * len(self.batches))))
        if wanted == len(clients):
            return set(clients)
        return set(random.Random(f"{self._seed}/{epoch}/{number}").sample(clients, wanted))

    def arrivals(self, epoch: int) -> int:
        """Local steps of all clients in an epoch."""
        return sum(self.arrivals_in(round_) for round_ in self.of(epoch))

    def arrivals_in(self, round_: Round) -> int:
        """The same in a round."""
        parts = round_.parts or (1,) * len(round_.steps)
        return max(round_.steps) if self._together else sum(n * m for n, m in zip(round_.steps, parts, strict=True))

    def go_through(self, epoch: int) -> Iterator[Round]:
        """The rounds of an epoch, each of which is then the `current` one."""
        for round_ in self.of(epoch):
            self.current = round_
            yield round_

    def position(self, epoch: int, steps_left: Sequence[int] | None = None) -> dict[str, Any]:
        """Where the run is, as plain numbers.

        Args:
            epoch: The Trainer's epoch.
            steps_left: Local steps that every client has yet to take in the current round; None: the round has ended.
        """
        left, waiting = self.current.left, self.current.waiting
        if steps_left is not None:
            left = [n + more for n, more in zip(left, steps_left, strict=True)]
            waiting = [n + more for n, more in zip(waiting, steps_left, strict=True)] if self._by_turns else []
        turns = {"waiting": waiting} if self._by_turns else {}
        return {"epoch": epoch, "round": self.current.number, "left": left, "rounds": self.ended, **turns}

    def resume(self, position: Mapping[str, Any], epoch: int) -> bool:
        """Goes on at a `position`; returns whether the epoch is under way there."""
        self.ended = position["rounds"]
        under_way = position["epoch"] == epoch and any(position["left"])
        left = position["left"]
        done = Round([], position["round"], left, position.get("waiting") or [0] * len(left))
        self._resumed = (position["epoch"], done) if under_way else None
        return under_way
