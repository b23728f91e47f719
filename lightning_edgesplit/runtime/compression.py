"""Smashed data and gradients as 8-bit integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_edgesplit.runtime.wire import DTYPES, Frame

LEVELS = 255


def to_levels(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises rows of numbers: x ≈ low + scale·q, with the range of each row.

    Args:
        rows: Floating-point numbers, [rows, values], at least one of each.

    Returns:
        q, rounded to the nearest of 256 levels (uint8, [rows, values]); low and scale (float32, [2, rows]).
    """
    rows = rows.detach().float()
    low = rows.amin(1, keepdim=True)
    scale = (rows.amax(1, keepdim=True) - low) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = ((rows - low) / scale).round_().clamp_(0, LEVELS).to(torch.uint8)
    return q, torch.cat([low, scale], 1).T.contiguous()


def from_levels(q: Tensor, ranges: Tensor) -> Tensor:
    """The inverse of `to_levels`, as far as there is one, in single precision: [rows, values]."""
    low, scale = ranges[0].unsqueeze(1), ranges[1].unsqueeze(1)
    return q.float() * scale + low


def to_int8(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[bool]]:
    """Quantises each floating-point tensor with more values than samples: x ≈ low + scale·q, sample by sample.

    Low and scale are those of a sample (the first dimension), so that one sample's range does not cost the others their
    resolution; q is rounded to the nearest of 256 levels. What is no floating-point tensor, or has a single value per
    sample, goes as it is.

    Returns:
        The tensors to send, of a quantised one q (uint8) and then low and scale (float32, [2, samples]); and which of
        the given ones were quantised.
    """
    sent: list[Tensor] = []
    chosen: list[bool] = []
    for tensor in tensors:
        fits = tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() > 4 * tensor.shape[0]
        chosen.append(fits)
        if not fits:
            sent.append(tensor)
            continue
        q, ranges = to_levels(tensor.flatten(1))
        sent += [q.view(tensor.shape), ranges]
    return sent, chosen


def from_int8(sent: Sequence[Tensor], chosen: Sequence[bool], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The inverse of `to_int8`, as far as there is one.

    Args:
        sent: What it returned.
        chosen: Which tensors were quantised.
        dtypes: The type of each tensor.

    Raises:
        ValueError: If there are too few tensors.
    """
    rest, tensors = iter(sent), []
    for quantised, dtype in zip(chosen, dtypes, strict=True):
        tensor = next(rest, None)
        if tensor is None:
            raise ValueError(f"{len(sent)} tensors for {len(chosen)} that were sent")
        if quantised:
            ranges = next(rest, None)
            if ranges is None or ranges.shape != (2, tensor.shape[0]):
                raise ValueError("a quantised tensor came without its ranges")
            tensor = from_levels(tensor.flatten(1), ranges).view(tensor.shape).to(dtype)
        tensors.append(tensor)
    return tensors


def compressed(frame: Frame, count: int) -> tuple[Frame, float, float]:
    """A frame whose first `count` tensors go as 8-bit integers; ``about["int8"]`` says which, and what they were.

    Returns:
        The frame, ‖x − x̂‖² and ‖x‖² over those tensors.
    """
    exact = list(frame.tensors[:count])
    sent, chosen = to_int8(exact)
    kinds = [DTYPES.index(x.dtype) for x in exact]
    back = from_int8(sent, chosen, [x.dtype for x in exact])
    lost, norm = squares(exact, back)
    about = {**frame.about, "int8": [kind if own else -1 for kind, own in zip(kinds, chosen, strict=True)]}
    return replace(frame, tensors=[*sent, *frame.tensors[count:]], about=about), lost, norm


def restored(frame: Frame) -> Frame:
    """The inverse of `compressed`; any other frame as it is.

    Raises:
        ValueError: If the frame does not hold what it says.
    """
    kinds = frame.about.get("int8")
    if kinds is None:
        return frame
    if not all(isinstance(kind, int) and -1 <= kind < len(DTYPES) for kind in kinds):
        raise ValueError(f"int8={kinds!r} of a frame are no types of tensors")
    chosen = [kind >= 0 for kind in kinds]
    taken = len(kinds) + sum(chosen)
    tensors = from_int8(frame.tensors[:taken], chosen, [DTYPES[kind] for kind in kinds])
    return replace(frame, tensors=[*tensors, *frame.tensors[taken:]])


def squares(exact: Iterable[Tensor], back: Iterable[Tensor]) -> tuple[float, float]:
    """‖x − x̂‖² and ‖x‖² over the floating-point ones of all tensors together."""
    lost = norm = 0.0
    for x, y in zip(exact, back, strict=True):
        if x.is_floating_point():
            lost += float((x.double() - y.double()).square().sum())
            norm += float(x.double().square().sum())
    return lost, norm
