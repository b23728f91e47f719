from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_edgesplit.runtime.partition import (
    ClientLoaders,
    check,
    divide,
    extent,
    labels_of,
    leave_out,
    limit_extent,
    rebuild,
    samples_of,
)

LABELS = torch.arange(10).repeat_interleave(20)[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
DATA = TensorDataset(torch.randn(200, 3), LABELS)


def spread(parts) -> float:
    """Mean number of classes that a part holds."""
    return sum(len(LABELS[part].unique()) for part in parts) / len(parts)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5", "dirichlet:0.001", "shards:2"])
def test_every_sample_goes_to_exactly_one_client_and_every_client_has_some(partition):
    parts = divide(partition, DATA, clients=8, seed=3)
    assert sorted(index for part in parts for index in part) == list(range(200))
    assert all(parts)
    assert parts == divide(partition, DATA, clients=8, seed=3)
    assert parts != divide(partition, DATA, clients=8, seed=4)


def test_skew_grows_as_alpha_falls_and_two_shards_hold_few_classes():
    even, some, extreme = (spread(divide(f"dirichlet:{a}", DATA, 8, seed=0)) for a in (100, 0.5, 0.01))
    assert even > some > extreme
    assert all(len(LABELS[part].unique()) <= 4 for part in divide("shards:2", DATA, 8, seed=0))
    assert spread(divide("iid", DATA, 8, seed=0)) > 8


def test_lists_and_functions_are_taken_as_they_are():
    parts = [[1, 2], [0, 5, 7]]
    assert divide(parts, DATA, 2, seed=0) == parts
    assert divide(lambda data, clients, seed: [[len(data) - 1], [seed]], DATA, 2, seed=9) == [[199], [9]]


def test_labels_are_found_in_targets_in_samples_and_behind_a_subset():
    named = TensorDataset(torch.zeros(4))
    named.targets = [3, 1, 2, 0]
    assert labels_of(named).tolist() == [3, 1, 2, 0]
    assert labels_of(Subset(DATA, [5, 6])).tolist() == LABELS[[5, 6]].tolist()
    assert torch.equal(labels_of(DATA), LABELS)
    with pytest.raises(ValueError, match="neither `targets` nor `labels`"):
        labels_of(TensorDataset(torch.randn(4, 2, 2)))


@pytest.mark.parametrize(
    "partition",
    ["even", "dirichlet:", "dirichlet:0", "dirichlet:x", "shards:0", "shards:1.5", "iid:3", [[1]], [[], []]],
)
def test_what_is_no_partition_is_refused(partition):
    with pytest.raises(ValueError, match="partition="):
        check(partition, clients=2)


@pytest.mark.parametrize(
    ("partition", "clients", "message"),
    [
        ("iid", 201, "clients=201 for 200 training samples"),
        ("shards:50", 8, "needs 400 samples, there are 200"),
        ([[0], [200]], 2, "names sample 200, the training set has 200"),
        (lambda *_: [[], []], 2, r"parts of \[0, 0\] samples"),
    ],
)
def test_a_partition_that_the_data_do_not_allow_is_refused(partition, clients, message):
    with pytest.raises(ValueError, match=message):
        divide(partition, DATA, clients, seed=0)


def test_a_rebuilt_loader_is_the_users_in_everything_but_its_data():
    def collate(samples):
        return torch.stack([x for x, _ in samples])

    loader = DataLoader(DATA, batch_size=7, shuffle=True, drop_last=True, collate_fn=collate)
    own = rebuild(loader, [3, 1, 4, 1, 5, 9, 2, 6], torch.Generator().manual_seed(0))
    (batch,) = list(own)
    assert batch.shape == (7, 3)
    assert all(any(torch.equal(row, DATA[i][0]) for i in (1, 2, 3, 4, 5, 6, 9)) for row in batch)


def test_a_loader_that_cannot_be_divided_is_refused_with_a_way_out():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1)

    weighted = DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 200, 200))
    for loader, message in ((DataLoader(Stream()), "a dataset with a length"), (weighted, "WeightedRandomSampler")):
        with pytest.raises(TypeError, match=message):
            ClientLoaders(lambda loader=loader: loader, "iid", 2, seed=0)
    with pytest.raises(ValueError, match="3 training loaders for 2 clients"):
        ClientLoaders(lambda: [1, 2, 3], "iid", 2, seed=0)


def test_taking_a_sample_batch_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(DATA, batch_size=4, shuffle=True, generator=generator)
    before = torch.get_rng_state(), generator.get_state()
    batch = ClientLoaders(lambda: loader, "iid", 1, seed=0).sample()
    assert batch[0].shape == (4, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())


class Read:
    """Notes which samples are read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index):
        self.read.append(index)
        return torch.rand(1)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_that_are_left_out_are_not_read_and_the_others_are_the_same(shuffle):
    def batches(count):
        data = Read()
        loader = DataLoader(data, batch_size=3, shuffle=shuffle, generator=torch.Generator().manual_seed(3))
        iterator = iter(loader)
        leave_out(iterator, count)
        for _ in iterator:
            pass
        return data.read

    assert batches(2) == batches(0)[6:]


def test_a_loader_of_another_kind_is_read_past():
    iterator = iter(DataLoader(IterableOfNumbers(), batch_size=2))
    leave_out(iterator, 2)
    assert next(iterator).tolist() == [4, 5]


class IterableOfNumbers(IterableDataset):
    def __iter__(self):
        return iter(range(10))


class IterableWithLength(IterableOfNumbers):
    def __len__(self):
        return 10


@pytest.mark.parametrize("drop_last", [False, True])
def test_how_much_data_a_client_has_is_what_its_loader_has(drop_last):
    user = DataLoader(list(range(23)), batch_size=4, drop_last=drop_last)
    loaders = ClientLoaders(lambda: user, [range(9), range(9, 9), range(9, 17), range(17, 23)], 4, 0)
    for client in range(4):
        own = loaders.of(client)
        last = len(list(own)[-1]) if len(own) else 4
        assert loaders.extent(client) == {"batches": len(own), "samples": len(own.dataset), "batch": 4, "last": last}


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, batch_size=64),
        DataLoader(DATA, batch_size=50),
        DataLoader(DATA, batch_size=64, drop_last=True),
        DataLoader(DATA, batch_size=30, sampler=WeightedRandomSampler([1.0] * 200, 70)),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 9, drop_last=False)),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 9, drop_last=True)),
    ],
)
@pytest.mark.parametrize("batches", [1, 2, None])
def test_how_many_samples_each_batch_of_an_epoch_has_is_known_beforehand(loader, batches):
    own = extent(loader)
    there = [len(batch[0]) for batch in loader][:batches]
    limit_extent(own, len(there))
    assert [samples_of(own, number) for number in range(len(there))] == there


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(IterableOfNumbers(), batch_size=4),
        DataLoader(IterableWithLength(), batch_size=4),
        DataLoader(list(range(10)), batch_sampler=[[1, 2, 3], [4]]),
        DataLoader([torch.ones(3), torch.ones(1)], batch_size=None),
        [torch.ones(3), torch.ones(1)],
    ],
)
def test_of_other_loaders_it_is_not(loader):
    own = extent(loader)
    limit_extent(own, 2)
    assert [samples_of(own, number) for number in range(2)] == [None, None]
