"""A client's batches: where it is in its data and its random streams, and the next batch before its turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, repeat
from typing import Any

import torch
from torch import Tensor

from lightning_edgesplit.runtime import generators
from lightning_edgesplit.runtime.ahead import Ahead
from lightning_edgesplit.runtime.dealing import Dealer, check_dealt
from lightning_edgesplit.runtime.partition import extent, generators_of


def read_past(batches: Iterator[Any], number: int) -> None:
    """Goes past so many batches. They are read, in case reading them moves more than torch's generators."""
    for _ in range(number):
        next(batches)


class Supply:
    """One client's data, in passes with which a run can go on where it was.

    Args:
        loader: Its batches; anything with a length.
        dealt: Whether the server says how many samples a batch has, whatever the loader's batches are. What of a pass
            is done is then counted in samples, else in batches.
        leave_out: Goes past so many batches of the loader.
        ahead: Who loads batches ahead; None: one of its own.

    Attributes:
        ahead: The same.
        index: Number of the next batch in its epoch.
        left: Batches of the round that have not been taken yet.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        dealt: bool = False,
        leave_out: Callable[[Iterator[Any], int], None] = read_past,
        ahead: Ahead | None = None,
    ) -> None:
        self.ahead = ahead or Ahead()
        self.index = self.left = self._taken = 0
        self._loader, self._deals, self._leave_out = loader, dealt, leave_out
        self._own = generators_of(loader)
        self._batches: Iterator[tuple[int, int, Any]] = iter(())
        self._dealer: Dealer | None = None
        self._sizes: Sequence[int] = ()
        self._began: Tensor | None = None
        self._own_began: list[Tensor] = []

    def extent(self) -> dict[str, Any]:
        """How much data there is; see `partition.extent`.

        Raises:
            ValueError: If its samples are to be dealt anew, and cannot be.
        """
        if self._deals:
            check_dealt(self._loader)
        return extent(self._loader)

    # ---- positions ---------------------------------------------------------------------------------------------------

    def position(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Where the client is in its data and its random streams: plain numbers, and tensors."""
        numbers, tensors = generators.read()
        began = [] if self._began is None else [self._began]
        own = [generator.get_state() for generator in self._own]
        about = {
            "taken": self._taken, "random": numbers, "began": bool(began), "loader": len(own),
            "loader_began": len(self._own_began), "index": self.index,
        }  # fmt: skip
        return about, [*tensors, *began, *own, *self._own_began]

    def restore(self, about: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        """Goes back to a position: the same order of the data, without what was taken, and the same streams.

        Of an epoch that had begun nothing may have been taken; ``taken`` is None where its pass is not gone on with.
        """
        numbers, rest = tensors[: generators.COUNT], iter(tensors[generators.COUNT :])
        began = next(rest) if about["began"] else None
        own = [next(rest) for _ in range(about["loader"])]
        own_began = [next(rest) for _ in range(about["loader_began"])]
        if began is not None and about["taken"] is not None:
            self._go_on_behind(about["taken"], about["index"], began, own_began)
        self._put_back(own)
        generators.write(about["random"], numbers)

    def _go_on_behind(self, taken: int, index: int, began: Tensor, own_began: Sequence[Tensor]) -> None:
        """Goes on behind so much of the pass that began with these states of torch's and the loader's streams.

        Where the streams are then is the caller's to put right.
        """
        torch.set_rng_state(began)
        self._put_back(own_began)
        self.begin_epoch(taken, index)

    def _put_back(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._own, states, strict=False):
            generator.set_state(state)

    # ---- batches -----------------------------------------------------------------------------------------------------

    def begin_epoch(self, skip: int = 0, index: int = 0) -> None:
        """Begins a pass over the data, behind so many batches; where they are dealt, behind so many samples in them."""
        self.ahead.forget()
        self._began = torch.get_rng_state()
        self._own_began = [generator.get_state() for generator in self._own]
        self._taken = skip
        if self._deals:
            self._dealer, self.index = Dealer(self._loader), index
            self._dealer.begin(skip)
            return
        batches = iter(self._loader)
        self._leave_out(batches, skip)
        self._batches, self.index = zip(count(skip), repeat(1), batches, strict=False), skip

    def begin_round(self, steps: int, sizes: Sequence[int]) -> None:
        """Begins a round of so many batches, of these sizes where they are dealt."""
        self.left = steps
        if self._deals:
            self._deal(sizes)

    def _deal(self, sizes: Sequence[int]) -> None:
        """Deals what is next of the pass in batches of these sizes, the last ones of the round."""
        assert self._dealer is not None
        self._sizes = sizes
        self._batches = zip(count(self.index), sizes, self._dealer.deal(sizes), strict=False)

    def next(self) -> tuple[int, Any]:
        """Number of the next batch in the epoch, and the batch: as loaded ahead, if that is the same in turn."""
        index, taken, batch = self._next()
        self.left -= 1
        self.index, self._taken = index + 1, self._taken + taken
        return index, batch

    def _next(self) -> tuple[int, int, Any]:
        if not self.ahead.loaded:
            return next(self._batches)
        same, item = self.ahead.take(self._own)
        if same:
            loaded: tuple[int, int, Any] = item
            return loaded
        (numbers, tensors), own = generators.read(), [generator.get_state() for generator in self._own]
        assert self._began is not None
        self._go_on_behind(self._taken, self.index, self._began, self._own_began)
        if self._deals:
            self._deal(self._sizes[len(self._sizes) - self.left :])
        generators.write(numbers, tensors)
        self._put_back(own)
        return next(self._batches)

    def load_ahead(self) -> None:
        """Loads the next batch of the round; not where processes of the loader's own do that."""
        if self.ahead.allowed and self.left and not getattr(self._loader, "num_workers", 0):
            self.ahead.load(self._batches, self._own)
