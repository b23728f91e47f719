"""The next batch, loaded while the gradient of the one before is awaited, as if it had been loaded in its turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

States = tuple[list[torch.Tensor], tuple[Any, ...], tuple[Any, ...]]
"""Of torch's generator and of those of the loader's own, of numpy's, and of Python's."""


class Ahead:
    """Loads a batch before its turn.

    What augmentations draw meanwhile, nobody else sees: the random generators are put back, and moved on when the batch
    is taken. If others have drawn in between (an optimizer that adds noise), the batch is not what it would have been
    in its turn: `take` says so, and nothing is loaded ahead any more.
    """

    def __init__(self) -> None:
        self._off = False
        self._item: Any = None
        self._error: Exception | None = None
        self._before: States | None = None
        self._after: States | None = None

    @property
    def allowed(self) -> bool:
        """Whether loading ahead has been the same as loading in turn so far."""
        return not self._off

    @property
    def loaded(self) -> bool:
        """Whether there is a batch to `take`, or an exception."""
        return self._before is not None

    def load(self, batches: Iterator[Any], generators: Sequence[torch.Generator]) -> None:
        """Takes the next item of `batches`; an exception is kept for `take`.

        Args:
            batches: Of a loader.
            generators: Those of its own.
        """
        self._before = _read(generators)
        try:
            self._item = next(batches)
        except Exception as error:  # raised in its turn, by `take`
            self._error = error
        self._after = _read(generators)
        _write(self._before, generators)

    def take(self, generators: Sequence[torch.Generator]) -> tuple[bool, Any]:
        """Whether what was loaded is what it would be in its turn, which is now; and the item.

        Raises:
            Exception: What loading it raised.
        """
        assert self._before is not None
        assert self._after is not None
        same = _equal(_read(generators), self._before)
        if same:
            _write(self._after, generators)
        self._off = not same
        item, error = self._item, self._error
        self.forget()
        if same and error is not None:
            raise error
        return same, item

    def forget(self) -> None:
        """Drops what was loaded."""
        self._item = self._error = self._before = self._after = None


def _read(generators: Sequence[torch.Generator]) -> States:
    own = [torch.get_rng_state(), *(generator.get_state() for generator in generators)]
    return own, np.random.get_state(legacy=True), random.getstate()  # type: ignore[return-value]  # a tuple, if legacy


def _write(states: States, generators: Sequence[torch.Generator]) -> None:
    (own, *others), numpy_state, python_state = states
    torch.set_rng_state(own)
    for generator, state in zip(generators, others, strict=True):
        generator.set_state(state)
    np.random.set_state(numpy_state)  # type: ignore[arg-type]
    random.setstate(python_state)


def _equal(one: States, other: States) -> bool:
    return (
        one[2] == other[2]
        and all(np.array_equal(mine, yours) for mine, yours in zip(one[1], other[1], strict=True))
        and all(torch.equal(mine, yours) for mine, yours in zip(one[0], other[0], strict=True))
    )
