"""Who gets which samples: the user's one DataLoader, divided among the clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset
from torch.utils.data.dataloader import _DatasetKind, _SingleProcessDataLoaderIter

from lightning_edgesplit.runtime.dealing import check_dealt

Parts = Sequence[Sequence[int]]
Partition = str | Parts | Callable[[Any, int, int], Parts] | None
"""How to divide a dataset: ``"iid"``, ``"dirichlet:<alpha>"``, ``"shards:<per client>"``, one list of sample numbers
per client, a function of (dataset, clients, seed) that returns such lists, or None: every client has its own loader."""


def check(partition: Partition, clients: int) -> None:
    """Refuses what cannot be a partition among so many clients.

    Raises:
        ValueError: If it is an unknown name, a parameter out of range, or not one non-empty list per client.
    """
    allowed = '"iid", "dirichlet:<alpha>", "shards:<per client>", index lists, a function or None'
    if partition is None or callable(partition):
        return
    if not isinstance(partition, str):
        if len(partition) != clients or not any(len(part) for part in partition):
            raise ValueError(
                f"partition={_short(partition)} must hold one list of sample numbers for each of the {clients} clients,"
                f" not all empty; or use {allowed}."
            )
        return
    name, _, value = partition.partition(":")
    try:
        if name == "iid" and not value:
            return
        if name == "dirichlet" and 0 < float(value) < float("inf"):
            return
        if name == "shards" and int(value) >= 1:
            return
    except ValueError:
        pass  # not a number: refused below like any other unknown value
    raise ValueError(f"partition={partition!r} is unknown, or its parameter is not a number > 0: use {allowed}.")


def divide(partition: Partition, dataset: Any, clients: int, seed: int) -> list[list[int]]:
    """Sample numbers of every client.

    Args:
        partition: Anything but None, see `Partition`.
        dataset: A map-style dataset; Dirichlet and shards read its labels.
        clients: How many parts.
        seed: Seeds the division.

    Raises:
        ValueError: If there are more clients than samples, if a part is empty or names a sample that is not there, or
            if the labels are not to be found.
    """
    samples = len(dataset)
    if clients > samples:
        raise ValueError(f"clients={clients} for {samples} training samples: give fewer.")
    generator = torch.Generator().manual_seed(seed)
    if isinstance(partition, str):
        name, _, value = partition.partition(":")
        if name == "iid":
            return iid(samples, clients, generator)
        labels = labels_of(dataset)
        if name == "dirichlet":
            return dirichlet(labels, clients, float(value), generator)
        return shards(labels, clients, int(value), generator)
    parts = partition(dataset, clients, seed) if callable(partition) else partition
    assert parts is not None
    lists = [[int(index) for index in part] for part in parts]
    if len(lists) != clients or not any(lists):
        sizes = [len(part) for part in lists]
        raise ValueError(
            f"partition gave parts of {sizes} samples for {clients} clients: one part each, not all empty."
        )
    worst = max(max(part) for part in lists if part)
    if worst >= samples or min(min(part) for part in lists if part) < 0:
        raise ValueError(f"partition names sample {worst}, the training set has {samples}: number them from 0.")
    return lists


def iid(samples: int, clients: int, generator: torch.Generator) -> list[list[int]]:
    """Shuffles the samples and deals them out evenly. One client gets all, in their order."""
    if clients == 1:
        return [list(range(samples))]
    order = torch.randperm(samples, generator=generator)
    return [part.tolist() for part in order.tensor_split(clients)]


def dirichlet(labels: Tensor, clients: int, alpha: float, generator: torch.Generator) -> list[list[int]]:
    """Label skew: each class is divided among the clients by a draw from Dir(alpha).

    After Hsu et al. 2019 (arXiv:1909.06335): they draw the class mix of each client; dividing each class is the
    variant in common use (Li et al. 2021, arXiv:2102.02079). A client left without a sample gets one of the largest
    part's.

    Args:
        labels: Class of each sample, [samples].
        clients: How many parts.
        alpha: Concentration; small is skewed, large is even.
        generator: Where the draws come from.
    """
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in labels.unique():  # type: ignore[no-untyped-call]
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        # in double precision: below alpha = 0.01 all draws of a class underflow in single
        draws = torch._standard_gamma(torch.full((clients,), alpha, dtype=torch.float64), generator=generator)
        draws = draws.clamp_min(1e-300)
        ends = (draws.cumsum(0) / draws.sum() * len(members)).round().long().tolist()
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.extend(members[start:end].tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts


def shards(labels: Tensor, clients: int, per_client: int, generator: torch.Generator) -> list[list[int]]:
    """Sorts by label, cuts into equal shards, gives each client so many (McMahan et al. 2017, arXiv:1602.05629, §3).

    Raises:
        ValueError: If there are more shards than samples.
    """
    if clients * per_client > len(labels):
        raise ValueError(
            f'partition="shards:{per_client}" needs {clients * per_client} samples, there are {len(labels)}.'
        )
    pieces = labels.argsort(stable=True).tensor_split(clients * per_client)
    order = torch.randperm(len(pieces), generator=generator).tolist()
    return [
        torch.cat([pieces[piece] for piece in order[k * per_client : (k + 1) * per_client]]).tolist()
        for k in range(clients)
    ]


def labels_of(dataset: Any) -> Tensor:
    """Class of each sample, [samples]: ``dataset.targets`` or ``.labels``, else the last entry of every sample.

    Raises:
        ValueError: If those are no class numbers.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return torch.as_tensor(getattr(dataset, name)).flatten()
    try:
        return torch.tensor([int(dataset[index][-1]) for index in range(len(dataset))])
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"partition needs class labels, and {type(dataset).__name__} has neither `targets` nor `labels`, nor a"
            ' class number as last entry of its samples: give it `targets`, or use partition="iid" or index lists.'
        ) from error


def rebuild(loader: Any, part: Sequence[int], generator: torch.Generator | None) -> DataLoader[Any]:
    """A loader over a part of the user's dataset, otherwise as the user's.

    Args:
        loader: The user's loader.
        part: Sample numbers.
        generator: Where shuffling draws from; None: as the user's loader.

    Raises:
        TypeError: If the loader is not a map-style DataLoader with torch's own samplers.
    """
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            f"the training loader is a {type(loader).__name__}: a partition needs a torch DataLoader over a dataset"
            " with a length. Give one loader per client in a list, or partition=None with loaders of the clients' own."
        )
    ready_made = loader.batch_sampler is None  # the dataset yields whole batches
    if not (ready_made or type(loader.batch_sampler) is BatchSampler) or type(loader.sampler) not in (
        RandomSampler,
        SequentialSampler,
    ):
        raise TypeError(
            f"the training loader's sampler is a {type(loader.sampler).__name__}, which cannot be divided among"
            " clients: use shuffle=True or False, or give one loader per client in a list."
        )
    workers = loader.num_workers
    return DataLoader(
        Subset(loader.dataset, list(part)),
        batch_size=loader.batch_size,
        shuffle=bool(part) and isinstance(loader.sampler, RandomSampler),  # torch shuffles no empty set
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor if workers else None,
        generator=loader.generator if generator is None else generator,
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def extent(loader: Any) -> dict[str, Any]:
    """How much data a loader has.

    Returns:
        ``batches`` and ``samples`` of a pass over it (None: it is a stream), samples in a ``batch``, and those in the
        ``last`` one of a pass (None: it cannot be known before the batches are there, nor that of the others).
    """
    drawn: Any = getattr(loader, "batch_sampler", None)
    # torch's own batches of a dataset that is read by number: all are full but the last, whatever the sampler
    known = type(drawn) is BatchSampler and not isinstance(loader.dataset, IterableDataset)
    batch = drawn.batch_size if known else getattr(loader, "batch_size", None)
    try:
        batches = len(loader)
    except TypeError:  # a stream
        return {"batches": None, "samples": None, "batch": batch or 1, "last": None}
    try:
        samples = len(getattr(loader, "dataset", ()))
    except TypeError:
        samples = 0
    samples = samples or batches * (batch or 1)
    last = _last_batch(len(drawn.sampler), drawn.batch_size, drawn.drop_last) if known else None
    batch = batch or max(1, round(samples / max(1, batches)))
    return {"batches": batches, "samples": samples, "batch": batch, "last": last}


def _last_batch(samples: int, batch: int, drop_last: bool) -> int:
    """Samples in the last batch of a pass."""
    return batch if drop_last else samples % batch or batch


def limit_extent(own: dict[str, Any], batches: int) -> None:
    """Changes an `extent` to that of an epoch of so many batches, which may be less than a pass."""
    if own["last"] is not None and batches < own["batches"]:
        own["last"] = own["batch"]
    own["batches"] = batches


def samples_of(own: dict[str, Any], number: int) -> int | None:
    """Samples of batch `number` of an epoch over data of this `extent`; None: it cannot be known beforehand."""
    if own["last"] is None:
        return None
    return int(own["last"] if number + 1 == own["batches"] else own["batch"])


def samples_of_epoch(own: dict[str, Any]) -> int:
    """Samples of an epoch over data of this `extent`, whose batches are known beforehand."""
    return int((own["batches"] - 1) * own["batch"] + own["last"]) if own["batches"] else 0


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators of their own that a loader and its samplers draw from, each once."""
    batches = getattr(loader, "batch_sampler", None)
    parts = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [own for part in parts if isinstance(own := getattr(part, "generator", None), torch.Generator)]
    return list({id(own): own for own in found}.values())


def leave_out(batches: Iterator[Any], count: int) -> None:
    """Goes past so many batches of a loader.

    Those of torch's own loader are not read but only drawn, where its samplers are torch's own too: reading them would
    cost as much as the data of all earlier rounds of the epoch. The random generators are the caller's to put right.
    """
    if isinstance(batches, _SingleProcessDataLoaderIter) and batches._dataset_kind == _DatasetKind.Map:
        numbers = batches._index_sampler
        drawn = numbers.sampler if type(numbers) is BatchSampler else numbers
        if type(drawn) in (RandomSampler, SequentialSampler):
            batches = batches._sampler_iter
    for _ in range(count):
        next(batches)


class ClientLoaders:
    """The clients' training loaders.

    Args:
        source: Gives the user's loader, or a list or dict with one loader per client.
        partition: How to divide one loader's dataset.
        clients: How many.
        seed: Seeds the division and the shuffling.

    Raises:
        TypeError: If the loader cannot be divided.
        ValueError: If the parts cannot be made, or there is not one loader per client.
    """

    def __init__(self, source: Callable[[], Any], partition: Partition, clients: int, seed: int) -> None:
        self._source, self._partition, self._clients, self._seed = source, partition, clients, seed
        self._loader = source()
        self._parts: list[list[int]] | None = None
        self._began: dict[int, Tensor] = {}
        if isinstance(self._loader, (list, tuple, dict)):
            every = self._loader.values() if isinstance(self._loader, dict) else self._loader
            self._began = {id(own): own.get_state() for loader in every for own in generators_of(loader)}
            if len(self._loader) != clients:
                raise ValueError(
                    f"{len(self._loader)} training loaders for {clients} clients: give one loader, or one per client."
                )
        elif partition is not None:
            rebuild(self._loader, [0], None)  # says what is wrong with the loader before its dataset is read
            self._parts = divide(partition, self._loader.dataset, clients, seed)

    def of(self, client: int) -> Any:
        """The loader of that client; call it in the client's process."""
        if isinstance(self._loader, (list, tuple, dict)):
            own = self._loader.values() if isinstance(self._loader, dict) else self._loader
            return list(own)[client]
        if self._parts is None:
            return self._source()
        generator = None if self._clients == 1 else torch.Generator().manual_seed(self._seed * 100_003 + client)
        return rebuild(self._loader, self._parts[client], generator)

    def rewind(self, client: int) -> None:
        """Lets the loader of a client begin anew, though others may have drawn from a generator that they share."""
        for own in generators_of(self.of(client)):
            if id(own) in self._began:
                own.set_state(self._began[id(own)])

    @property
    def at_clients(self) -> bool:
        """Whether what loader a client has is known in its own process alone."""
        return self._parts is None and not isinstance(self._loader, (list, tuple, dict))

    def extent(self, client: int) -> dict[str, Any]:
        """How much data a client has, without a loader for it where the partition says it."""
        if self._parts is None or self._loader.batch_size is None:
            return extent(self.of(client))
        samples, batch = len(self._parts[client]), self._loader.batch_size
        batches = samples // batch if self._loader.drop_last else -(-samples // batch)
        last = _last_batch(samples, batch, self._loader.drop_last)
        return {"batches": batches, "samples": samples, "batch": batch, "last": last}

    def check_dealt(self) -> None:
        """Refuses loaders whose samples cannot be dealt in other batches; a client's own are known to it alone.

        Raises:
            ValueError: Naming the policy's option and the way out.
        """
        loaders = list(self._loader.values()) if isinstance(self._loader, dict) else self._loader
        for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
            check_dealt(loader)

    def sample(self) -> Any:
        """A batch as the clients have it. The random generators are left as they were.

        Raises:
            ValueError: If there is none.
        """
        state = torch.get_rng_state()
        loaders = list(self._loader.values()) if isinstance(self._loader, dict) else self._loader
        every = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        drawn_from = [own for loader in every for own in generators_of(loader)]
        states = [generator.get_state() for generator in drawn_from]
        try:
            for client in range(self._clients):
                for batch in self.of(client):
                    return batch
        finally:
            torch.set_rng_state(state)
            for generator, own in zip(drawn_from, states, strict=True):
                generator.set_state(own)
        raise ValueError(
            "no client has a batch to train on: give more samples, a smaller batch_size or drop_last=False."
        )
