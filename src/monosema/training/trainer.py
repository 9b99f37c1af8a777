"""``Trainer``: one coder, one optimiser, one step at a time. The loop's inner step, and usable by itself.

Shape letters: B tokens, I input width, O output width, F latents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monosema.coders import BatchTopK, SparseCoder
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.training.allowed import resolve_sparsity
from monosema.training.config import TrainingConfig
from monosema.training.controller import TargetL0Controller
from monosema.training.initial import geometric_median
from monosema.training.objectives import Loss, loss
from monosema.training.optimizer import CoderOptimizer
from monosema.training.revive import auxk_loss, dead_after
from monosema.training.schedules import automatic_lr, lr_factor, warmup_factor
from monosema.training.statistics import FiringStatistics

INITIAL_ROWS = 16_384
"""Rows of the first chunk that data-dependent initial values are computed from."""


@dataclass(frozen=True)
class StepRecord:
    """What the newest step left for the log; nothing is computed from it until asked."""

    target_BO: Tensor
    loss: Loss
    n_tokens: int
    nnz: int
    lr: float


class NonFiniteStepError(DataError):
    """A step whose loss or gradients were not finite; the weights are those before it."""


class Trainer:
    """Trains ``coder`` in place on rows ``[B, d_in]`` (or ``[B, d_in + d_out]`` for a transcoder).

    Args:
        coder: the coder; its weights are those of *scaled* activations while training (``input_scaling``) and are made
            ones of raw activations by ``inference_coder``.
        config: the run. ``config.tokens`` and ``batch_size`` give the number of steps the schedules span.
        batch_size: rows in a batch.

    ``step(batch)`` updates; ``metrics()`` reads the newest step's figures and changes nothing.
    """

    def __init__(self, coder: SparseCoder, config: TrainingConfig, batch_size: int):
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.coder, self.config, self.batch_size = coder, config, batch_size
        self.n_steps = max(1, config.tokens // batch_size)
        self.sparsity = resolve_sparsity(coder.config.activation, config.sparsity)
        lr = config.lr
        self.lr = automatic_lr(coder.d_sae, batch_size, self.n_steps) if lr == "auto" else float(lr)
        self.dead_after = dead_after(config.revive, config.tokens)
        self.step_number = 0
        self.input_scale = self.output_scale = 1.0
        self.statistics = FiringStatistics(coder.d_sae).to(coder.device)
        self.controller: TargetL0Controller | None = None
        if self.sparsity is not None and self.sparsity.target_l0 is not None:
            self.controller = TargetL0Controller(self.sparsity.coefficient, self.sparsity.target_l0, self.n_steps)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=coder.device)
        self._optimizer = CoderOptimizer(coder, config)
        self._workspace: Tensor | None = None
        self._record: StepRecord | None = None
        coder.requires_grad_(True)
        if config.decoder == "unit_norm":
            coder.fold_W_dec_norm()

    @property
    def tokens_seen(self) -> int:
        return self.step_number * self.batch_size

    @property
    def coefficient(self) -> float:
        """The sparsity coefficient of the coming step, warm-up included."""
        if self.sparsity is None:
            return 0.0
        peak = self.sparsity.coefficient if self.controller is None else self.controller.coefficient
        return peak * warmup_factor(self.step_number, self.n_steps, self.sparsity.warmup_fraction)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Before the first step, set input scaling and ``b_dec`` in place from ``rows [n, d]`` of the first chunk."""
        x, y = self._split(rows.double())
        if self.config.input_scaling == "expected_norm":
            self.input_scale = _scale_to_sqrt_d(x)
            self.output_scale = self.input_scale if x is y else _scale_to_sqrt_d(y)
            if self.coder.config.b_dec == "input_and_output":
                self.output_scale = self.input_scale
        if self.coder.is_trained:  # its weights are those of raw activations, its bias is already where it belongs
            self.coder.fold_input_scaling(1 / self.input_scale, 1 / self.output_scale)
            if self.config.decoder == "unit_norm":
                self.coder.fold_W_dec_norm()
        elif self.coder.b_dec is not None and self.config.b_dec_init != "zeros":
            y = y * self.output_scale
            center = y.mean(0) if self.config.b_dec_init == "mean" else geometric_median(y).median
            self.coder.b_dec.copy_(center)

    @torch.no_grad()
    def step(self, batch: Tensor) -> None:
        """One update from ``batch [B, d]``. A step that is not finite leaves every weight as it was."""
        coder, config = self.coder, self.config
        unit_norm = config.decoder == "unit_norm"
        if self.step_number >= self.n_steps:
            raise ConfigError(f"the run's {self.n_steps} steps are done; raise tokens= to go on")
        batch = batch.to(device=coder.device, dtype=coder.dtype)
        x, y = self._split(batch)
        x = x * self.input_scale
        y = x if self._is_autoencoder else y * self.output_scale
        encoding = coder.encode_select(x, self._buffer(len(batch)))
        terms = loss(coder, encoding, y, self.sparsity, self.coefficient, unit_norm=unit_norm)
        extra = None
        if config.revive is not None:
            dead = self.statistics.tokens_since_fired >= self.dead_after
            aux = auxk_loss(coder, encoding, terms.error_BO, dead, config.revive)
            if aux is not None:
                terms = replace(terms, terms={**terms.terms, "auxk": aux.value})
                extra = aux.entries
        gradients = coder.backward(
            encoding,
            terms.g_out_BO,
            g_latents=terms.g_latents,
            g_near=terms.g_near,
            near_step=terms.near_step,
            g_gate=terms.g_gate,
            extra=extra,
            unit_norm=unit_norm,
        )
        if terms.g_W_dec is not None:
            gradients["W_dec"] += terms.g_W_dec
        lr = self.lr * lr_factor(self.step_number, self.n_steps, config.warmup_fraction, config.decay_fraction)
        ok = self._optimizer.step_(gradients, terms.total, lr)
        coder.activation.update_(encoding.selection, ok)
        self.statistics.update_(encoding.latents.counts(), len(batch), ok)
        bad = ~ok & (self.first_bad_step < 0)
        self.first_bad_step.copy_(torch.where(bad, self.step_number, self.first_bad_step))
        nnz = encoding.latents.nnz
        if self.controller is not None:
            self.controller.update_(nnz / len(batch))
        self._record = StepRecord(y, terms, len(batch), nnz, lr)
        self.step_number += 1

    def check_finite(self) -> None:
        """Raise ``NonFiniteStepError`` naming the first bad step, if there was one."""
        bad = int(self.first_bad_step)
        if bad >= 0:
            raise NonFiniteStepError(
                f"step {bad} was not finite (loss or gradients); no weight was updated by it. Look for broken "
                f"activations near row {bad * self.batch_size}, or lower lr (now {self.lr:g})"
            )

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Figures of the newest step; see ``docs/metrics.md`` for each name. Changes no state."""
        record = self._record
        if record is None:
            return {}
        y, e = record.target_BO, record.loss.error_BO
        variance = (y - y.mean(0)).square().sum().double()
        since = self.statistics.tokens_since_fired
        density = self.statistics.density()
        values = {
            "tokens": float(self.tokens_seen),
            "loss": float(record.loss.total),
            **{f"loss/{name}": float(value) for name, value in record.loss.terms.items()},
            "fve": 1 - float(e.square().sum().double() / variance) if float(variance) > 0 else math.nan,
            "l0": record.nnz / record.n_tokens,
            "dead_fraction": float((since >= self.dead_after).double().mean()),
            "never_fired_fraction": float((~self.statistics.fired).double().mean()),
            "below_1e-5_fraction": float((density < 1e-5).double().mean()),
            "mean_log10_density": float(self.statistics.log10_density().double().mean()),
            "lr": record.lr,
        }
        if self.sparsity is not None:
            values["sparsity_coefficient"] = self.coefficient
        threshold = getattr(self.coder.activation, "threshold", None)
        if isinstance(threshold, Tensor):
            values["threshold_mean"] = float(threshold.mean())
        elif threshold is not None:
            values["threshold"] = float(threshold)
        return values

    @torch.no_grad()
    def inference_coder(self) -> SparseCoder:
        """A copy of the coder for raw activations, input scaling and decoder norms folded in: what is saved."""
        coder = copy.deepcopy(self.coder)
        coder.requires_grad_(False)
        coder.is_trained = True
        if self.input_scale != 1.0 or self.output_scale != 1.0:
            coder.fold_input_scaling(self.input_scale, self.output_scale)
        fixed_k = self.coder.config.activation.__class__.__name__ == "TopK"
        if self.config.decoder == "unit_norm" or not (fixed_k or isinstance(coder.config.activation, BatchTopK)):
            coder.fold_W_dec_norm()
        return coder

    # -- state

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on: tensors, and plain values."""
        tensors = {f"coder.{name}": value for name, value in self.coder.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in self._optimizer.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics.state_dict().items()}
        tensors["first_bad_step"] = self.first_bad_step
        plain = {
            "step": self.step_number,
            "input_scale": self.input_scale,
            "output_scale": self.output_scale,
            "controller": None if self.controller is None else self.controller.state_dict(),
        }
        return tensors, plain

    def load_state_dict(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.coder.load_state_dict(part("coder."))
        self._optimizer.load_state_dict(part("adam."))
        self.statistics.load_state_dict(part("statistics."))
        self.first_bad_step.copy_(tensors["first_bad_step"])
        self.step_number = int(plain["step"])
        self.input_scale, self.output_scale = float(plain["input_scale"]), float(plain["output_scale"])
        if self.controller is not None:
            self.controller.load_state_dict(plain["controller"])

    # -- parts

    @property
    def _is_autoencoder(self) -> bool:
        return self.coder.hook_name == self.coder.hook_name_out and self.coder.d_in == self.coder.d_out

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        d_in, d_out = self.coder.d_in, self.coder.d_out
        if self._is_autoencoder:
            if rows.ndim != 2 or rows.shape[1] != d_in:
                raise ShapeError(f"expected rows [B, {d_in}], got {list(rows.shape)}")
            return rows, rows
        if rows.ndim != 2 or rows.shape[1] != d_in + d_out:
            raise ShapeError(f"expected rows [B, {d_in} + {d_out}] (input, then target), got {list(rows.shape)}")
        return rows[:, :d_in], rows[:, d_in:]

    def _buffer(self, n_tokens: int) -> Tensor:
        if self._workspace is None or len(self._workspace) < n_tokens:
            self._workspace = torch.empty(n_tokens, self.coder.d_sae, dtype=self.coder.dtype, device=self.coder.device)
        return self._workspace


def _scale_to_sqrt_d(rows: Tensor) -> float:
    mean_norm = float(rows.norm(dim=1).mean())
    if not (mean_norm > 0 and math.isfinite(mean_norm)):
        raise DataError(f"the mean norm of the first activations is {mean_norm}; they are all zero or not finite")
    return math.sqrt(rows.shape[1]) / mean_norm
