"""Batches of other sizes than the loader's: its samples, in the order of its own sampler, dealt as the plan says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

_SEEDS = 2**63 - 1
"""So many seeds there are for workers."""


def why_not(loader: Any) -> str | None:
    """Why a loader's samples cannot be dealt anew, as the end of a sentence; None: they can."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return f"a {type(loader).__name__} is not torch's own DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "its dataset is an IterableDataset, which is not read by number"
    if loader.batch_sampler is None:
        return "it has batch_size=None, so that its dataset makes the batches"
    if type(loader.batch_sampler) is not BatchSampler:
        return f"a batch_sampler of its own, {type(loader.batch_sampler).__name__}, makes its batches"
    try:
        len(loader.sampler)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return f"its sampler, a {type(loader.sampler).__name__}, has no length"
    return None


def check_dealt(loader: Any) -> None:
    """Refuses a loader whose samples cannot be dealt anew.

    Raises:
        ValueError: Naming the policy's option and the way out.
    """
    reason = why_not(loader)
    if reason is not None:
        raise ValueError(
            f"batches=True of the policy deals the samples of the training loaders in other batches, and {reason}: give"
            " a DataLoader with batch_size=… over a dataset with a length, or leave `batches` out."
        )


class Dealer:
    """Deals the samples of a loader, a pass over them in batches whose sizes may change at any time.

    With the loader's own batch size it gives the loader's own batches, in their order, and draws the same random
    numbers for it. Where the loader has workers they are started anew at every `deal`.

    Args:
        loader: A loader that `check_dealt` lets pass.

    Raises:
        ValueError: If it cannot be dealt anew.
    """

    def __init__(self, loader: Any) -> None:
        check_dealt(loader)
        self._loader: DataLoader[Any] = loader
        self._numbers: Iterator[Any] = iter(())
        self._seed, self._dealt = 0, 0
        samples, size = len(loader.sampler), loader.batch_sampler.batch_size
        # the loader's own last batch would look for more samples, at which torch's sampler may draw random numbers
        self._short = samples % size and not loader.drop_last

    def begin(self, skip: int = 0) -> None:
        """Begins a pass over the data, behind so many samples, whose numbers are drawn and which are not read."""
        # as torch's loader does when it is iterated, so that random streams move alike
        seed = torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
        self._seed, self._dealt = int(seed.item()), skip
        self._numbers = iter(self._loader.sampler)
        for _ in islice(self._numbers, skip):
            pass

    def deal(self, sizes: Sequence[int]) -> Iterator[Any]:
        """The next batches of the pass, with so many samples each; drawn and read when they are asked for.

        Raises:
            ValueError: If the sampler ends before its length.
        """
        own, workers = self._loader, self._loader.num_workers
        # a generator of its own: the loader's must move once in a pass, not once in a round
        seeds = torch.Generator().manual_seed((self._seed + self._dealt) % _SEEDS)
        yield from DataLoader(
            own.dataset,
            batch_sampler=self._drawn(sizes),  # type: ignore[arg-type]  # torch takes any iterable
            num_workers=workers,
            collate_fn=own.collate_fn,
            pin_memory=own.pin_memory,
            timeout=own.timeout,
            worker_init_fn=own.worker_init_fn,
            multiprocessing_context=own.multiprocessing_context if workers else None,
            generator=seeds,
            prefetch_factor=own.prefetch_factor if workers else None,
        )

    def _drawn(self, sizes: Sequence[int]) -> Iterator[list[Any]]:
        for size in sizes:
            numbers = list(islice(self._numbers, size))
            if len(numbers) < size:
                raise ValueError(
                    f"the sampler, a {type(self._loader.sampler).__name__}, ended before its length: let `len` of it be"
                    " what it gives."
                )
            self._dealt += size
            if self._dealt == len(self._loader.sampler) and self._short:  # type: ignore[arg-type]  # `check_dealt`
                next(self._numbers, None)
            yield numbers
