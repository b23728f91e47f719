"""Optimizer states on the wire: tensors in the frame, plain numbers beside them, nothing pickled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_edgesplit.runtime.aggregation import RunningMean

State = dict[str, dict[str, Any]]
"""Optimizer state by parameter name, then by the optimizer's own key (``momentum_buffer``, ``exp_avg``, …)."""


def pack(state: State) -> tuple[list[Any], list[Tensor]]:
    """A state as JSON and tensors.

    Raises:
        TypeError: If the state of an optimizer holds more than tensors and plain values.
    """
    about: list[Any] = []
    tensors: list[Tensor] = []
    for name, entries in state.items():
        plain: dict[str, Any] = {}
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors.append(value)
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain[key] = value
            else:
                raise TypeError(
                    f"the optimizer keeps a {type(value).__name__} as {key!r} of {name}, which cannot travel between"
                    " client and server: use an optimizer whose state is tensors and numbers, or fixed cuts."
                )
        about.append([name, [key for key, value in entries.items() if isinstance(value, Tensor)], plain])
    return about, tensors


def unpack(about: Sequence[Any], tensors: Iterable[Tensor]) -> State:
    """The inverse of `pack`; takes its tensors from the front of `tensors`."""
    rest = iter(tensors)
    return {name: {**{key: next(rest) for key in keys}, **plain} for name, keys, plain in about}


def take(optimizer: Optimizer, parameters: dict[str, nn.Parameter], names: Iterable[str]) -> State:
    """Removes the state of these parameters from an optimizer, and returns it."""
    found = _present(optimizer.state, parameters, names)
    return {name: optimizer.state.pop(parameters[name]) for name in found}


def read(state: dict[Any, Any], parameters: dict[str, nn.Parameter], names: Iterable[str]) -> State:
    """The state of these parameters in an optimizer's ``state``; nothing is copied."""
    return {name: state[parameters[name]] for name in _present(state, parameters, names)}


def copy(state: State) -> State:
    """A state with tensors of its own."""
    return {
        name: {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}
        for name, entries in state.items()
    }


def _present(state: dict[Any, Any], parameters: dict[str, nn.Parameter], names: Iterable[str]) -> Iterator[str]:
    return (name for name in list(names) if name in parameters and parameters[name] in state)


class MeanOfStates:
    """Σ_k (n_k / n) s_k entry by entry, over the clients that have the entry; what is not a tensor is the first's.

    States are added one by one; none is kept but the sum.
    """

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, RunningMean | Any]] = {}

    def add(self, state: State, samples: float) -> None:
        """Takes in a client's state, and the samples that it trained on; one without any has no say."""
        if samples <= 0:
            return
        for name, entries in state.items():
            own = self._entries.setdefault(name, {})
            for key, value in entries.items():
                before = own.get(key)
                if isinstance(value, Tensor) and (before is None or isinstance(before, RunningMean)):
                    mean = own[key] = RunningMean() if before is None else before
                    mean.add(value, samples)
                elif before is None:
                    own[key] = value

    def copy(self) -> MeanOfStates:
        """One that goes on from here without changing this one."""
        other = MeanOfStates()
        other._entries = {
            name: {key: value.copy() if isinstance(value, RunningMean) else value for key, value in entries.items()}
            for name, entries in self._entries.items()
        }
        return other

    def result(self) -> State:
        """The mean."""
        return {
            name: {key: value.result() if isinstance(value, RunningMean) else value for key, value in entries.items()}
            for name, entries in self._entries.items()
        }


def weighted_mean_of_states(states: Sequence[State], weights: Sequence[float]) -> State:
    """The mean of states that are all there, see `MeanOfStates`."""
    mean = MeanOfStates()
    for state, n in zip(states, weights, strict=True):
        mean.add(state, n)
    return mean.result()
