from __future__ import annotations

import threading

import pytest
import torch
from torch.distributed import HashStore

from lightning_edgesplit.runtime.wire import MAX_TENSORS, Frame, Kind, Link, body_bytes, decode, encode


def test_a_frame_comes_back_as_it_was():
    tensors = [
        torch.randn(2, 3),
        torch.tensor(7),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.randn(3).half(),
    ]
    frame = decode(*encode(Frame(Kind.SMASHED, tensors, {"step": 3, "sizes": [1, 2]})))
    assert frame.kind is Kind.SMASHED
    assert frame.about == {"step": 3, "sizes": [1, 2]}
    for actual, expected in zip(frame.tensors, tensors, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("place", "value"), [(0, 1), (1, 99), (2, 50), (3, MAX_TENSORS + 1), (3, -1), (5, 1 << 40)])
def test_a_header_beyond_the_bounds_is_refused_before_anything_is_allocated(place, value):
    header, _ = encode(Frame(Kind.UPLOAD, [torch.zeros(4)]))
    header[place] = value
    with pytest.raises(ValueError, match="frame"):
        body_bytes(header)


def test_a_table_that_claims_more_than_the_frame_holds_is_refused():
    header, body = encode(Frame(Kind.UPLOAD, [torch.zeros(4)]))
    body[16] = 30  # the first dimension
    with pytest.raises(ValueError, match="longer than the frame"):
        decode(header, body)


def test_a_link_carries_frames_both_ways_and_counts_bytes():
    store, ends = HashStore(), {}

    def client():
        ends["client"] = Link(store, 0, on_server=False, timeout=20, peer="the server")
        ends["got"] = ends["client"].receive()
        ends["client"].send(Frame(Kind.GRADIENT, [ends["got"].tensors[0] * 2]))

    thread = threading.Thread(target=client)
    thread.start()
    server = Link(store, 0, on_server=True, timeout=20, peer="client-0")
    server.send(Frame(Kind.ALIVE))
    server.send(Frame(Kind.SMASHED, [torch.arange(3.0)]))
    assert torch.equal(server.receive().tensors[0], torch.tensor([0.0, 2.0, 4.0]))
    thread.join(timeout=20)
    assert server.sent == ends["client"].received == 2 * 48 + 80 + 12
