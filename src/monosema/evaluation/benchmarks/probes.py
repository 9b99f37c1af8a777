"""Linear probes: logistic regression in float64, solved to its optimum.

Shape letters: N rows, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.metrics import require_finite

_MOST_ITERATIONS = 1000
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Probe:
    """``p(y = 1 | x) = σ(⟨w, x⟩ + b)``."""

    weight_D: Tensor
    """[D] float64: w."""
    bias: float
    """b."""

    def logits(self, x_ND: Tensor) -> Tensor:
        """``⟨w, x⟩ + b`` [N], float64."""
        return x_ND.double() @ self.weight_D + self.bias

    def predict(self, x_ND: Tensor) -> Tensor:
        """[N] bool: whether the logit is above zero."""
        return self.logits(x_ND) > 0

    def to(self, device: torch.device) -> Probe:
        """The same probe on another device."""
        return Probe(self.weight_D.to(device), self.bias)


def fit_probe(x_ND: Tensor, y_N: Tensor, *, weights_N: Tensor | None = None, c: float = 1.0) -> Probe:
    """The w and b that minimise ``‖w‖² / (2 c) + Σ_i s_i log(1 + exp(-t_i (⟨w, x_i⟩ + b)))``, ``t = ±1`` for the label.

    The objective is convex and solved by L-BFGS in float64, so that the probe depends on no seed or learning rate. It
    is that of scikit-learn's ``LogisticRegression(C=c)``, b not penalised. Columns are standardised inside the solver
    only as a change of variables: the minimum is that of the rows as they are.

    Args:
        x_ND: rows.
        y_N: bool labels, both of them present.
        weights_N: ``s``, not negative; ``balanced_weights(y)`` gives both labels the same total. One by default.
        c: inverse strength of the penalty.

    Raises:
        ConfigError: ``c`` is not positive.
        ShapeError: rows are not [N, D] or the labels not [N] bool.
        DataError: no rows, one label only (with weight), or a value that is not finite.
    """
    if not c > 0:
        raise ConfigError(f"c must be positive, got {c}")
    if x_ND.dim() != 2 or y_N.shape != x_ND.shape[:1] or y_N.dtype != torch.bool:
        raise ShapeError(
            f"a probe needs rows [N, D] and bool labels [N], got {list(x_ND.shape)} and {list(y_N.shape)} {y_N.dtype}"
        )
    x, y = x_ND.detach().double(), y_N.to(x_ND.device)
    require_finite("the rows of a probe", x)
    s = torch.ones(len(x), dtype=x.dtype, device=x.device) if weights_N is None else weights_N.to(x)
    if not bool((s[y] > 0).any() and (s[~y] > 0).any()):
        raise DataError(
            f"a probe needs rows of both labels, got {int(y.sum())} of one and {int((~y).sum())} of the other; give "
            "more rows, or leave the class out"
        )
    # In terms of v = w · scale and of centred rows the problem is well conditioned whatever the units of the site.
    mean = x.mean(0)
    scale = (x - mean).square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    signed = torch.where(y, 1.0, -1.0).to(x)
    rows = (x - mean) / scale
    total = s.sum()
    v = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [v],
        max_iter=_MOST_ITERATIONS,
        max_eval=2 * _MOST_ITERATIONS,
        history_size=20,
        tolerance_grad=_TOLERANCE * 1e-2,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        penalty = (v[:-1] / scale).square().sum() / (2 * c)
        value = (penalty + (s * softplus(-signed * (rows @ v[:-1] + v[-1]))).sum()) / total
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
        loss()
    assert v.grad is not None
    if not bool(torch.isfinite(v).all()) or float(v.grad.abs().max()) > _TOLERANCE * 1e2:
        raise DataError("the logistic regression of a probe did not converge; lower c, or scale the rows down")
    weight = v.detach()[:-1] / scale
    return Probe(weight, float(v.detach()[-1] - weight @ mean))


def balanced_weights(groups_N: Tensor) -> Tensor:
    """[N] float64 weights that give each group (an integer or bool each) the same total; they sum to N."""
    _, index, counts = groups_N.long().unique(return_inverse=True, return_counts=True)
    return len(groups_N) / (len(counts) * counts.double()[index])


def f1_score(predicted_N: Tensor, y_N: Tensor) -> float:
    """``2 TP / (2 TP + FP + FN)`` of bool predictions; 0 where nothing is true or predicted."""
    hits = int((predicted_N & y_N).sum())
    either = int(predicted_N.sum()) + int(y_N.sum())
    return 2 * hits / either if either else 0.0
