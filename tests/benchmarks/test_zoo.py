"""A small part of `make zoo`: steps of every shape, and one model of each kind that is installed anyway."""

from __future__ import annotations

import pytest

from benchmarks.zoo.__main__ import ENTRIES
from benchmarks.zoo.check import check

NO_CUT = {"autoencoder, input private"}
SMALL = [entry for entry in ENTRIES if entry.library == "ours" or entry.name in ("googlenet", "maxvit")]


@pytest.mark.parametrize("entry", SMALL, ids=lambda entry: entry.name)
def test_a_model_of_the_zoo_trains_as_in_plain_lightning(entry):
    if entry.library != "ours":
        pytest.importorskip(entry.library)
    row = check(entry, steps=2)
    assert row.proven == (entry.name not in NO_CUT), row.why
    if entry.name in NO_CUT:
        assert "raw inputs stay on the client" in row.why


def test_the_zoo_is_large_enough():
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names) >= 60
