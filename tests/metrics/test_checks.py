"""What is finite, whatever its sum is."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.errors import DataError
from monosema.metrics.checks import require_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_whose_sum_overflows_are_finite(dtype: torch.dtype):
    require_finite("x", torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype))
    require_finite("x", torch.zeros(0, 4, dtype=dtype))


@pytest.mark.parametrize("values", [(math.inf, -math.inf), (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 3e38)])
def test_infinities_do_not_cancel(values: tuple[float, float]):
    with pytest.raises(DataError, match=r"x must be finite, but [12] of 4 values are not; .* at index \[0, 0\]"):
        require_finite("x", torch.tensor([values, (0.0, 1.0)]))
