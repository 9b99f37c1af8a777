"""What is finite, whatever its sum is."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_whose_sum_overflows_are_finite(dtype: torch.dtype):
    assert all_finite(torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype))
    assert all_finite(torch.zeros(0, 4, dtype=dtype))
    assert all_finite(torch.tensor([2**62, 2**62, 2**62]))


@pytest.mark.parametrize("values", [(math.inf, -math.inf), (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 3e38)])
def test_infinities_do_not_cancel(values: tuple[float, float]):
    assert not all_finite(torch.tensor([values, (0.0, 1.0)]))
