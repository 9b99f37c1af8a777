"""Histograms with widths that grow: the final one is the one a single pass with the final width gives."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosema.features.statistics import LatentStatistics, bin_exponent


@pytest.mark.parametrize(
    ("maximum", "n_bins", "width"),
    [(4.0, 5, 1.0), (5.0, 5, 2.0), (4.999, 5, 1.0), (0.5, 5, 0.125), (1.0, 1, 2.0), (30.0, 30, 2.0), (29.9, 30, 1.0)],
)
def test_bin_width_is_the_smallest_power_of_two_that_holds_the_maximum(maximum: float, n_bins: int, width: float):
    assert 2.0 ** int(bin_exponent(torch.tensor([maximum]), n_bins)) == width


@given(st.floats(2.0**-100, 2.0**100, width=32), st.integers(1, 100))
def test_bin_width_for_any_maximum(maximum: float, n_bins: int):
    exponent = int(bin_exponent(torch.tensor([maximum]), n_bins))
    assert maximum < n_bins * 2.0**exponent
    assert maximum >= n_bins * 2.0 ** (exponent - 1)


def test_bins_merge_in_pairs_when_a_larger_activation_comes():
    statistics = LatentStatistics(2, 4)
    # widths for latent 0: 3 < 4 * 1, 5 < 4 * 2, 31 < 4 * 8; latent 1 stays at 1
    for values, histogram in (
        ([1.0, 2.0, 3.0], [0, 1, 1, 1]),
        ([5.0], [1, 2, 1, 0]),
        ([31.0], [4, 0, 0, 1]),
    ):
        latents = torch.tensor([0] * len(values) + [1])
        both = torch.tensor([*values, 2.5])
        statistics.update(latents, both, torch.tensor([max(values), 2.5]), n_tokens=5)
        assert statistics.histogram[0].tolist() == histogram
    assert statistics.histogram[1].tolist() == [0, 0, 3, 0]
    assert statistics.numbers().bin_width.tolist() == [8, 1]
    assert statistics.numbers().n_tokens == 15


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0.0009765625, 1e5, width=32)), min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(1, 9),
)
@settings(deadline=None, max_examples=60)
def test_any_cut_into_batches_gives_the_same_numbers(pairs: list[tuple[int, float]], cuts: list[int], n_bins: int):
    statistics = LatentStatistics(4, n_bins)
    edges = [0, *sorted(min(cut, len(pairs)) for cut in cuts), len(pairs)]
    for start, stop in pairwise(edges):
        latents = torch.tensor([latent for latent, _ in pairs[start:stop]], dtype=torch.int64)
        values = torch.tensor([value for _, value in pairs[start:stop]], dtype=torch.float32)
        largest = torch.zeros(4).scatter_reduce_(0, latents, values, "amax")
        statistics.update(latents, values, largest, stop - start)
    numbers = statistics.numbers()
    for latent in range(4):
        values_here = [value for each, value in pairs if each == latent]
        assert int(numbers.count[latent]) == len(values_here)
        assert int(numbers.histogram[latent].sum()) == len(values_here)
        if not values_here:
            assert float(numbers.bin_width[latent]) == float(numbers.mean[latent]) == 0
            continue
        width = float(numbers.bin_width[latent])
        assert max(values_here) < n_bins * width
        assert max(values_here) >= n_bins * width / 2
        expected = [0] * n_bins
        for value in values_here:
            expected[int(value // width)] += 1
        assert numbers.histogram[latent].tolist() == expected
        assert float(numbers.mean[latent]) == pytest.approx(math.fsum(values_here) / len(values_here), rel=1e-12)
    assert numbers.n_tokens == len(pairs)
