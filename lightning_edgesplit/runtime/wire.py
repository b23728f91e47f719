"""Frames between a client and the server: a fixed header of integers, a table of tensors, JSON, raw bytes.

Nothing received is unpickled or evaluated, and every count, shape and size is checked before memory is taken for it.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store  # type: ignore[attr-defined]

from lightning_edgesplit.errors import ClientLostError

MAGIC, VERSION = 0x45444745, 1
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
MAX_DIMS, MAX_TENSORS, MAX_JSON, MAX_BYTES = 8, 100_000, 1 << 24, 1 << 34
_ROW = 2 + MAX_DIMS


class Kind(IntEnum):
    """What a frame is for.

    A local step is ``SMASHED`` up, ``GRADIENT`` down. Where the step comes back to the client (`Cut.back`) it is
    ``THROUGH`` up, ``BACK`` down, ``LOSS`` up, ``GRADIENT`` down. Where the links are scheduled, ``ASK`` up and
    ``GRANT`` down come before what goes up.
    """

    ALIVE = 0
    ROUND = 1
    SMASHED = 2
    GRADIENT = 3
    UPLOAD = 4
    SNAPSHOT = 5
    FAILED = 6
    STOP = 7
    GOODBYE = 8
    HELLO = 9
    HANDOVER = 10
    NORM = 11
    CLIP = 12
    RESTORE = 13
    THROUGH = 14
    BACK = 15
    LOSS = 16
    LEAVE = 17
    ASK = 18
    GRANT = 19


@dataclass
class Frame:
    """One message.

    Attributes:
        kind: What it is for.
        tensors: What it carries, on the CPU.
        about: Plain numbers, strings and lists of them.
        size: Bytes on the wire, header included; filled in when it is received.
    """

    kind: Kind
    tensors: Sequence[Tensor] = ()
    about: dict[str, Any] = field(default_factory=dict)
    size: int = 0


def encode(frame: Frame) -> tuple[Tensor, Tensor]:
    """Header (int64 [6]) and body (uint8) of a frame.

    Raises:
        TypeError: If a tensor has a type that the wire does not know.
    """
    text = json.dumps(frame.about, allow_nan=False).encode() if frame.about else b""
    table, parts = [], []
    for tensor in frame.tensors:
        if tensor.dtype not in DTYPES or tensor.ndim > MAX_DIMS:
            raise TypeError(f"a tensor of type {tensor.dtype} with {tensor.ndim} dimensions cannot be sent: cast it.")
        table += [DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape, *[0] * (MAX_DIMS - tensor.ndim)]
        parts.append(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    front = torch.tensor(table, dtype=torch.int64).view(torch.uint8)
    body = torch.cat([front, torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else front[:0], *parts])
    header = torch.tensor([MAGIC, VERSION, frame.kind, len(frame.tensors), len(text), body.numel()])
    return header, body


def size_of(frame: Frame) -> int:
    """Bytes of a frame on the wire, without making it."""
    text = len(json.dumps(frame.about, allow_nan=False).encode()) if frame.about else 0
    return 6 * 8 + len(frame.tensors) * _ROW * 8 + text + sum(tensor.nbytes for tensor in frame.tensors)


def body_bytes(header: Tensor) -> int:
    """Bytes of the body that a header announces.

    Raises:
        ValueError: If it is no header of this version, or announces more than the bounds.
    """
    magic, version, kind, count, text, size = header.tolist()
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"not a frame of version {VERSION} (magic {magic:#x}, version {version})")
    bounds = ((kind, max(Kind)), (count, MAX_TENSORS), (text, MAX_JSON), (size, MAX_BYTES))
    if any(not 0 <= value <= bound for value, bound in bounds) or count * _ROW * 8 + text > size:
        raise ValueError(f"a frame beyond the bounds: {count} tensors, {text} bytes of text, {size} bytes in all")
    return int(size)


def decode(header: Tensor, body: Tensor) -> Frame:
    """The inverse of `encode`. The tensors own their memory.

    Raises:
        ValueError: If table and sizes do not fit each other.
    """
    _, _, kind, count, text, size = header.tolist()
    at = count * _ROW * 8
    table = body[:at].clone().view(torch.int64).reshape(count, _ROW).tolist() if count else []
    about = json.loads(bytes(body[at : at + text].tolist())) if text else {}
    at += text
    tensors = []
    for dtype, ndim, *dims in table:
        if not (0 <= dtype < len(DTYPES) and 0 <= ndim <= MAX_DIMS and all(0 <= d <= size for d in dims[:ndim])):
            raise ValueError(f"a tensor of type {dtype} and shape {dims[:ndim]} cannot be")
        length = math.prod(dims[:ndim]) * DTYPES[dtype].itemsize
        if at + length > size:
            raise ValueError("the tensors of a frame are longer than the frame")
        tensor = torch.empty(dims[:ndim], dtype=DTYPES[dtype])  # no view of the body, so that autograd may change it
        tensor.view(-1).view(torch.uint8).copy_(body[at : at + length])
        tensors.append(tensor)
        at += length
    if at != size:
        raise ValueError(f"a frame of {size} bytes holds {at}")
    return Frame(Kind(kind), tensors, about, size=header.nbytes + size)


class Link:
    """One client's connection: a gloo group of two, on loopback.

    Args:
        store: The rendezvous store.
        client: Index of the client.
        on_server: Which end this is.
        timeout: Seconds without a sign of life after which the other end counts as lost.
        peer: How errors call the other end.

    Attributes:
        sent: Bytes sent so far, headers included.
        received: Bytes received so far, headers included.

    Raises:
        ClientLostError: If the other end does not connect in time.
    """

    def __init__(self, store: Store, client: int, on_server: bool, timeout: float, peer: str) -> None:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=timeout)
        self.client, self._peer, self._timeout, self._name = client, int(on_server), timeout, peer
        self.sent = self.received = 0
        self._lock = threading.Lock()
        try:
            self._group: Any = ProcessGroupGloo(PrefixStore(f"client{client}/0", store), 1 - self._peer, 2, options)
        except RuntimeError as error:
            raise ClientLostError(f"{peer} did not connect within {timeout:g} s (`timeout`): {error}") from error

    def send(self, frame: Frame, pace: Callable[[int], None] | None = None) -> int:
        """Sends a frame; may be called from several threads.

        Args:
            frame: What to send.
            pace: Called with the frame's bytes before it is sent; waits for as long as an emulated link would take.

        Returns:
            The frame's bytes on the wire.

        Raises:
            ClientLostError: If the other end is gone.
        """
        header, body = encode(frame)
        if pace is not None:
            pace(header.nbytes + body.nbytes)
        with self._lock:
            try:
                self._group.send([header], self._peer, 0).wait()
                if body.numel():
                    self._group.send([body], self._peer, 0).wait()
            except RuntimeError as error:
                raise self._lost(error) from error
            self.sent += header.nbytes + body.nbytes
        return header.nbytes + body.nbytes

    def receive(self) -> Frame:
        """Waits for the next frame that is more than a sign of life; call it from one thread.

        Raises:
            ClientLostError: If the other end is gone, or silent for longer than `timeout`.
            ValueError: If it sends what is no frame.
        """
        while True:
            header = torch.empty(6, dtype=torch.int64)
            try:
                self._group.recv([header], self._peer, 0).wait()
                body = torch.empty(body_bytes(header), dtype=torch.uint8)
                if body.numel():
                    self._group.recv([body], self._peer, 0).wait()
            except RuntimeError as error:
                raise self._lost(error) from error
            self.received += header.nbytes + body.nbytes
            frame = decode(header, body)
            if frame.kind is not Kind.ALIVE:
                return frame

    def _lost(self, error: Exception) -> ClientLostError:
        return ClientLostError(
            f"{self._name} is gone, or gave no sign of life for {self._timeout:g} s (`timeout`): {error}"
        )
