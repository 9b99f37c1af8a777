"""What is logged of a step; ``docs/metrics.md`` has each name. Nothing here changes state.

Shape letters: B tokens, I input width, O output width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import TrainableDictionary
from monosema.training.config import TrainingConfig


@dataclass(frozen=True)
class StepRecord:
    """What the newest step left for the log; nothing is computed from it until asked."""

    input_BI: Tensor
    """The scaled input."""
    target_BO: Tensor
    """The scaled target; the input itself for an SAE."""
    error_BO: Tensor
    """Target less prediction."""
    terms: dict[str, Tensor]
    """0-d loss terms by name."""
    penalty: Tensor | None
    """0-d: the sparsity term without its coefficient."""
    n_tokens: int
    """B."""
    n_active: Tensor
    """0-d: active entries."""
    lr: float
    """Learning rate."""
    coefficient: float
    """Sparsity coefficient."""


def step_figures(record: StepRecord, write_widths: tuple[int, ...]) -> dict[str, float]:
    """Losses, reconstruction, L0, learning rate and sparsity of one step; ``write_widths`` of the sites written."""
    values = {
        "loss": float(torch.stack(list(record.terms.values())).sum()),
        **{f"loss/{name}": float(value) for name, value in record.terms.items()},
        **reconstruction_figures(record.input_BI, record.target_BO, record.error_BO, write_widths),
        "l0": int(record.n_active) / record.n_tokens,
        "lr": record.lr,
    }
    if record.penalty is not None:
        values |= {"penalty": float(record.penalty), "sparsity_coefficient": record.coefficient}
    return values


def reconstruction_figures(x_BI: Tensor, y_BO: Tensor, e_BO: Tensor, write_widths: tuple[int, ...]) -> dict[str, float]:
    """How well y is predicted, with ``e = y - ŷ``: fractions of variance explained (NaN without variance), norms."""
    norm, norm_hat = y_BO.norm(dim=1), (y_BO - e_BO).norm(dim=1)
    per_token = 1 - e_BO.square().sum(1) / (y_BO - y_BO.mean(0)).square().sum(1).clamp(min=1e-12)
    figures = {
        "fve": _fve(y_BO, e_BO),
        "fve_per_token_mean": float(per_token.mean()),
        "fve_per_token_std": float(per_token.std()) if len(y_BO) > 1 else 0.0,
        "norm_input": float(x_BI.norm(dim=1).mean()),
        "norm": float(norm.mean()),
        "norm_reconstruction": float(norm_hat.mean()),
        "norm_ratio": float((norm_hat / norm.clamp(min=1e-12)).mean()),
    }
    if len(write_widths) > 1:
        sites = zip(y_BO.split(write_widths, 1), e_BO.split(write_widths, 1), strict=True)
        figures |= {f"fve/site_{number}": _fve(y, e) for number, (y, e) in enumerate(sites)}
    return figures


def term_coefficients(config: TrainingConfig) -> dict[str, float]:
    """The constant weights of the terms beside reconstruction and sparsity."""
    return {f"{each.name}_coefficient": each.coefficient for each in config.further_terms}


def threshold_figures(coder: TrainableDictionary) -> dict[str, Any]:
    """Running or mean thresholds, for each layer of a stack."""
    values = {}
    for part in coder.parts:
        suffix = f"/{part.prefix.strip('.')}" if part.prefix else ""
        threshold = getattr(part.coder.activation, "threshold", None)
        if isinstance(threshold, Tensor):
            values[f"threshold_mean{suffix}"] = float(threshold.mean())
        elif threshold is not None:
            values[f"threshold{suffix}"] = float(threshold)
    return values


def _fve(y_BO: Tensor, e_BO: Tensor) -> float:
    variance = (y_BO - y_BO.mean(0)).square().sum().double()
    return 1 - float(e_BO.square().sum().double() / variance) if float(variance) > 0 else math.nan
