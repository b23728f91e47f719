from __future__ import annotations

import pytest
import torch

from lightning_edgesplit.runtime.compression import compressed, from_int8, restored, squares, to_int8
from lightning_edgesplit.runtime.wire import HEADER_BYTES, Frame, Kind, decode, encode, read_header, size_of


def test_what_comes_back_is_at_most_half_a_level_off_sample_by_sample():
    x = torch.randn(6, 3, 5, 5) * torch.tensor([1e-3, 1, 10, 1e3, 0, 1]).view(-1, 1, 1, 1)
    sent, chosen = to_int8([x])
    assert chosen == [True]
    assert [t.dtype for t in sent] == [torch.uint8, torch.float32]
    (back,) = from_int8(sent, chosen, [x.dtype])
    level = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))) / 255
    assert ((back - x).abs().amax((1, 2, 3)) <= 0.501 * level + 1e-6).all()
    assert torch.equal(back[4], x[4])  # a sample of zeros


def test_what_is_no_floating_point_tensor_or_is_small_goes_as_it_is():
    given = [torch.arange(8).view(4, 2), torch.randn(4), torch.randn(4, 2), torch.tensor(3.0)]
    sent, chosen = to_int8(given)
    assert chosen == [False] * 4
    back = from_int8(sent, chosen, [t.dtype for t in given])
    assert all(torch.equal(a, b) for a, b in zip(given, back, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_are_kept(dtype):
    x = torch.randn(4, 32, dtype=dtype)
    sent, chosen = to_int8([x, torch.arange(4)])
    back = from_int8(sent, chosen, [dtype, torch.int64])
    assert back[0].dtype == dtype
    error = float((back[0].double() - x.double()).norm() / x.double().norm())
    lost, norm = squares([x, torch.arange(4)], back)
    assert (lost / norm) ** 0.5 == pytest.approx(error)
    assert 0 < error < 0.02


def test_a_frame_says_what_is_compressed_in_it_and_the_rest_stays():
    x, labels, more = torch.randn(4, 64, 8), torch.arange(4), torch.randn(3)
    frame, lost, norm = compressed(Frame(Kind.SMASHED, [x, labels, more], {"index": 3}), count=2)
    [piece] = encode(frame)  # none is large
    back = restored(decode(read_header(piece[:HEADER_BYTES]), memoryview(piece)[HEADER_BYTES:])[0])
    assert torch.equal(back.tensors[1], labels)
    assert torch.equal(back.tensors[2], more)
    assert float((back.tensors[0] - x).square().sum()) == pytest.approx(lost)
    assert float(x.square().sum()) == pytest.approx(norm)
    assert size_of(frame) < 0.5 * size_of(Frame(Kind.SMASHED, [x, labels, more], {"index": 3}))


def test_tensors_that_are_missing_are_noticed():
    sent, chosen = to_int8([torch.randn(4, 32)])
    with pytest.raises(ValueError, match="without its ranges"):
        from_int8(sent[:1], chosen, [torch.float32])
    with pytest.raises(ValueError, match="0 tensors"):
        from_int8([], chosen, [torch.float32])
