"""Which weights travel with fewer bits than they have, and the bytes that are left; expected numbers by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_edgesplit.splitting.narrowing import narrowed_bytes

RANGE, TABLE_ROW = 8, 40


@pytest.mark.parametrize(
    ("shape", "dtype", "how", "wanted"),
    [
        ((64, 3, 7, 7), torch.float32, "none", 4 * 9408),
        ((64, 3, 7, 7), torch.float32, "bfloat16", 2 * 9408),
        ((64, 3, 7, 7), torch.float32, "int8", 9408 + 64 * RANGE + TABLE_ROW),
        ((500,), torch.float32, "bfloat16", 2 * 500),
        ((500,), torch.float32, "int8", 500 + RANGE + TABLE_ROW),  # one range for all
        ((), torch.float32, "bfloat16", 2),
        ((), torch.float32, "int8", 4),
        ((16,), torch.float32, "int8", 4 * 16),  # its range and its row of the table would be more than it saves
        ((17,), torch.float32, "int8", 17 + RANGE + TABLE_ROW),
        ((1000, 2), torch.float32, "int8", 4 * 2000),  # a range for two numbers is as much as they are
        ((10, 30), torch.float64, "bfloat16", 2 * 300),
        ((10, 30), torch.float64, "int8", 300 + 10 * RANGE + TABLE_ROW),
        ((10, 30), torch.bfloat16, "bfloat16", 2 * 300),
        ((10, 30), torch.float16, "bfloat16", 2 * 300),
        ((10, 30), torch.bfloat16, "int8", 300 + 10 * RANGE + TABLE_ROW),
        ((10, 8), torch.bfloat16, "int8", 2 * 80),
        ((10, 30), torch.int64, "int8", 8 * 300),
        ((0, 30), torch.float32, "int8", 0),
        ((30, 0), torch.float32, "bfloat16", 0),
    ],
)
def test_a_weight_never_takes_more_bytes_than_it_has(shape, dtype, how, wanted):
    assert narrowed_bytes(torch.zeros(shape, dtype=dtype), how) == wanted
