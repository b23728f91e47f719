"""Frames between a client and the server: a fixed header of integers, a table of tensors, JSON, raw bytes.

A frame is several pieces: the header, the front (table, JSON and all small tensors), and each large tensor by itself,
which goes from its own memory into its own memory. Nothing received is unpickled or evaluated, and every count, shape
and size is checked before memory is taken for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAGIC, VERSION = 0x45444745, 2
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
MAX_DIMS, MAX_TENSORS, MAX_JSON, MAX_BYTES = 8, 100_000, 1 << 24, 1 << 34
LARGE = 1 << 17
"""Bytes from which on a tensor is a piece of its own; copying a smaller one costs less than one piece more."""
_HEADER = struct.Struct("<8q")
HEADER_BYTES = _HEADER.size
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


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


class Header(NamedTuple):
    """What the integers of a header say.

    Attributes:
        kind: See `Kind`.
        tensors: How many.
        table: Bytes of the table.
        text: Bytes of JSON.
        front: Bytes of the front.
        body: Bytes of front and large tensors.
    """

    kind: int
    tensors: int
    table: int
    text: int
    front: int
    body: int


def encode(frame: Frame) -> list[bytes | memoryview]:
    """The pieces of a frame: header and front, then each large tensor, which is not copied.

    Raises:
        TypeError: If a tensor has a type that the wire does not know.
    """
    text, table = _text(frame), list[int]()
    small, large = list[memoryview](), list[bytes | memoryview]()
    for tensor in frame.tensors:
        if tensor.dtype not in DTYPES or tensor.ndim > MAX_DIMS:
            raise TypeError(f"a tensor of type {tensor.dtype} with {tensor.ndim} dimensions cannot be sent: cast it.")
        last = _has_channels_last(tensor)
        table += [DTYPES.index(tensor.dtype), last, tensor.ndim, *tensor.shape]
        (small if tensor.nbytes < LARGE else large).append(_memory(tensor.detach(), last))
    rows = struct.pack(f"<{len(table)}q", *table)
    front = len(rows) + len(text) + sum(map(len, small))
    body = front + sum(map(len, large))
    header = _HEADER.pack(MAGIC, VERSION, frame.kind, len(frame.tensors), len(rows), len(text), front, body)
    return [b"".join([header, rows, text, *small]), *large]


def size_of(frame: Frame) -> int:
    """Bytes of a frame on the wire, without making it."""
    rows = sum(3 + tensor.ndim for tensor in frame.tensors)
    return HEADER_BYTES + 8 * rows + len(_text(frame)) + sum(tensor.nbytes for tensor in frame.tensors)


def read_header(data: bytes | bytearray) -> Header:
    """The inverse of what `encode` begins with.

    Raises:
        ValueError: If it is no header of this version, or announces more than the bounds.
    """
    magic, version, *rest = _HEADER.unpack(data)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"not a frame of version {VERSION} (magic {magic:#x}, version {version})")
    kind, count, table, text, front, body = header = Header(*rest)
    bounds = ((kind, max(Kind)), (count, MAX_TENSORS), (text, MAX_JSON), (body, MAX_BYTES))
    beyond = any(not 0 <= value <= bound for value, bound in bounds)
    fits = 24 * count <= table <= 8 * (3 + MAX_DIMS) * count and table % 8 == 0
    if beyond or not fits or not table + text <= front <= min(body, table + text + count * LARGE):
        raise ValueError(f"a frame beyond the bounds: {count} tensors, {text} bytes of text, {body} bytes in all")
    return header


def decode(header: Header, front: memoryview) -> tuple[Frame, list[memoryview]]:
    """The inverse of `encode`, once the front has come.

    Returns:
        The frame, whose tensors own their memory, and the memory of the large ones, where what follows belongs.

    Raises:
        ValueError: If table and sizes do not fit each other.
    """
    at, text = header.table, header.text
    shapes = _shapes(struct.unpack(f"<{at // 8}q", front[:at]), header.tensors, header.body)
    lengths = [math.prod(dims) * dtype.itemsize for dtype, _, dims in shapes]
    inside = at + text + sum(length for length in lengths if length < LARGE)
    whole = inside + sum(length for length in lengths if length >= LARGE)
    if inside != len(front) or whole != header.body:
        raise ValueError(f"a frame of {header.body} bytes, {len(front)} in front, announces {whole} and {inside}")
    about = json.loads(bytes(front[at : at + text])) if text else {}
    at += text
    tensors, large = [], []
    for (dtype, last, dims), length in zip(shapes, lengths, strict=True):
        order = _CHANNELS_LAST[len(dims)] if last else torch.contiguous_format
        tensor = torch.empty(dims, dtype=dtype, memory_format=order)
        tensors.append(tensor)
        if length >= LARGE:
            large.append(_memory(tensor, last))
        elif length:  # no view of the front, so that autograd may change it
            _memory(tensor, last)[:] = front[at : at + length]
            at += length
    return Frame(Kind(header.kind), tensors, about, size=HEADER_BYTES + header.body), large


def _shapes(table: Sequence[int], count: int, size: int) -> list[tuple[torch.dtype, bool, list[int]]]:
    """Type, whether channels come last, and shape of every tensor."""
    rest, shapes = iter(table), []
    for _ in range(count):
        dtype, last, ndim = (next(rest, -1) for _ in range(3))
        dims = list(islice(rest, max(0, ndim)))
        known = 0 <= dtype < len(DTYPES) and 0 <= ndim <= MAX_DIMS and 0 <= last <= (ndim in _CHANNELS_LAST)
        if not known or len(dims) != ndim or not all(0 <= d <= size for d in dims):
            raise ValueError(f"a tensor of type {dtype} and shape {dims} cannot be")
        shapes.append((DTYPES[dtype], bool(last), dims))
    if next(rest, None) is not None:
        raise ValueError(f"a table of {len(table)} numbers is not of {count} tensors")
    return shapes


def _text(frame: Frame) -> bytes:
    return json.dumps(frame.about, allow_nan=False).encode() if frame.about else b""


def _has_channels_last(tensor: Tensor) -> bool:
    """Whether channels come last in memory, and in no other order as well."""
    order = _CHANNELS_LAST.get(tensor.ndim)
    return order is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=order)


def _memory(tensor: Tensor, channels_last: bool) -> memoryview:
    """The bytes of a tensor as they are in memory; of a copy only where it is not dense."""
    dense = tensor.movedim(1, -1) if channels_last else tensor.contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data
