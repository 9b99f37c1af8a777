"""KL of attention patterns by hand, with the zeros of a mask and of underflow."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.errors import ShapeError
from monosema.metrics import pattern_kl


def test_two_keys_by_hand():
    p = torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    found = pattern_kl(p, q)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.0, pytest.approx(0.5 * math.log(3), rel=1e-15)]
    assert (found[1] / math.log(2)).item() == pytest.approx(0.5 * math.log2(3), rel=1e-15), "in bits"
    assert pattern_kl(p[1], torch.tensor([0.5, 0.5])).item() == pytest.approx(
        math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_of_one_pattern_twice_it_is_zero_to_the_bit(dtype: torch.dtype):
    scores = 20 * torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))
    p = scores.masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril(), -math.inf).softmax(-1).to(dtype)
    assert pattern_kl(p, p.clone()).eq(0).all()


def test_a_key_without_weight_in_the_clean_run_costs_what_the_others_lose():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert pattern_kl(p, q).item() == pytest.approx(math.log(2), rel=1e-12)


def test_a_weight_that_underflowed_counts_as_the_smallest_number():
    smallest = 2.0**-149
    found = pattern_kl(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])).item()
    assert found == pytest.approx(math.log(0.5) - 0.5 * math.log(smallest), rel=1e-12)
    tiny = pattern_kl(torch.tensor([1.0, smallest]), torch.tensor([1.0, 0.0])).item()
    assert tiny == pytest.approx(0.0, abs=1e-40), "a weight just above underflow must not become infinity"
    half = pattern_kl(torch.tensor([0.5, 0.5]).half(), torch.tensor([1.0, 0.0]).half()).item()
    assert half == pytest.approx(math.log(0.5) - 0.5 * math.log(2.0**-24), rel=1e-12)


def test_rounding_of_half_precision_leaves_a_small_divergence_and_no_negative_one():
    scores = torch.randn(400, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p, q = scores.softmax(-1), (scores + 0.02 * scores.flip(0)).softmax(-1)
    exact, rounded = pattern_kl(p, q), pattern_kl(p.bfloat16(), q.bfloat16())
    assert bool((rounded >= 0).all())
    assert rounded.mean().item() == pytest.approx(exact.mean().item(), abs=2e-5)


def test_patterns_of_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"one shape \[..., T\], got \[2, 3\] and \[2, 4\]"):
        pattern_kl(torch.ones(2, 3), torch.ones(2, 4))
