"""When each round begins on the run's clock, who takes part in it, and its plan: known before its epoch begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_edgesplit.runtime.planning import Planner
from lightning_edgesplit.scheduling import Corrections, InfeasibleError, Plan
from lightning_edgesplit.scheduling.costs import END
from lightning_edgesplit.scheduling.simulate import SimulatedRound
from lightning_edgesplit.scheduling.trace import Trace


@dataclass(frozen=True)
class Entry:
    """A round.

    Attributes:
        steps: Local steps of every client, 0 for those that take no part.
        plan: Its plan.
        expected: What it is expected to be like; on the virtual clock, what it is like.
        begins: Seconds since the run's first round began.
        corrections: What measured times had taught when it was planned.
        samples: Samples of the epoch that every client had left before it, where its plan divides batches anew.
    """

    steps: list[int]
    plan: Plan
    expected: SimulatedRound
    begins: float
    corrections: Corrections
    samples: tuple[int, ...] = ()

    @property
    def ends(self) -> float:
        """Seconds since the run's first round began."""
        return self.begins + self.expected.round_time

    @property
    def micro_batches(self) -> tuple[int, ...]:
        """Into how many micro-batches each client divides a batch; who has the whole model does not."""
        plan = self.plan
        wanted = plan.micro_batches or (1,) * len(plan.cuts)
        return tuple(1 if cut == END else n for cut, n in zip(plan.cuts, wanted, strict=True))

    def turn(self, steps: Sequence[int]) -> SimulatedRound:
        """The part of the round in which only some clients have steps, where they take turns; from 0 on."""
        clients = {k for k, count in enumerate(steps) if count}
        if clients == {k for k, count in enumerate(self.steps) if count}:
            return self.expected
        bars = [bar for bar in self.expected.bars if bar.client in clients]
        begins = min(bar.start for bar in bars)
        shifted = tuple(replace(bar, start=bar.start - begins, end=bar.end - begins) for bar in bars)
        return replace(
            self.expected,
            ends=tuple(end - begins if k in clients else 0.0 for k, end in enumerate(self.expected.ends)),
            seconds=tuple(own if k in clients else {} for k, own in enumerate(self.expected.seconds)),
            server_seconds=sum(bar.end - bar.start for bar in shifted if bar.on_server),
            bars=shifted,
        )


class Timetable:
    """Plans rounds ahead, since an epoch must say how many arrivals it has before its first one.

    On the virtual clock the rounds are known to the last digit, training or not: what a round is like depends on
    plans and traces alone. On other clocks a round is planned again when it begins, if measured times have taught
    something meanwhile; who takes part, in what batches and how many micro-batches, stays as it was.

    Args:
        planner: Plans a round.
        trace: How the clients' conditions change over time; None: they do not.
        now: When the run's next round begins.

    Attributes:
        now: When the next round begins, seconds since the run's first round began.
    """

    def __init__(self, planner: Planner, trace: Trace | None = None, now: float = 0.0) -> None:
        self._planner, self._trace, self.now = planner, trace, now
        self._ahead: dict[tuple[int, int], Entry] = {}

    def choose(self, epoch: int, number: int, steps: list[int], samples: Sequence[int] = ()) -> list[int]:
        """The steps of a round, without those of clients that are not available or that the policy leaves out.

        With the `samples` that clients have left they are as many as the plan's batches make of these.
        """
        if (epoch, number) not in self._ahead:
            self._ahead = {key: entry for key, entry in self._ahead.items() if key[0] == epoch}
            begins = max((entry.ends for entry in self._ahead.values()), default=self.now)
            self._ahead[epoch, number] = self._entry(steps, begins, epoch, number, tuple(samples))
        return self._ahead[epoch, number].steps

    def deal(
        self, epoch: int, number: int, steps: list[int], samples: Sequence[int]
    ) -> tuple[list[int], tuple[int, ...]]:
        """What `choose` says, and the samples in a local step of each client."""
        chosen = self.choose(epoch, number, steps, samples)
        return chosen, self._ahead[epoch, number].plan.batches or self._planner.batch

    def micro_batches(self, epoch: int, number: int) -> tuple[int, ...]:
        """Into how many micro-batches each client divides a batch, in a round that `choose` was asked for."""
        return self._ahead[epoch, number].micro_batches

    def entry(self, epoch: int, number: int) -> Entry:
        """A round as it begins; `choose` was asked for it before.

        A new plan that would change the epoch's number of arrivals is not taken: the Trainer was told it.
        """
        ahead = self._ahead[epoch, number]
        if ahead.corrections != self._planner.corrections and not ahead.plan.left_out:
            plan, expected = self._planner.plan(ahead.steps, ahead.begins, epoch, number, ahead.samples)
            renewed = replace(ahead, plan=plan, expected=expected)
            same = renewed.micro_batches == ahead.micro_batches and plan.batches == ahead.plan.batches
            if not plan.left_out and same:
                ahead = self._ahead[epoch, number] = renewed
        return ahead

    def renew(self, epoch: int, number: int) -> None:
        """Plans the rounds after round `number` of an epoch anew, with the same clients: the cuts are others.

        Raises:
            ValueError: If the policy now leaves out clients that it did not leave out before.
        """
        begins = self.now
        if any(entry.samples for entry in self._ahead.values()):
            # one round's batches are what the next one has left: they are planned in turn, when they are asked for
            self._ahead = {key: entry for key, entry in self._ahead.items() if key <= (epoch, number)}
        for key, entry in self._ahead.items():
            if key > (epoch, number):
                renewed = self._entry(entry.steps, max(begins, entry.begins), *key)
                if renewed.steps != entry.steps:
                    raise ValueError(
                        f"policy={renewed.plan.policy!r} leaves out other clients than before, now that what is trained"
                        " has changed within an epoch: let it change at an epoch's start."
                    )
                self._ahead[key], begins = renewed, renewed.ends

    def forget(self) -> None:
        """Forgets what was planned ahead: the run goes on at a checkpoint."""
        self._ahead = {}

    def _entry(
        self, steps: Sequence[int], begins: float, epoch: int, number: int, samples: tuple[int, ...] = ()
    ) -> Entry:
        taking = list(steps)
        if self._trace is not None:
            begins, taking = self._available(steps, begins)
        plan, expected = self._planner.plan(taking, begins, epoch, number, samples)
        taking = [0 if k in plan.left_out else count for k, count in enumerate(taking)]
        if samples:
            taking = self._planner.steps(plan, taking, samples)
        return Entry(taking, plan, expected, begins, self._planner.corrections, samples)

    def _available(self, steps: Sequence[int], now: float) -> tuple[float, list[int]]:
        """Who is available at a time; where nobody is, the first moment at which somebody is."""
        assert self._trace is not None
        names = [profile.name for profile in self._planner.clients]
        wanted = [k for k, count in enumerate(steps) if count]
        while True:
            here = {k for k in wanted if self._trace.at(names[k], now).available}
            if here:
                return now, [count if k in here else 0 for k, count in enumerate(steps)]
            later = min(self._trace.next_change(names[k], now) for k in wanted)
            if later == float("inf"):
                raise InfeasibleError(
                    f"by the trace none of {', '.join(names[k] for k in wanted)} is available from second {now:g} on:"
                    " let it bring one back, or train for fewer rounds."
                )
            now = later
