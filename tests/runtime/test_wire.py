from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time

import pytest
import torch

from lightning_edgesplit.errors import ClientLostError
from lightning_edgesplit.runtime.link import Link
from lightning_edgesplit.runtime.wire import (
    DTYPES,
    HEADER_BYTES,
    LARGE,
    MAX_TENSORS,
    Frame,
    Kind,
    decode,
    encode,
    read_header,
    size_of,
)


def split(frame: Frame) -> tuple[bytes, bytearray, list[bytes]]:
    """Header, front and large tensors of a frame."""
    head, *large = encode(frame)
    return bytes(head[:HEADER_BYTES]), bytearray(head[HEADER_BYTES:]), [bytes(piece) for piece in large]


def over_the_wire(frame: Frame) -> Frame:
    header, front, large = split(frame)
    back, places = decode(read_header(header), memoryview(front))
    for place, piece in zip(places, large, strict=True):
        place[:] = piece
    return back


def test_a_frame_comes_back_as_it_was():
    tensors = [
        torch.randn(2, 3),
        torch.randn(LARGE // 4),
        torch.tensor(7),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.randn(3).half(),
        torch.randn(LARGE).to(torch.bfloat16),
        torch.randn(8, 40)[:, ::2],
    ]
    sent = Frame(Kind.SMASHED, tensors, {"step": 3, "sizes": [1, 2]})
    frame = over_the_wire(sent)
    assert frame.kind is Kind.SMASHED
    assert frame.about == {"step": 3, "sizes": [1, 2]}
    assert frame.size == size_of(sent) == sum(map(len, encode(sent)))
    for actual, expected in zip(frame.tensors, tensors, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 2, 4, 4), (8, 64, 32, 32)])
def test_channels_that_come_last_in_memory_still_do(shape):
    order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape).to(memory_format=order)
    back = over_the_wire(Frame(Kind.SMASHED, [x])).tensors[0]
    assert torch.equal(back, x)
    assert back.stride() == x.stride()


def test_large_tensors_are_sent_from_their_own_memory():
    x = torch.randn(LARGE)
    *_, piece = encode(Frame(Kind.UPLOAD, [x]))
    x.fill_(7)
    assert torch.equal(torch.frombuffer(piece, dtype=torch.float32), x)


MUCH = 1 << 40


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 1),
        (1, 99),
        (2, 50),
        (3, MAX_TENSORS + 1),
        (3, -1),
        (3, 2),
        (4, 8),
        (4, MUCH),
        (5, MUCH),
        (6, MUCH),
        (7, MUCH),
    ],
)
def test_a_header_beyond_the_bounds_is_refused_before_anything_is_allocated(place, value):
    header, *_ = split(Frame(Kind.UPLOAD, [torch.zeros(4)]))
    numbers = [*struct.unpack("<8q", header)]
    numbers[place] = value
    with pytest.raises(ValueError, match="frame"):
        read_header(struct.pack("<8q", *numbers))


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (0, len(DTYPES), "cannot be"),
        (0, -1, "cannot be"),
        (1, 1, "cannot be"),
        (2, 9, "cannot be"),
        (2, 2, "cannot be"),
        (2, 0, "is not of 1 tensors"),
        (3, -4, "cannot be"),
        (3, 30, "announces"),
        (3, 1 << 16, "announces"),
        (3, 3, "announces"),
    ],
)
def test_a_table_that_does_not_fit_the_frame_is_refused(place, value, match):
    header, front, _ = split(Frame(Kind.UPLOAD, [torch.zeros(4)], {"x": "y" * (1 << 19)}))
    struct.pack_into("<q", front, 8 * place, value)
    with pytest.raises(ValueError, match=match):
        decode(read_header(header), memoryview(front))


@pytest.fixture
def ends():
    """Makes the server's and the client's end of a link."""
    made = []

    def make(timeout: float = 20) -> list[Link]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        made.extend([Link(server, timeout, "client-0"), Link(client, timeout, "the server")])
        return made

    yield make
    for link in made:
        link.close()


def test_a_link_carries_frames_both_ways_and_counts_bytes(ends):
    server, client = ends()
    server.send(Frame(Kind.ALIVE))
    server.send(Frame(Kind.SMASHED, [torch.arange(3.0)]))
    got = client.receive()
    client.send(Frame(Kind.GRADIENT, [got.tensors[0] * 2]))
    assert torch.equal(server.receive().tensors[0], torch.tensor([0.0, 2.0, 4.0]))
    assert server.sent == client.received == 2 * 64 + 32 + 12
    assert server.received == client.sent == 64 + 32 + 12


def test_what_is_not_waited_for_arrives_as_it_was_and_in_order(ends):
    server, client = ends()
    got: list[Frame] = []
    thread = threading.Thread(target=lambda: got.extend(client.receive() for _ in range(40)))
    thread.start()
    for number in range(40):  # more than the kernel takes at once
        tensors = [torch.full((LARGE,), float(number)), torch.tensor(number)]
        server.send(Frame(Kind.GRADIENT, tensors), wait=False)
    thread.join(timeout=20)
    assert [int(frame.tensors[1]) for frame in got] == list(range(40))
    assert all((frame.tensors[0] == number).all() for number, frame in enumerate(got))


def test_silence_and_a_closed_connection_are_told_apart(ends):
    server, client = ends(timeout=0.2)
    with pytest.raises(ClientLostError, match=r"client-0 is gone, or gave no sign of life for 0.2 s .*nothing came"):
        server.receive()
    client.close()
    with pytest.raises(ClientLostError, match="the connection was closed"):
        server.receive()
    server._connection.sendall(b"x")  # is answered with a reset
    with pytest.raises(ClientLostError, match="client-0 is gone"):
        server.send(Frame(Kind.ROUND))


def test_half_a_frame_is_no_frame(ends):
    server, client = ends()
    head, large = encode(Frame(Kind.SMASHED, [torch.zeros(LARGE)]))
    client._connection.sendall(head)
    client._connection.sendall(large[: len(large) // 2])
    client.close()
    with pytest.raises(ClientLostError, match="the connection was closed"):
        server.receive()


def test_who_hangs_up_waits_until_the_last_word_was_taken_in(ends):
    server, client = ends()
    server.send(Frame(Kind.ALIVE))  # unread when the client goes: a plain close would reset the connection
    last = Frame(Kind.GOODBYE, [torch.zeros(1 << 22)])
    thread = threading.Thread(target=lambda: (client.send(last), client.hang_up()))
    thread.start()
    assert server.receive().kind is Kind.GOODBYE
    assert thread.is_alive()
    server.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_a_forked_process_has_no_copy_of_the_link(ends):
    server, client = ends()
    child = os.fork()
    if child == 0:
        time.sleep(60)  # outlives the client
        os._exit(0)
    try:
        client.forget()
        with pytest.raises(ClientLostError, match="the connection was closed"):
            server.receive()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
