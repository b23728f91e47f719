"""Who gets which samples: the user's one DataLoader, rebuilt for every client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset


def iid(samples: int, clients: int, seed: int) -> list[list[int]]:
    """Shuffles the samples with `seed` and deals them out evenly. One client gets all, in their order.

    Raises:
        ValueError: If there are more clients than samples.
    """
    if clients > samples:
        raise ValueError(f"clients={clients} for {samples} training samples: give fewer.")
    if clients == 1:
        return [list(range(samples))]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return [part.tolist() for part in order.tensor_split(clients)]


def rebuild(loader: Any, parts: Sequence[Sequence[int]], seed: int) -> list[DataLoader[Any]]:
    """One loader per part of the user's dataset, with the user's batch size, collate function and drop_last.

    Shuffling is kept, seeded by `seed` and the client's number; one client alone draws as the user's loader.

    Raises:
        TypeError: If the loader is not a map-style DataLoader with torch's own samplers.
    """
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            f"the training loader is a {type(loader).__name__}: a partition needs a torch DataLoader over a"
            " dataset with a length."
        )
    if type(loader.batch_sampler) is not BatchSampler or type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise TypeError(
            f"the training loader's sampler is a {type(loader.sampler).__name__}, which cannot be divided among"
            " clients: use shuffle=True or False."
        )
    return [
        DataLoader(
            Subset(loader.dataset, list(part)),
            batch_size=loader.batch_size,
            shuffle=isinstance(loader.sampler, RandomSampler),
            collate_fn=loader.collate_fn,
            drop_last=loader.drop_last,
            generator=loader.generator if len(parts) == 1 else torch.Generator().manual_seed(seed * 100_003 + client),
        )
        for client, part in enumerate(parts)
    ]
