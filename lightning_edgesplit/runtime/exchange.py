"""What of a client's side need not travel between rounds: frozen parameters and buffers that the other end has.

Nobody's word is taken for what training leaves alone, since a step may well change a frozen parameter (a moving average
of weights): both ends compare digests of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import torch
from torch import Tensor, nn


def resting(parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> list[str]:
    """Those of the names that the optimizer does not change: of frozen parameters, and of buffers."""
    return [name for name in names if name not in parameters or not parameters[name].requires_grad]


def digest(tensor: Tensor) -> bytes:
    """16 bytes that two tensors of one type and shape share only if they are equal to the bit."""
    return blake2b(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=16).digest()


class Digests:
    """Digests of tensors, each computed when it is asked for first."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors, self._known = tensors, dict[str, bytes]()

    def of(self, name: str) -> bytes:
        """The digest of the tensor of that name."""
        if name not in self._known:
            self._known[name] = digest(self._tensors[name])
        return self._known[name]


class Held:
    """What the process at the other end of a link has, as far as it need not be sent again: digests by name."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def lacks(self, names: Sequence[str], resting: Iterable[str], digests: Digests) -> list[str]:
        """Those of a client's names that have to be sent to it; it has all of them then, and none but them.

        Args:
            names: Of the client's side.
            resting: Those of them that the optimizer does not change.
            digests: Of what they are to be.
        """
        before, own = self._digests, set(names)
        self._digests = {name: digests.of(name) for name in resting if name in own}
        return [name for name in names if name not in self._digests or before.get(name) != self._digests[name]]

    def keep(self, names: Iterable[str]) -> None:
        """Of the names sent, these were still what they were when the round was over."""
        self._digests = {name: self._digests[name] for name in names if name in self._digests}
