"""Logistic regression with an L2 penalty, to the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.metrics import require_finite

_CONVERGED = 1e-4


@dataclass(frozen=True)
class LogisticFit:
    """A linear probe: yes where ``x @ weights + bias > 0``."""

    weights: Tensor
    """``[d]`` float64."""
    bias: float
    """Not penalised."""
    converged: bool
    """Whether the gradient is below 1e-4 in every scaled coordinate, in which curvatures are about 1."""

    def margins(self, x: Tensor) -> Tensor:
        """``x @ weights + bias`` ``[n]`` float64, the log odds of yes."""
        return x.double() @ self.weights + self.bias


def fit_logistic(x: Tensor, labels: Tensor, C: float = 1.0, max_iterations: int = 1000) -> LogisticFit:
    """The minimum over ``w`` and ``b`` of ``½ ‖w‖² + C Σ_i log(1 + exp(-y_i (w·x_i + b)))``, ``y = ±1``.

    That is scikit-learn's ``LogisticRegression(C=C)``. The minimum is unique; L-BFGS finds it in float64, on centred
    columns, each parameter in units of the root of its curvature's bound (``1 + C/4 Σ_i x²``), so that large columns
    do not slow it down; the penalty is still that on ``w`` itself. No random number is drawn.

    Args:
        x: ``[n, d]``.
        labels: ``[n]`` bool, of both kinds.
        C: inverse strength of the penalty. Not invariant: columns a tenth as large are penalised 100 times as much.
        max_iterations: after which it stops, converged or not.

    Raises:
        ConfigError: ``C`` is not above 0.
        ShapeError: not ``[n, d]`` and ``[n]``.
        DataError: labels of one kind, or activations that are not finite.
    """
    if not C > 0:
        raise ConfigError(f"C must be above 0, got {C}")
    if x.dim() != 2 or labels.shape != x.shape[:1]:
        raise ShapeError(f"x and labels must be [n, d] and [n], got {list(x.shape)} and {list(labels.shape)}")
    if bool(labels.all()) or not bool(labels.any()):
        raise DataError(f"a probe needs examples of both classes, got {len(labels)} of one; add texts of the other")
    require_finite("the probe's activations", x)
    x, sign = x.double().cpu(), torch.where(labels.cpu(), 1.0, -1.0).double()
    mean = x.mean(dim=0)
    centred = torch.cat([x - mean, x.new_ones(len(x), 1)], dim=1)
    penalty = torch.ones_like(centred[0])
    penalty[-1] = 0  # the bias
    scale = (1 + C / 4 * centred.square().sum(dim=0)).rsqrt()
    inner, penalty = centred * scale, penalty * scale.square()
    parameters = torch.zeros_like(scale, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iterations,
        max_eval=4 * max_iterations,
        tolerance_grad=_CONVERGED / 100,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = C * softplus(-sign * (inner @ parameters)).sum() + (penalty * parameters.square()).sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
        loss()
    assert parameters.grad is not None
    solution = parameters.detach() * scale
    weights, bias = solution[:-1], solution[-1]
    return LogisticFit(weights, float(bias - mean @ weights), bool(parameters.grad.abs().max() < _CONVERGED))
