"""A client's local step in micro-batches: the next one is computed while the last one is on its way (PiPar)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.splitting.batch import batch_size
from lightning_edgesplit.splitting.tree import flatten


class Sender:
    """Sends in a thread of its own, in order, so that the client computes meanwhile."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sends micro-batches", daemon=True)
        self._thread.start()
        self.error: Exception | None = None

    def put(self, send: Callable[[], None]) -> None:
        """`send` is called once all before it is sent."""
        self._work.put(send)

    def close(self) -> None:
        """Ends the thread, after what it has to send."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (send := self._work.get()) is not None:
            try:
                send()
            except ClientLostError:
                return  # the thread that receives has the same news, and the client waits for it
            except Exception as error:  # raised by whoever waits for the answer
                self.error = error
                return


def divided(batch: Any, parts: int) -> list[Any]:
    """A batch in so many micro-batches, as `torch.tensor_split` divides its tensors along their first dimension.

    Raises:
        ValueError: If a tensor has another first dimension than the batch, or there are fewer samples than parts.
    """
    leaves, structure = flatten(batch)
    samples = batch_size(batch)
    if samples < parts:
        raise ValueError(
            f"micro_batches={parts} of a batch of {samples} samples, whose number was not known beforehand: give the"
            " loader drop_last=True, or use torch's own DataLoader and BatchSampler, or fewer micro-batches."
        )
    pieces: list[list[Any]] = [[] for _ in range(parts)]
    for name, leaf in zip(structure.paths(), leaves, strict=True):
        if not isinstance(leaf, Tensor):
            for own in pieces:
                own.append(leaf)
            continue
        if leaf.ndim == 0 or leaf.shape[0] != samples:
            raise ValueError(
                f"micro_batches={parts}: leaf {name!r} of the batch has the shape {list(leaf.shape)}, not {samples}"
                " samples first, so it cannot be divided: use micro_batches=1."
            )
        for own, piece in zip(pieces, leaf.tensor_split(parts), strict=True):
            own.append(piece)
    return [structure.build(own) for own in pieces]


def fresh_stream() -> Tensor:
    """The state of a random stream of its own for the server's part of a micro-batch, drawn from this client's."""
    seed = int(torch.randint(2**31, (1,)))
    return torch.Generator().manual_seed(seed).get_state()
