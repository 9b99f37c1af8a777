"""Linear probes: logistic regression in float64, solved to its optimum.

Shape letters: N rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.metrics import require_finite

_CONVERGED = 1e-6


@dataclass(frozen=True)
class Probe:
    """``p(yes | x) = σ(⟨w, x⟩ + b)``."""

    weight_D: Tensor
    """[D] float64: w."""
    bias: float
    """b."""
    converged: bool = True
    """Whether the mean loss's gradient is below 1e-6 in every scaled coordinate, in which curvatures are about 1."""

    def logits(self, x_ND: Tensor) -> Tensor:
        """``⟨w, x⟩ + b`` [N], float64."""
        return x_ND.double() @ self.weight_D + self.bias

    def predict(self, x_ND: Tensor) -> Tensor:
        """[N] bool: whether the logit is above zero."""
        return self.logits(x_ND) > 0


def fit_probe(
    x_ND: Tensor, labels_N: Tensor, *, weights_N: Tensor | None = None, C: float = 1.0, max_iterations: int = 1000
) -> Probe:
    """The w and b that minimise ``½ ‖w‖² + C Σ_i s_i log(1 + exp(-t_i (⟨w, x_i⟩ + b)))``, ``t = ±1`` for the label.

    That is scikit-learn's ``LogisticRegression(C=C)``. The minimum is unique; L-BFGS finds it in float64 on the CPU, on
    centred columns, each parameter in units of the root of its curvature's bound, so that neither the size of columns
    nor C slows it down or decides how near it comes. No random number is drawn.

    Args:
        x_ND: rows.
        labels_N: bool, of both kinds.
        weights_N: ``s``, not negative; ``balanced_weights(labels)`` gives both labels the same total. One by default.
        C: inverse strength of the penalty. Not invariant: columns a tenth as large are penalised 100 times as much.
        max_iterations: after which it stops, converged or not.

    Raises:
        ConfigError: ``C`` is not above 0.
        ShapeError: rows are not [N, D] or the labels not [N] bool.
        DataError: rows of one label only (with weight), or a value that is not finite.
    """
    if not C > 0:
        raise ConfigError(f"C must be above 0, got {C}")
    if x_ND.dim() != 2 or labels_N.shape != x_ND.shape[:1] or labels_N.dtype != torch.bool:
        raise ShapeError(
            f"a probe needs rows [N, D] and bool labels [N], got {list(x_ND.shape)} and {list(labels_N.shape)} "
            f"{labels_N.dtype}"
        )
    require_finite("the probe's activations", x_ND)
    x, labels = x_ND.detach().double().cpu(), labels_N.cpu()
    s = torch.ones(len(x), dtype=torch.float64) if weights_N is None else weights_N.double().cpu()
    if not bool((s[labels] > 0).any() and (s[~labels] > 0).any()):
        raise DataError(
            f"a probe needs examples of both classes, got {int(labels.sum())} of one and {int((~labels).sum())} of "
            "the other; give more of the other, or leave the class out"
        )
    total, mean = float(s.sum()), x.mean(dim=0)
    centred = torch.cat([x - mean, x.new_ones(len(x), 1)], dim=1)
    s = s / s.sum()
    penalty = torch.full_like(centred[0], 1 / (C * total))
    penalty[-1] = 0  # the bias
    scale = (penalty + s @ centred.square() / 4).rsqrt()
    inner, penalty = centred * scale, penalty * scale.square()
    sign = torch.where(labels, 1.0, -1.0).double()
    parameters = torch.zeros_like(scale, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iterations,
        max_eval=4 * max_iterations,
        tolerance_grad=_CONVERGED / 1000,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = s @ softplus(-sign * (inner @ parameters)) + (penalty * parameters.square()).sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
        loss()
    assert parameters.grad is not None
    solution = parameters.detach() * scale
    weight, bias = solution[:-1], solution[-1]
    return Probe(weight, float(bias - mean @ weight), bool(parameters.grad.abs().max() < _CONVERGED))


def unconverged(probes: dict[str, Probe]) -> list[str]:
    """A note on those of the probes, by what they tell, that did not reach their minimum."""
    missed = [name for name, probe in probes.items() if not probe.converged]
    return [f"probes of {', '.join(missed)} did not converge; their accuracy may be too low"] if missed else []


def balanced_weights(groups_N: Tensor) -> Tensor:
    """[N] float64 weights that give each group (an integer or bool each) the same total; they sum to N."""
    _, index, counts = groups_N.long().unique(return_inverse=True, return_counts=True)
    return len(groups_N) / (len(counts) * counts.double()[index])


def f1_score(predicted_N: Tensor, labels_N: Tensor) -> float:
    """``2 TP / (2 TP + FP + FN)`` of bool predictions; 0 where nothing is true or predicted."""
    hits = int((predicted_N & labels_N).sum())
    either = int(predicted_N.sum()) + int(labels_N.sum())
    return 2 * hits / either if either else 0.0
