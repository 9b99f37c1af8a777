"""The geometric median at points known from geometry."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.errors import DataError
from monosema.training import geometric_median


def median(points, weights=None, **options):
    options = {"max_iterations": 20_000, "tolerance": 1e-15, **options}
    points = torch.tensor(points, dtype=torch.float64)
    return geometric_median(points, None if weights is None else torch.tensor(weights), **options)


def test_fermat_point_of_the_3_4_5_triangle():
    """Least sum of distances = √((a² + b² + c²)/2 + 2√3·area) = √(25 + 12√3)."""
    found = median([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert 3 * found.objective[-1] == pytest.approx(math.sqrt(25 + 12 * math.sqrt(3)), rel=1e-12)
    arms = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).double() - found.median
    arms = arms / arms.norm(dim=1, keepdim=True)
    assert torch.allclose(arms @ arms.T, torch.full((3, 3), -0.5).double().fill_diagonal_(1.0), atol=1e-5)
    assert found.converged


def test_collinear_points_have_the_middle_one_and_symmetric_ones_their_centre():
    assert median([[0.0, 0.0], [1.0, 1.0], [10.0, 10.0]]).median.tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert median([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]]).median.tolist() == pytest.approx([0, 0], abs=1e-9)
    assert median([[2.0, 5.0]]).median.tolist() == [2.0, 5.0]


def test_repeated_points_pull_as_often_as_they_occur():
    points = [[0.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 9.0]]
    assert median(points).median.tolist() == pytest.approx([4.0, 0.0], abs=1e-4)
    assert median([[3.0, 1.0]] * 7).median.tolist() == [3.0, 1.0]


def test_an_estimate_that_meets_a_point_does_not_stay_there():
    """The mean, where the iteration starts, is the point 0 here; the median is 1."""
    found = geometric_median(torch.tensor([[-3.0], [0.0], [1.0], [1.0], [1.0]]))
    assert found.median.tolist() == pytest.approx([1.0], abs=1e-3)


def test_weights_count_as_repetitions():
    weighted = median([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], [1.0, 2.0, 2.0])
    repeated = median([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
    assert torch.allclose(weighted.median, repeated.median, atol=1e-9)
    assert median([[0.0], [5.0]], [0.0, 1.0]).median.tolist() == pytest.approx([5.0])


def test_outliers_move_the_mean_and_not_the_median():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    points[:10] += 1000
    found = geometric_median(points)
    assert found.median.dtype == torch.float32
    assert float(found.median.norm()) < 0.5
    assert float(points.mean(0).norm()) > 50
    assert found.objective == sorted(found.objective, reverse=True), "no iteration makes it worse"


@pytest.mark.parametrize(
    ("points", "weights", "message"),
    [
        (torch.zeros(0, 3), None, "n > 0"),
        (torch.zeros(3), None, r"expected points \[n, d\]"),
        (torch.tensor([[1.0], [math.nan]]), None, "not all finite"),
        (torch.tensor([[1.0], [math.inf]]), None, "not all finite"),
        (torch.ones(2, 1), torch.tensor([1.0, -1.0]), "weights"),
        (torch.ones(2, 1), torch.tensor([1.0, math.nan]), "weights"),
        (torch.ones(2, 1), torch.zeros(2), "weights"),
        (torch.ones(2, 1), torch.ones(3), "weights"),
    ],
)
def test_what_has_no_median_is_refused(points, weights, message):
    with pytest.raises(DataError, match=message):
        geometric_median(points, weights)


def test_lists_arrays_and_components():
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()
    whole = geometric_median(x).median
    joint = geometric_median([x[:, :2], x[:, 2:]])
    assert isinstance(joint.median, list)
    torch.testing.assert_close(torch.cat(joint.median), whole)
    apart = geometric_median([x[:, :2], x[:, 2:].numpy()], per_component=True)
    torch.testing.assert_close(apart.median[0], geometric_median(x[:, :2]).median)
    torch.testing.assert_close(apart.median[1], geometric_median(x[:, 2:]).median)
    assert not torch.allclose(torch.cat(list(apart.median)), whole, atol=1e-4)
    assert joint.termination == "converged"
    assert geometric_median(x, max_iterations=2).termination == "max_iterations"
    with pytest.raises(DataError, match="as many in each entry"):
        geometric_median([x, x[:3]])
    with pytest.raises(DataError, match="the list of points is empty"):
        geometric_median([])


def test_gradients_pass_where_asked():
    x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    options = {"max_iterations": 200, "tolerance": 1e-14}
    assert not geometric_median(x, **options).median.requires_grad
    median = geometric_median(x, differentiable=True, **options).median
    (gradient,) = torch.autograd.grad(median[0], x)
    moved = x.detach().clone()
    moved[4, 0] += 1e-5
    slope = (geometric_median(moved, **options).median[0] - median[0].detach()) / 1e-5
    assert float(gradient[4, 0]) == pytest.approx(float(slope), rel=1e-3)
    torch.testing.assert_close(gradient.sum(0), torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)
