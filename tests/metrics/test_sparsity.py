"""Sparsity metrics, dense and sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

from monosema.core.errors import DataError, ShapeError
from monosema.metrics import (
    RELIABLE_DEAD_TOKENS,
    SparsitySums,
    dead_fraction,
    firing_density,
    l0,
    l0_quantile,
    l0_std,
    l1,
    log10_density,
    log10_density_histogram,
    n_alive,
    share_above,
)


@dataclass(frozen=True)
class Rows:
    """Sparse latents of the least kind."""

    crow: Tensor
    indices: Tensor
    values: Tensor
    d_sae: int

    @property
    def n_tokens(self) -> int:
        return len(self.crow) - 1


def sparse(dense: Tensor, *, stored: Tensor | None = None, index_dtype: torch.dtype = torch.int64) -> Rows:
    """``dense`` in CSR form; entries where ``stored`` is True are kept even where they are zero."""
    mask = dense != 0 if stored is None else stored
    crow = torch.zeros(len(dense) + 1, dtype=index_dtype)
    crow[1:] = mask.sum(1).cumsum(0)
    return Rows(crow, mask.nonzero()[:, 1].to(index_dtype), dense[mask], dense.shape[1])


DENSE = torch.tensor([[1.0, 0.0, -2.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.5, 1.0, 4.0, 0.0]])


@pytest.mark.parametrize("latents", [DENSE, sparse(DENSE), sparse(DENSE, index_dtype=torch.int32)], ids=str)
def test_hand_computed_values(latents: Tensor | Rows):
    assert l0(latents) == 6 / 4
    assert l0_std(latents) == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 4 - 1.5**2), rel=1e-15)
    assert l1(latents) == (3 + 3 + 0 + 5.5) / 4
    assert firing_density(latents).tolist() == [0.5, 0.25, 0.75, 0.0]
    assert dead_fraction(latents) == 0.25
    assert n_alive(latents) == 3


def test_quantiles_are_of_tokens():
    # 2, 1, 0 and 3 latents fire: of 4 tokens one has at most 0, two have at most 1, three at most 2
    at = {0.0: 0, 0.25: 0, 0.26: 1, 0.5: 1, 0.75: 2, 0.76: 3, 1.0: 3}
    assert {q: l0_quantile(DENSE, q) for q in at} == at
    assert l0_quantile(DENSE[:2], 0.0) == 1, "the fewest of any token, not of none"
    assert l0_quantile(DENSE[:0], 0.0) == 0


def test_densities_are_counted_by_what_they_exceed():
    density = torch.tensor([0.0, 0.01, 0.011, 0.1, 0.5, 1.0], dtype=torch.float64)
    assert (share_above(density, 0.01), share_above(density, 0.1)) == (4 / 6, 2 / 6)
    # bins are half a decade: -10 is in the first, -2 and -1.96 in the 17th, -1 in the 19th, -.3 and 0 in the last
    assert log10_density_histogram(density) == [1] + 15 * [0] + [2, 0, 1, 2]


def test_a_stored_zero_is_no_firing():
    stored = sparse(DENSE, stored=torch.ones_like(DENSE, dtype=torch.bool))
    ours, expected = SparsitySums.of(stored), SparsitySums.of(DENSE)
    assert torch.equal(ours.firings, expected.firings)
    assert (ours.l0, ours.l0_std, ours.l1) == (expected.l0, expected.l0_std, expected.l1)


@pytest.mark.parametrize("sizes", [[1] * 300, [299, 1], [1, 299], [100, 0, 200]])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_any_batch_split_gives_the_same_value(sizes: list[int], form: str):
    dense = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).clamp(min=1) - 1
    whole = SparsitySums.of(dense)
    parts = [SparsitySums.of(part if form == "dense" else sparse(part)) for part in dense.split(sizes)]
    total = reduce(add, parts, SparsitySums.empty(40))
    assert total.n_tokens == 300
    assert torch.equal(total.firings, whole.firings)
    assert total.l0_std == whole.l0_std
    assert total.l1 == pytest.approx(whole.l1, rel=1e-12)


def test_standard_deviation_is_that_of_the_population():
    dense = (torch.rand(1000, 30, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    expected = (dense != 0).sum(1).double().std(correction=0).item()
    assert l0_std(sparse(dense)) == pytest.approx(expected, rel=1e-12)


def test_squared_counts_do_not_overflow():
    width = 70_000  # its square needs more than 32 bits
    rows = Rows(
        torch.tensor([0, width], dtype=torch.int32), torch.arange(width, dtype=torch.int32), torch.ones(width), width
    )
    assert int(SparsitySums.of(rows).l0_histogram[width]) == 1
    assert l0_std(rows) == 0.0


def test_constant_counts_have_no_deviation():
    assert l0_std(torch.ones(7, 32)) == 0.0


def test_few_tokens_are_not_reliable():
    latents = torch.ones(RELIABLE_DEAD_TOKENS - 1, 1)
    sums = SparsitySums.of(latents)
    assert not sums.dead_fraction_reliable
    assert (sums + SparsitySums.of(latents[:1])).dead_fraction_reliable


def test_leading_axes_are_tokens():
    assert l0(DENSE.reshape(2, 2, 4)) == l0(DENSE)


def test_log10_density():
    assert log10_density(torch.tensor([1.0, 0.01, 0.0])).tolist() == pytest.approx([0.0, -2.0, -10.0], abs=1e-7)


def test_l1_of_low_precision_is_summed_in_float64():
    latents = torch.full((100_000, 1), 1.0, dtype=torch.float16)
    assert SparsitySums.of(sparse(latents)).absolute == 100_000


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_values_that_are_not_finite_are_refused(form: str):
    broken = DENSE.clone()
    broken[1, 2] = math.nan
    with pytest.raises(DataError, match="latents must be finite"):
        SparsitySums.of(broken if form == "dense" else sparse(broken))


def test_counts_of_another_width_do_not_add():
    with pytest.raises(ShapeError, match="4 latents to those of 3"):
        SparsitySums.empty(4) + SparsitySums.empty(3)


def test_no_tokens_give_nan():
    assert math.isnan(SparsitySums.empty(4).l0)
    assert math.isnan(SparsitySums.empty(4).l0_std)
