"""``Trainer``: one dictionary, one optimiser, one step at a time. The loop's inner step, and usable by itself.

Shape letters: B tokens, I input width, O output width, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary, Encoding, TrainableDictionary
from monosema.coders.activations.family import FixedCount
from monosema.coders.trainable import require_sparse_coders
from monosema.core.devices import parse_dtype
from monosema.core.errors import ConfigError, DataError
from monosema.core.logs import get_logger
from monosema.core.peers import explains_options
from monosema.core.seeds import random_stream
from monosema.core.words import counted
from monosema.kernels.precision import Shadows
from monosema.training.allowed import resolve_sparsity
from monosema.training.calibration import CALIBRATION_ROWS, calibrate_
from monosema.training.config import TrainingConfig
from monosema.training.controller import SparsityControl
from monosema.training.figures import StepRecord, step_figures, term_coefficients, threshold_figures
from monosema.training.finetune import FineTuner
from monosema.training.gradients import GradientPass, StepState
from monosema.training.initial import geometric_median
from monosema.training.memory import StepMemory, step_memory
from monosema.training.objectives import Objective
from monosema.training.optimizer import CoderOptimizer, OptimizerFactory, project_, renormalise_
from monosema.training.resample import Candidates, replace_latents_, squared_errors
from monosema.training.resample_presets import ResampleRule
from monosema.training.resolve import check_training, has_unit_norm, resolve_token_scaling
from monosema.training.revive import Dead, dead_after, is_resampling_step, resample_every, rewarm_steps
from monosema.training.scaling import RowScaling
from monosema.training.schedules import automatic_lr, lr_factor, rewarm_factor
from monosema.training.snapshot import Folding
from monosema.training.start import START, START_ROWS, bring_decoder_to_size_, make_unit_norm_, start_with_
from monosema.training.statistics import FiringStatistics
from monosema.training.terms import Resample

logger = get_logger("monosema.training")

INITIAL_ROWS = 16_384
"""Rows of the first chunk that data-dependent initial values are computed from."""

CandidateRows = Callable[[int], Tensor]
"""Gives so many rows of the current chunk, for resampling by error and for calibrating a threshold."""
ModelLosses = Callable[[Dictionary, int], tuple[Tensor, Tensor]]
"""Given a coder of raw activations and a number of contexts, their rows and the model's loss increase at each."""


@dataclass(frozen=True)
class Rows:
    """A batch as a step wants it."""

    x: Tensor
    """[B, d_in] scaled input."""
    y: Tensor
    """[B, d_out] scaled target."""
    pre_BF: Tensor | None = None
    """[B, d_sae] pre-activations, where they were made together with other coders'."""


class NonFiniteStepError(DataError):
    """A step whose loss or gradients were not finite; the weights are those before it."""


@explains_options
class Trainer:
    """Trains ``coder`` in place on rows ``[B, d_in]`` (or ``[B, d_in + d_out]`` where it writes other sites).

    Args:
        coder: the dictionary; its weights are those of *scaled* activations while training (``input_scaling``) and are
            made ones of raw activations by ``inference_coder``. Scaling by each token's size is made its own.
        config: the run. ``config.tokens`` and ``batch_size`` give the number of steps the schedules span.
        batch_size: rows in a batch.
        directions: ``[n, d_out]`` directions of the SAE of ``config.sparse_connection``.
        optimizer: makes the optimiser of the parameters in place of Adam, ``torch.optim.NAdam`` for example; the run's
            learning rate is set before each step. Slower, as the host waits for each step's finiteness. A fine-tuning
            phase of some weights only keeps Adam.

    ``step(batch)`` updates; ``metrics()`` reads the newest step's figures and changes nothing. ``candidate_rows`` and
    ``model_losses`` may be set for resampling; without the first the newest batch is used. ``calibration_rows`` may be
    set for ``config.calibrate_threshold``; without it the running threshold is kept.
    """

    def __init__(
        self,
        coder: Dictionary,
        config: TrainingConfig,
        batch_size: int,
        directions: Tensor | None = None,
        optimizer: OptimizerFactory | None = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        coder = require_sparse_coders(coder, "trained")
        self.coder, self.config, self.batch_size = coder, config, batch_size
        self.n_main_steps = config.main_steps(batch_size)
        self.n_steps = self.n_main_steps + config.finetuning_steps(batch_size)
        activation = coder.config.activation
        sparsity = resolve_sparsity(activation, config.sparsity)
        check_training(coder, config, batch_size)
        scaling = resolve_token_scaling(coder, config)
        if scaling != coder.config.token_scaling:
            coder.set_token_scaling(scaling)
        self.unit_norm = has_unit_norm(coder, config)
        if config.sparse_connection is not None and not self.unit_norm:
            logger.warning(
                "the decoder is free, so sparse_connection is also lowered by shortening its rows; use "
                "decoder='unit_norm' (not with decoder_init='zeros' or TanhReLU)"
            )
        lr = config.lr
        width = max(part.coder.d_sae for part in coder.parts)
        self.lr = automatic_lr(width, batch_size, self.n_main_steps or self.n_steps) if lr == "auto" else float(lr)
        self.dead_after = dead_after(config.revive, config.tokens or self.n_steps * batch_size)
        if isinstance(config.revive, Resample) and 0 < 0.75 * config.tokens < resample_every(
            config.revive, config.tokens
        ):
            logger.warning(
                "no latent will be resampled: every_tokens=%s is more than three quarters of the run's %s tokens; "
                "give Resample a smaller every_tokens, or train for longer",
                f"{resample_every(config.revive, config.tokens):,}",
                f"{config.tokens:,}",
            )
        self.step_number = 0
        self.scaling = RowScaling(coder)
        self.statistics = FiringStatistics(coder.d_sae).to(coder.device)
        self.control = SparsityControl(sparsity, len(coder.parts), self.n_main_steps)
        objective = Objective.of(coder, config, sparsity)
        named = dict(coder.named_parameters())
        self._shadows = Shadows()
        self._optimizer = CoderOptimizer(named, config, self.n_main_steps, coder.device, optimizer, self._shadows)
        self._directions = (
            [part.prefix + "W_dec" for part in coder.parts]
            if self.unit_norm and self._optimizer.keeps_unit_norm
            else []
        )
        projects = self.unit_norm and not self._directions
        self._pass = GradientPass(coder, config, objective, unit_norm=projects, directions=directions)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=coder.device)
        self.n_resampled, self.last_resampled = 0, -1
        self.candidate_rows: CandidateRows | None = None
        self.model_losses: ModelLosses | None = None
        self.calibration_rows: CandidateRows | None = None
        self._finetuner: FineTuner | None = None
        self._has_begun_finetuning = False
        self._record: StepRecord | None = None
        self._dead: tuple[Dead, ...] | None = None
        coder.requires_grad_(True)
        if self.unit_norm:
            make_unit_norm_(coder)

    @property
    def tokens_seen(self) -> int:
        return self.step_number * self.batch_size

    @property
    def is_finetuning(self) -> bool:
        """Whether the coming step belongs to the last phase."""
        return self.step_number >= self.n_main_steps

    def optimizer_record(self) -> dict[str, Any]:
        """Which optimiser with which options, as plain values."""
        optimizer = self._optimizer.optimizer
        options = {key: repr(value) for key, value in optimizer.defaults.items() if key != "lr"}
        return {"name": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}", **options}

    def memory(self) -> StepMemory:
        """What a step will hold, beside the source of rows."""
        return step_memory(self.coder, self.config, self.control.sparsity, self.batch_size)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Before the first step, set scaling and biases in place from ``rows [n, d]`` of the first chunk."""
        x, y = self.scaling.by_token(rows.double())
        self.scaling.estimate_(self.config.input_scaling, x, y)
        inputs, outputs = self.scaling.input, self.scaling.output
        if self.coder.is_trained:  # its weights are those of raw activations, its bias is already where it belongs
            self.coder.fold_input_scaling(inputs.inverted(), outputs.inverted())
            if self.unit_norm:
                make_unit_norm_(self.coder)
            else:
                bring_decoder_to_size_(self.coder)
        elif self.config.b_dec_init != "zeros":
            if self.coder.b_dec is not None:
                self.coder.b_dec.copy_(self._center(outputs.apply(y)))
            if self.coder.b_dec_in is not None:
                self.coder.b_dec_in.copy_(self._center(inputs.apply(x)))
        target = getattr(self.control.sparsity, "target_l0", None)
        if not self.coder.is_trained and target is not None:
            scaled = inputs.apply(x[:START_ROWS])
            for part in self.coder.parts:
                start_with_(part.coder, scaled[:, part.read], START * target)

    def step(self, batch: Tensor) -> None:
        """One update from ``batch [B, d]``. A step that is not finite leaves every weight as it was."""
        self.step_prepared(self.prepare(batch))

    @torch.no_grad()
    def prepare(self, batch: Tensor) -> Rows:
        """``batch [B, d]`` on the coder's device, split into input and target, and scaled."""
        return Rows(*self.scaling(batch))

    @torch.no_grad()
    def step_prepared(self, rows: Rows) -> None:
        """``step`` of what ``prepare`` returned."""
        if self.step_number >= self.n_steps:
            raise ConfigError(f"the run is done, after {counted(self.n_steps, 'step')}; raise tokens= to go on")
        if self.is_finetuning and not self._has_begun_finetuning:
            self._begin_finetuning()
        x, y = rows.x, rows.y
        self._set_k()
        lr, state = self._lr(), self._state()
        with self.autocast(), self._shadows.in_use():
            done = self._pass(x, y, state, rows.pre_BF)
        total = torch.stack(list(done.terms.values())).sum()
        if self._finetuner is None:
            ok = self._optimizer.step_(done.gradients, total, lr, self._directions)
            if self.unit_norm and not self._directions:
                renormalise_(self.coder, ok)
            project_(self.coder)
        else:
            ok = self._finetuner.step_(done.gradients, total, lr)
        counts, n_active = self._count(done.encodings, ok)
        self.statistics.update_(counts, len(x), ok)
        bad = ~ok & (self.first_bad_step < 0)
        self.first_bad_step.copy_(torch.where(bad, self.step_number, self.first_bad_step))
        self.control.update_(self.step_number, done.loss, n_active, len(x), done.next_penalty)
        error, penalty_ = done.loss.error_BO, done.loss.penalty
        self._record = StepRecord(x, y, error, done.terms, penalty_, len(x), n_active, lr, state.coefficient)
        self.step_number += 1
        self._resample_if_due(x, y)
        self._dead = self._find_dead()
        self._calibrate_if_due()

    def check_finite(self) -> None:
        """Raise ``NonFiniteStepError`` naming the first bad step, if there was one."""
        bad = int(self.first_bad_step)
        if bad >= 0:
            raise NonFiniteStepError(
                f"step {bad} was not finite (loss or gradients); no weight was updated by it. Look for broken "
                f"activations near row {bad * self.batch_size}, or lower lr (now {self.lr:g})"
            )

    @torch.no_grad()
    def metrics(self) -> dict[str, Any]:
        """Figures of the newest step; see ``docs/metrics.md`` for each name. Changes no state."""
        if self._record is None:
            return {}
        values: dict[str, Any] = {
            "tokens": float(self.tokens_seen),
            **step_figures(self._record, self.coder.write_widths),
            **self.statistics.figures(self.dead_after),
            **term_coefficients(self.config),
        }
        if self.control.annealer is not None:
            values["p"] = self.control.p
        if isinstance(self.config.revive, Resample):
            values["n_resampled"] = self.n_resampled
        if self.config.k_start is not None:
            values["k"] = self._k_now()
        return values | threshold_figures(self.coder)

    @torch.no_grad()
    def inference_coder(self) -> TrainableDictionary:
        """A copy of the dictionary for raw activations, scaling and decoder norms folded in: what is saved."""
        return self.folding(self.coder)

    @property
    def folding(self) -> Folding:
        """What makes the dictionary one of raw activations, where the run stands."""
        return Folding(self.scaling.input, self.scaling.output, self.unit_norm)

    # -- state

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on: tensors, and plain values."""
        scaling, plain_scaling = self.scaling.state_dict()
        tensors = {f"coder.{name}": value for name, value in self.coder.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in self._optimizer.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics.state_dict().items()}
        tensors |= {f"scaling.{name}": value for name, value in scaling.items()}
        if self._finetuner is not None:
            tensors |= {f"finetuning.{name}": value for name, value in self._finetuner.state_dict().items()}
        tensors["first_bad_step"] = self.first_bad_step
        plain = {
            "step": self.step_number,
            "scaling": plain_scaling,
            **self.control.state_dict(),
            "resampled": [self.n_resampled, self.last_resampled],
            "finetuning": self._has_begun_finetuning,
        }
        return tensors, plain

    def load_state_dict(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self._dead = None
        self.coder.load_state_dict(part("coder."))
        self._optimizer.load_state_dict(part("adam."))
        self.statistics.load_state_dict(part("statistics."))
        self.first_bad_step.copy_(tensors["first_bad_step"])
        self.step_number = int(plain["step"])
        self.scaling.load_state_dict(part("scaling."), plain["scaling"])
        self.n_resampled, self.last_resampled = (int(value) for value in plain["resampled"])
        self.control.load_state_dict(plain)
        if plain["finetuning"]:
            self._begin_finetuning()
            if self._finetuner is not None:
                self._finetuner.load_state_dict(part("finetuning."))

    # -- one step

    def _count(self, encodings: tuple[Encoding, ...], ok: Tensor) -> tuple[Tensor, Tensor]:
        """Firing counts ``[F]`` and the number of active entries (0-d); running thresholds are updated in place."""
        parts = self.coder.parts
        total = None
        for start in range(0, len(encodings), len(parts)):
            group = encodings[start : start + len(parts)]
            counts = torch.cat([encoding.latents.firings() for encoding in group])
            total = counts if total is None else total + counts
            for part, encoding in zip(parts, group, strict=True):
                part.coder.activation.update_(encoding.selection, ok)
        assert total is not None
        return total, total.sum()

    def _resample_if_due(self, x: Tensor, y: Tensor) -> None:
        policy = self.config.revive
        if not isinstance(policy, Resample) or not is_resampling_step(
            policy, self.step_number, self.n_main_steps, self.config.tokens, self.batch_size
        ):
            return
        rule = policy.rule
        if rule.dead_below_density is not None:
            dead_F = self.statistics.density() < rule.dead_below_density
        else:
            dead_F = self.statistics.tokens_since_fired >= self.dead_after
        if not bool(dead_F.any()):
            return
        groups = dead_F.split([part.coder.d_sae for part in self.coder.parts])
        for number, (part, of_part) in enumerate(zip(self.coder.parts, groups, strict=True)):
            dead = of_part.nonzero().squeeze(1)
            if dead.numel() == 0:
                continue
            candidates = self._candidates(rule, x, y, number)
            generator = random_stream(self.config.seed, "resample", self.step_number, number)
            replace_latents_(part.coder, dead, candidates, rule.scale, generator, power=rule.power)
            for name, parameter in part.coder.named_parameters():
                if parameter.shape[:1] == (part.coder.d_sae,) and name not in ("b_dec", "b_dec_in", "W_skip"):
                    self._optimizer.reset_moments_(part.prefix + name, dead)
        self.statistics.tokens_since_fired[dead_F] = 0
        self.n_resampled += int(dead_F.sum())
        self.last_resampled = self.step_number

    def _calibrate_if_due(self) -> None:
        is_last = self.step_number == self.n_steps
        if is_last and self.config.calibrate_threshold and self.calibration_rows and int(self.first_bad_step) < 0:
            calibrate_(self.coder, self.scaling(self.calibration_rows(CALIBRATION_ROWS))[0])

    def _candidates(self, rule: ResampleRule, x: Tensor, y: Tensor, number: int) -> Candidates:
        part = self.coder.parts[number]
        if rule.by == "model_loss":
            if self.model_losses is None or self.coder.is_layered:
                raise ConfigError('Resample(by="model_loss") needs the model: train on an ActivationStream, one coder')
            rows, losses = self.model_losses(self.inference_coder(), rule.n_contexts)
            x, y = self.scaling(rows)
            return Candidates(x, y, losses.clamp(min=0).to(x.device))
        if self.candidate_rows is not None:
            x, y = self.scaling(self.candidate_rows(rule.n_candidates))
        target = y if part.is_whole else part.take(y) / len(part.writes)
        inputs = x[:, part.read]
        return Candidates(inputs, target, squared_errors(part.coder, inputs, target))

    # -- parts

    def _lr(self) -> float:
        config, step = self.config, self.step_number
        phase = config.finetuning
        if phase is not None and self.is_finetuning:
            start = phase.lr if phase.lr is not None else 0.1 * self.lr
            return start * (self.n_steps - step) / (self.n_steps - self.n_main_steps)
        factor = lr_factor(
            step,
            self.n_main_steps,
            kind=config.lr_schedule,
            warmup_fraction=config.warmup_fraction,
            decay_fraction=config.decay_fraction,
            end_fraction=config.lr_end_fraction,
            cycles=config.lr_cycles,
        )
        if isinstance(config.revive, Resample) and self.last_resampled >= 0:
            n = rewarm_steps(config.revive, self.n_main_steps, self.batch_size)
            factor *= rewarm_factor(step - self.last_resampled, n, config.revive.rule.rewarm_floor)
        return self.lr * factor

    def _k_now(self) -> float:
        config, activation = self.config, self.coder.config.activation
        k = activation.k if isinstance(activation, FixedCount) else 0
        if config.k_start is None:
            return float(k)
        share = min(1.0, self.step_number / max(1.0, config.k_anneal_fraction * self.n_main_steps))
        return config.k_start + (k - config.k_start) * share

    def _set_k(self) -> None:
        if self.config.k_start is None:
            return
        for part in self.coder.parts:
            part.coder.activation.use_k_(self._k_now())

    def _state(self) -> StepState:
        number, control = self.step_number, self.control
        if self._dead is None:
            self._dead = self._find_dead()
        return StepState(number, control.coefficient(number), control.p, control.next_p(number), self._dead)

    def _find_dead(self) -> tuple[Dead, ...]:
        return Dead.of(self.statistics.tokens_since_fired >= self.dead_after, self.coder.parts)

    def autocast(self) -> torch.autocast:
        """What a step's products run under."""
        dtype = None if self.config.autocast is None else parse_dtype(self.config.autocast)
        return torch.autocast(self.coder.device.type, dtype=dtype, enabled=dtype is not None)

    def _begin_finetuning(self) -> None:
        phase = self.config.finetuning
        assert phase is not None
        config, objective = replace(self.config, pre_noise=0.0), self._pass.objective
        if phase.weights != "all":
            self.unit_norm = False  # the rows' norms are what is trained
            self._directions = []
            config = replace(config, revive=None, sparse_connection=None)
            objective = replace(objective, config=config, sparsity=None)
            self._finetuner = FineTuner(self.coder, phase, self.config, self.n_steps - self.n_main_steps)
        directions = self._pass.directions
        projects = self.unit_norm and not self._directions
        self._pass = GradientPass(self.coder, config, objective, unit_norm=projects, directions=directions)
        self._has_begun_finetuning = True

    def _center(self, rows: Tensor) -> Tensor:
        if self.config.b_dec_init == "mean":
            return rows.mean(0)
        if self.config.b_dec_init != "geometric_median":
            raise AssertionError(f"there is no start {self.config.b_dec_init!r} that centers rows")
        median = geometric_median(rows).median
        assert isinstance(median, Tensor)
        return median
