from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_edgesplit.runtime.dealing import Dealer, check_dealt

NUMBERS = TensorDataset(torch.arange(23))


def flat(batches) -> list[int]:
    return [int(number) for (batch,) in batches for number in batch]


def loader(**options) -> DataLoader:
    return DataLoader(NUMBERS, batch_size=4, **options)


@pytest.mark.parametrize(
    "options",
    [
        lambda: {},
        lambda: {"shuffle": True},
        lambda: {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
        lambda: {"sampler": WeightedRandomSampler([1.0] * 23, 18, generator=torch.Generator().manual_seed(4))},
        lambda: {"sampler": RandomSampler(NUMBERS, num_samples=20, generator=torch.Generator().manual_seed(5))},
        lambda: {"shuffle": True, "num_workers": 2},
    ],
    ids=["in order", "shuffled", "own generator", "own sampler", "no short batch", "workers"],
)
def test_the_samples_come_in_the_order_of_the_loaders_own_sampler_whatever_the_sizes(options):
    torch.manual_seed(7)
    plain = loader(**options())
    passes = [flat(itertools.islice(plain, len(plain))) for _ in range(2)]  # as far as the Trainer asks
    after = torch.rand(())
    torch.manual_seed(7)
    own = loader(**options())
    dealer, dealt = Dealer(own), []
    for sizes in ([[3, 5], [1, 1, 1], [6], [len(own.sampler) - 17]], [[8], [2, len(own.sampler) - 10]]):
        dealer.begin()
        dealt.append([batch for some in sizes for batch in dealer.deal(some)])
        assert [len(batch) for (batch,) in dealt[-1]] == [size for some in sizes for size in some]
    assert [flat(own) for own in dealt] == passes
    assert torch.equal(torch.rand(()), after), "and random numbers go on as if the loader had been iterated"


def test_a_pass_begins_behind_what_was_dealt_before():
    own = loader(shuffle=True, generator=torch.Generator().manual_seed(3))
    state, dealer = own.generator.get_state(), Dealer(own)
    dealer.begin()
    whole = flat(dealer.deal([5, 6, 12]))
    own.generator.set_state(state)
    dealer.begin(skip=11)
    assert flat(dealer.deal([2, 10])) == whole[11:]


def test_a_batch_is_read_when_it_is_asked_for():
    class Noting(Dataset):
        read: list[int] = []  # noqa: RUF012  # one for the test

        def __len__(self):
            return 8

        def __getitem__(self, number):
            self.read.append(number)
            return number

    dealer = Dealer(DataLoader(Noting(), batch_size=2))
    dealer.begin()
    batches = dealer.deal([3, 2])
    assert next(batches).tolist() == [0, 1, 2]
    assert Noting.read == [0, 1, 2]


class Counting(Dataset):
    """Which worker drew which random number."""

    def __len__(self):
        return 12

    def __getitem__(self, number):
        return torch.rand(())


def test_workers_draw_other_numbers_in_every_round_and_the_same_in_every_run():
    def rounds():
        torch.manual_seed(5)
        dealer = Dealer(DataLoader(Counting(), batch_size=4, num_workers=1))
        dealer.begin()
        return [next(iter(dealer.deal([4]))) for _ in range(3)]

    first = rounds()
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, rounds(), strict=True))


def test_a_sampler_that_ends_before_its_length_is_an_error():
    class Short(Sampler):
        def __len__(self):
            return 9

        def __iter__(self):
            yield from range(5)

    dealer = Dealer(loader(sampler=Short()))
    dealer.begin()
    with pytest.raises(ValueError, match="a Short, ended before its length"):
        list(dealer.deal([4, 4]))


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(9)


class Endless(Sampler):
    def __iter__(self):
        yield from itertools.repeat(0)


class OwnBatches(BatchSampler):
    pass


class OwnLoader(DataLoader):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([1, 2], "a list is not torch's own DataLoader"),
        (OwnLoader(NUMBERS), "a OwnLoader is not torch's own DataLoader"),
        (DataLoader(Stream(), batch_size=2), "IterableDataset"),
        (DataLoader(NUMBERS, batch_size=None), "batch_size=None"),
        (DataLoader(NUMBERS, batch_sampler=OwnBatches(SequentialSampler(NUMBERS), 2, False)), "OwnBatches"),
        (DataLoader(NUMBERS, sampler=Endless()), "a Endless, has no length"),
    ],
)
def test_what_cannot_be_dealt_anew_is_refused_with_the_option_and_the_way_out(wrong, why):
    with pytest.raises(ValueError, match=rf"batches=True of the policy.*{why}.*leave `batches` out"):
        check_dealt(wrong)


def test_torchs_own_batch_sampler_may_be_given():
    check_dealt(DataLoader(NUMBERS, batch_sampler=BatchSampler(RandomSampler(NUMBERS), 3, drop_last=False)))
