"""Intervals by hand, against leaving out for real, and their coverage."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.metrics import GroupSums, fve, jackknife_interval, left_out_variation
from monosema.metrics.groups import N_GROUPS, sums_by_adding, sums_by_product


def test_of_a_mean_of_equal_groups_it_is_the_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    left_out = (values.sum() - values) / 3
    low, high = jackknife_interval(3.0, left_out)
    error = math.sqrt((4 + 1 + 0 + 9) / 3 / 4)  # s / sqrt(4)
    half = 3.1824463 * error  # 97.5 % of Student's t with three degrees of freedom
    assert (low, high) == (pytest.approx(3 - half, rel=1e-6), pytest.approx(3 + half, rel=1e-6))


def test_an_interval_keeps_to_the_range_of_its_figure_and_holds_the_figure():
    left_out = torch.tensor([0.9, 0.7])
    assert jackknife_interval(0.8, left_out, (0.0, 1.0)) == (0.0, 1.0)
    low, high = jackknife_interval(0.8, left_out, (-math.inf, 1.0))
    assert high == 1
    assert low == pytest.approx(0.8 - 12.7062047 * 0.1, rel=1e-5)
    assert jackknife_interval(-1e-7, torch.full((3,), -1e-7), (0.0, math.inf)) == (-1e-7, -1e-7)  # rounding of a KL


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_a_mean_of_few_normal_documents_is_covered_as_promised(n: int):
    values = torch.randn(2000, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    held = 0
    for each in values:
        low, high = jackknife_interval(float(each.mean()), (each.sum() - each) / (n - 1))
        held += low <= 0 <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_without_spread_two_groups_or_a_defined_figure_there_is_none():
    assert jackknife_interval(1.0, torch.ones(5)) == (1.0, 1.0)
    assert jackknife_interval(1.0, torch.ones(1)) is None
    assert jackknife_interval(math.nan, torch.ones(5)) is None
    assert jackknife_interval(1.0, torch.tensor([1.0, math.inf])) is None


def test_sums_of_groups_add_and_groups_without_tokens_are_no_groups():
    terms = torch.tensor([[1.0, 5.0], [1.0, 7.0], [1.0, 1.0]])
    groups = torch.tensor([0, 2, 2])
    whole = GroupSums.of(terms, groups, 4)
    assert whole.sums.tolist() == [[1, 5], [0, 0], [2, 8], [0, 0]]
    parts = GroupSums.of(terms[:2], groups[:2], 4) + GroupSums.of(terms[2:], groups[2:], 4)
    assert torch.equal(parts.sums, whole.sums)
    assert whole.left_out.tolist() == [[2, 8], [1, 5]]


@pytest.mark.parametrize("sizes", [[1] * 50, [49, 1], [0, 20, 30]])
def test_means_do_not_depend_on_the_split(sizes: list[int]):
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    terms = torch.stack([torch.ones(50), values], 1)
    groups = torch.arange(50) % 3
    total = GroupSums.empty(3, 2)
    for part, own in zip(terms.split(sizes), groups.split(sizes), strict=True):
        total = total + GroupSums.of(part, own, 3)
    n, summed = total.sums.sum(0).tolist()
    assert n == 50
    assert summed / n == pytest.approx(values.double().mean().item(), rel=1e-12)


def test_the_product_is_the_sum_by_index():
    terms = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = torch.arange(50) % 4 + 1
    torch.testing.assert_close(sums_by_product(terms, groups, 6), sums_by_adding(terms, groups, 6), rtol=1e-12, atol=0)


def test_variation_left_out_is_that_of_the_other_rows_about_their_own_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) + 3
    groups = torch.randint(0, 4, (60,), generator=generator)
    x += groups.unsqueeze(1)
    moved = x - 2.5
    terms = torch.cat([torch.ones(60, 1, dtype=torch.float64), moved.square().sum(1, keepdim=True), moved], 1)
    found = left_out_variation(GroupSums.of(terms, groups, 4))
    for index in range(4):
        rest = x[groups != index]
        assert float(found[index]) == pytest.approx(float((rest - rest.mean(0)).square().sum()), rel=1e-12)
    assert fve(x, x) == 1


@pytest.mark.parametrize("n_documents", [20, 300])  # a group each, and dealt into 256
def test_intervals_of_fve_cover_the_truth(n_documents: int):
    """x has variance 1 between documents and 1 within, the error 1/4 and 1/4: FVE is 1 - 0.5 / 2 = 0.75."""
    generator = torch.Generator().manual_seed(1)
    groups = (torch.arange(n_documents) % N_GROUPS).repeat_interleave(5)
    n_groups, covered = min(n_documents, N_GROUPS), 0

    def rows(size: float) -> torch.Tensor:
        between = torch.randn(n_documents, 1, 2, generator=generator, dtype=torch.float64)
        within = torch.randn(n_documents, 5, 2, generator=generator, dtype=torch.float64)
        return size * (between + within).flatten(0, 1)

    for _ in range(300):
        x, error, one = rows(1.0), rows(0.5), torch.ones(5 * n_documents, 1, dtype=torch.float64)
        squared = GroupSums.of(torch.cat([one, error.square().sum(1, keepdim=True)], 1), groups, n_groups)
        deviations = GroupSums.of(torch.cat([one, x.square().sum(1, keepdim=True), x], 1), groups, n_groups)
        without = 1 - squared.left_out[:, 1] / left_out_variation(deviations)
        low, high = jackknife_interval(fve(x, x + error), without)
        covered += low <= 0.75 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        centres = torch.randn(40, 1, generator=generator, dtype=torch.float64)
        values = centres + 0.1 * torch.randn(40, 25, generator=generator, dtype=torch.float64)  # alike in a document
        terms = torch.stack([torch.ones(1000), values.flatten()], 1)
        sums = GroupSums.of(terms, torch.arange(40).repeat_interleave(25), 40)
        rest = sums.left_out
        low, high = jackknife_interval(float(values.mean()), rest[:, 1] / rest[:, 0])
        covered += low <= 0 <= high
    assert 0.92 <= covered / 400 <= 0.97
