"""Which cuts a run has: found and timed before it, and anew when what is trained changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_edgesplit.errors import ImpossibleCutError
from lightning_edgesplit.runtime import trained
from lightning_edgesplit.splitting import Cut, Cuts, default_folder, find_cuts, time_cuts
from lightning_edgesplit.splitting.mixing import Mixture, mix


@dataclass
class Cutting:
    """Finds the cuts of a module as it is trained.

    Attributes:
        module: The LightningModule.
        optimizer: Its optimizer.
        batch: The sample batch.
        wanted: The cuts that the user named; None: all.
        private: As `find_cuts` has it.
        second_cut: The same.
        threads: Threads of the server, which its part is timed with.
        repeats: Timed steps per thread count.
        context: Opened around every forward pass.
    """

    module: nn.Module
    optimizer: Optimizer
    batch: Any
    wanted: Sequence[str] | None
    private: Sequence[str] | None
    second_cut: str | None
    threads: int
    repeats: int
    context: Callable[[], AbstractContextManager[Any]]
    _proven: trained.Trained | None = field(default=None, init=False, repr=False)
    _watch: trained.Watch | None = field(default=None, init=False, repr=False)
    _order: list[str] = field(default_factory=list, init=False, repr=False)
    _mixtures: dict[tuple[str, ...], Mixture] = field(default_factory=dict, init=False, repr=False)

    def find(self) -> Cuts:
        """The proven and timed cuts of what is trained now; only those that were asked for, where some were.

        Raises:
            ImpossibleCutError: If one that was asked for is none.
        """
        cuts = find_cuts(
            self.module, self.batch, self.optimizer, only=self.wanted, private=self.private, context=self.context,
            second_cut=self.second_cut, cache=default_folder(),
        )  # fmt: skip
        for name in self.wanted or ():
            cuts.find(name)
        self._proven, self._order, self._mixtures = self._trained(), [cut.name for cut in cuts], {}
        self._watch = trained.Watch(self.module, self.optimizer)
        return time_cuts(
            self.module, self.batch, cuts, self.optimizer, server_threads=self.threads, repeats=self.repeats,
            context=self.context,
        )  # fmt: skip

    def mixture(self, cuts: Sequence[Cut]) -> Mixture | None:
        """The clients' cuts as those of one step of all, proven; None: they have one cut.

        Raises:
            ImpossibleCutError: If one step cannot begin at all of them.
        """
        different = {cut.name: cut for cut in sorted(cuts, key=lambda cut: self._order.index(cut.name))}
        if len(different) == 1:
            return None
        key = tuple(different)
        if key not in self._mixtures:
            self._mixtures[key] = mix(self.module, self.batch, list(different.values()), self.context)
        return self._mixtures[key]

    @property
    def outdated(self) -> bool:
        """Whether what is trained has changed since the cuts were found."""
        return self._trained() != self._proven

    @property
    def outdated_within_round(self) -> bool:
        """The same, for every arrival: modules and parameters that are new are seen at the next round alone."""
        assert self._watch is not None
        return self._watch.changed

    def find_anew(self, round_: int) -> Cuts:
        """The cuts of what is trained from that round on.

        Raises:
            ImpossibleCutError: If a cut that the user named is none any more.
        """
        try:
            return self.find()
        except ImpossibleCutError as error:
            raise ImpossibleCutError(
                f"what is trained has changed before round {round_} (a callback that freezes or thaws?): {error} Or"
                " leave `cuts` to a policy, which takes other cuts then."
            ) from error

    def _trained(self) -> trained.Trained:
        return trained.read(self.module, dict(self.module.named_parameters()), self.optimizer)
