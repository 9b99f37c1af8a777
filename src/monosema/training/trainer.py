"""``Trainer``: one dictionary, one optimiser, one step at a time. The loop's inner step, and usable by itself.

Shape letters: B tokens, I input width, O output width, F latents.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary, Encoding, Scaling, SparseCoder
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.encoder_product import compiled_encoder_product
from monosema.core.devices import parse_dtype
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.seeds import random_stream
from monosema.training.allowed import resolve_sparsity
from monosema.training.config import PER_TOKEN, InputScaling, TrainingConfig
from monosema.training.controller import PAnnealer, TargetL0Controller
from monosema.training.figures import StepRecord, step_figures, term_coefficients, threshold_figures
from monosema.training.finetune import FineTuner
from monosema.training.initial import geometric_median
from monosema.training.objectives import Loss, Objective
from monosema.training.optimizer import CoderOptimizer, project_, renormalise_
from monosema.training.penalties import needed_window, penalty
from monosema.training.resample import Candidates, replace_latents_, squared_errors
from monosema.training.resample_presets import ResampleRule
from monosema.training.resolve import check_training, has_unit_norm, resolve_token_scaling
from monosema.training.revive import dead_after, is_resampling_step, resample_every, revival, rewarm_steps
from monosema.training.schedules import automatic_lr, lr_factor, rewarm_factor, warmup_factor
from monosema.training.start import bring_decoder_to_size_, can_fold_norms, estimate, make_unit_norm_, start_with_
from monosema.training.statistics import FiringStatistics
from monosema.training.terms import L1, Lp, Resample, Tanh

logger = logging.getLogger("monosema.training")

INITIAL_ROWS = 16_384
"""Rows of the first chunk that data-dependent initial values are computed from."""
START_ROWS, START = 256, 6.0
"""Rows by which a dictionary with a wanted L0 starts at that many times as much."""

CandidateRows = Callable[[int], Tensor]
"""Gives so many rows of the current chunk, for resampling by error."""
ModelLosses = Callable[[SparseCoder, int], tuple[Tensor, Tensor]]
"""Given a coder of raw activations and a number of contexts, their rows and the model's loss increase at each."""


@dataclass(frozen=True)
class _Gradients:
    """One batch, or a part of it, on its way through."""

    gradients: dict[str, Tensor]
    loss: Loss
    encodings: tuple[Encoding, ...]
    terms: dict[str, Tensor]
    next_penalty: Tensor | None
    """The penalty under the coming power of p-annealing, shortly before it comes."""


class NonFiniteStepError(DataError):
    """A step whose loss or gradients were not finite; the weights are those before it."""


class Trainer:
    """Trains ``coder`` in place on rows ``[B, d_in]`` (or ``[B, d_in + d_out]`` where it writes other sites).

    Args:
        coder: the dictionary; its weights are those of *scaled* activations while training (``input_scaling``) and are
            made ones of raw activations by ``inference_coder``. Scaling by each token's size is made its own.
        config: the run. ``config.tokens`` and ``batch_size`` give the number of steps the schedules span.
        batch_size: rows in a batch.
        directions: ``[n, d_out]`` directions of the SAE of ``config.sparse_connection``.

    ``step(batch)`` updates; ``metrics()`` reads the newest step's figures and changes nothing. ``candidate_rows`` and
    ``model_losses`` may be set for resampling; without the first the newest batch is used.
    """

    def __init__(self, coder: Dictionary, config: TrainingConfig, batch_size: int, directions: Tensor | None = None):
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.coder, self.config, self.batch_size = coder, config, batch_size
        self.n_main_steps = config.main_steps(batch_size)
        self.n_steps = self.n_main_steps + config.finetuning_steps(batch_size)
        activation = coder.config.activation
        self.sparsity = resolve_sparsity(activation, config.sparsity)
        check_training(coder, config, batch_size)
        scaling = resolve_token_scaling(coder, config)
        if scaling != coder.config.token_scaling:
            coder.set_token_scaling(scaling)
        self.unit_norm = has_unit_norm(coder, config)
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
        self.input_scaling = Scaling.identity(coder.config.read_widths)
        self.output_scaling = Scaling.identity(coder.config.write_widths)
        self.statistics = FiringStatistics(coder.d_sae).to(coder.device)
        self.controller: TargetL0Controller | None = None
        target = getattr(self.sparsity, "target_l0", None)
        if self.sparsity is not None and target is not None:
            total = target * len(coder.parts)
            self.controller = TargetL0Controller(self.sparsity.coefficient, total)
        self.annealer = PAnnealer(self.sparsity, self.n_main_steps) if isinstance(self.sparsity, Lp) else None
        self.objective = Objective.of(coder, config, self.sparsity)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=coder.device)
        self.n_resampled, self.last_resampled = 0, -1
        self.candidate_rows: CandidateRows | None = None
        self.model_losses: ModelLosses | None = None
        self._directions = directions
        if config.sparse_connection is not None and directions is None:
            raise ConfigError("sparse_connection: the SAE's directions are missing; ms.train loads them")
        self._product = None if config.compile is None else compiled_encoder_product(config.compile)
        self._optimizer = CoderOptimizer(dict(coder.named_parameters()), config, self.n_main_steps, coder.device)
        self._finetuner: FineTuner | None = None
        self._workspaces: list[Tensor] = []
        self._record: StepRecord | None = None
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

    @property
    def coefficient(self) -> float:
        """The sparsity coefficient of the coming step, warm-up and annealing included."""
        if self.sparsity is None:
            return 0.0
        peak = self.sparsity.coefficient if self.controller is None else self.controller.coefficient
        annealed = 1.0 if self.annealer is None else self.annealer.factor
        return peak * annealed * warmup_factor(self.step_number, self.n_main_steps, self.sparsity.warmup_fraction)

    @torch.no_grad()
    def initialise(self, rows: Tensor) -> None:
        """Before the first step, set scaling and biases in place from ``rows [n, d]`` of the first chunk."""
        x, y = self._token_scaled(rows.double())
        kind, config = self.config.input_scaling, self.coder.config
        self.input_scaling = estimate(kind, x, config.read_widths)
        same = self._is_autoencoder or getattr(config, "b_dec", None) == "input_and_output"
        of_targets: InputScaling = "expected_norm" if kind in PER_TOKEN else kind
        self.output_scaling = self.input_scaling if same else estimate(of_targets, y, config.write_widths)
        if self.coder.is_trained:  # its weights are those of raw activations, its bias is already where it belongs
            self.coder.fold_input_scaling(self.input_scaling.inverted(), self.output_scaling.inverted())
            if self.unit_norm:
                make_unit_norm_(self.coder)
            else:
                bring_decoder_to_size_(self.coder)
        elif self.config.b_dec_init != "zeros":
            if self.coder.b_dec is not None:
                self.coder.b_dec.copy_(self._center(self.output_scaling.apply(y)))
            if isinstance(self.coder, SparseCoder) and self.coder.b_dec_in is not None:
                self.coder.b_dec_in.copy_(self._center(self.input_scaling.apply(x)))
        target = getattr(self.sparsity, "target_l0", None)
        if not self.coder.is_trained and target is not None:
            scaled = self.input_scaling.apply(x[:START_ROWS])
            for part in self.coder.parts:
                start_with_(part.coder, scaled[:, part.read], START * target)

    @torch.no_grad()
    def step(self, batch: Tensor) -> None:
        """One update from ``batch [B, d]``. A step that is not finite leaves every weight as it was."""
        if self.step_number >= self.n_steps:
            raise ConfigError(f"the run's {self.n_steps} steps are done; raise tokens= to go on")
        if self.is_finetuning and self._finetuner is None:
            self._begin_finetuning()
        x, y = self._scaled(batch)
        self._set_k()
        lr, coefficient = self._lr(), self.coefficient
        with self._autocast():
            done = self._accumulated(x, y, coefficient)
        total = torch.stack(list(done.terms.values())).sum()
        if self._finetuner is None:
            ok = self._optimizer.step_(done.gradients, total, lr)
            if self.unit_norm:
                renormalise_(self.coder, ok)
            project_(self.coder)
        else:
            ok = self._finetuner.step_(done.gradients, total, lr)
        counts, nnz = self._count(done.encodings, ok)
        self.statistics.update_(counts, len(batch), ok)
        bad = ~ok & (self.first_bad_step < 0)
        self.first_bad_step.copy_(torch.where(bad, self.step_number, self.first_bad_step))
        self._steer(done, nnz / len(batch))
        error, penalty_ = done.loss.error_BO, done.loss.penalty
        self._record = StepRecord(x, y, error, done.terms, penalty_, len(batch), nnz, lr, coefficient)
        self.step_number += 1
        self._resample_if_due(x, y)

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
            **step_figures(self._record, self.coder.config.write_widths),
            **self.statistics.figures(self.dead_after),
            **term_coefficients(self.config),
        }
        if self.annealer is not None:
            values["p"] = self.annealer.p
        if isinstance(self.config.revive, Resample):
            values["n_resampled"] = self.n_resampled
        if self.config.k_start is not None:
            values["k"] = self._k_now()
        return values | threshold_figures(self.coder)

    @torch.no_grad()
    def inference_coder(self) -> Dictionary:
        """A copy of the dictionary for raw activations, scaling and decoder norms folded in: what is saved."""
        coder = copy.deepcopy(self.coder)
        coder.requires_grad_(False)
        coder.is_trained = True
        for part in coder.parts:
            if isinstance(part.coder.activation, FixedCountActivation):
                part.coder.activation.k = part.coder.activation.config.k
        if not self.output_scaling.is_uniform:
            coder.fold_selection_weights()
        if not (self.input_scaling.is_identity and self.output_scaling.is_identity):
            coder.fold_input_scaling(self.input_scaling, self.output_scaling)
        if can_fold_norms(coder, self.output_scaling.is_uniform and self.unit_norm):
            coder.fold_W_dec_norm()
        return coder

    # -- state

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on: tensors, and plain values."""
        scaling: dict[str, Tensor] = {}
        plain_scaling: dict[str, Any] = {}
        for name, each in (("input", self.input_scaling), ("output", self.output_scaling)):
            tensors, plain_scaling[name] = each.to_state()
            scaling |= {f"scaling.{name}.{key}": value.clone() for key, value in tensors.items()}  # may be one object
        tensors = {f"coder.{name}": value for name, value in self.coder.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in self._optimizer.state_dict().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics.state_dict().items()}
        tensors |= scaling
        if self._finetuner is not None:
            tensors |= {f"finetuning.{name}": value for name, value in self._finetuner.state_dict().items()}
        tensors["first_bad_step"] = self.first_bad_step
        plain = {
            "step": self.step_number,
            "scaling": plain_scaling,
            "controller": None if self.controller is None else self.controller.state_dict(),
            "annealer": None if self.annealer is None else self.annealer.state_dict(),
            "resampled": [self.n_resampled, self.last_resampled],
            "finetuning": self._finetuner is not None,
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
        self.input_scaling = Scaling.from_state(part("scaling.input."), plain["scaling"]["input"])
        self.output_scaling = Scaling.from_state(part("scaling.output."), plain["scaling"]["output"])
        self.n_resampled, self.last_resampled = (int(value) for value in plain["resampled"])
        if self.controller is not None:
            self.controller.load_state_dict(plain["controller"])
        if self.annealer is not None:
            self.annealer.load_state_dict(plain["annealer"])
        if plain["finetuning"]:
            self._begin_finetuning()
            if self._finetuner is not None:
                self._finetuner.load_state_dict(part("finetuning."))

    # -- one step

    def _accumulated(self, x: Tensor, y: Tensor, coefficient: float) -> _Gradients:
        n = self.config.gradient_accumulation
        if n == 1:
            return self._gradients(x, y, coefficient, 0)
        parts = list(zip(x.tensor_split(n), y.tensor_split(n), strict=True))
        done = [self._gradients(xs, ys, coefficient, number) for number, (xs, ys) in enumerate(parts)]
        shares = [len(xs) / len(x) for xs, _ in parts]
        last = done[-1]
        gradients = {
            name: sum((d.gradients[name] * s for d, s in zip(done, shares, strict=True)), torch.zeros_like(value))
            for name, value in last.gradients.items()
        }
        names = dict.fromkeys(name for d in done for name in d.terms)
        terms = {
            name: torch.stack([d.terms[name] * s for d, s in zip(done, shares, strict=True) if name in d.terms]).sum()
            for name in names
        }
        penalties = [None if d.loss.penalty is None else d.loss.penalty * s for d, s in zip(done, shares, strict=True)]
        loss = Loss(
            terms,
            _sum(penalties),
            torch.cat([d.loss.error_BO for d in done]),
            last.loss.weights_BO,
            last.loss.g_out,
            last.loss.parts,
            _sum([d.loss.energies for d in done]),
        )
        coming = [None if d.next_penalty is None else d.next_penalty * s for d, s in zip(done, shares, strict=True)]
        return _Gradients(gradients, loss, tuple(e for d in done for e in d.encodings), terms, _sum(coming))

    def _gradients(self, x: Tensor, y: Tensor, coefficient: float, number: int) -> _Gradients:
        coder, config = self.coder, self.config
        only_reconstruction = config.finetuning is not None and self.is_finetuning and self._finetuner is not None
        window = needed_window(self.sparsity)
        parts = coder.parts
        encodings = tuple(
            part.coder.encode_select(
                x[:, part.read],
                self._workspace(i, part.coder, len(x)),
                window=window,
                noise_BF=self._noise(i, len(x), number),
                product=self._product,
                scaled=True,
            )
            for i, part in enumerate(parts)
        )
        objective = Objective(config, None, self.objective.site_weights_O) if only_reconstruction else self.objective
        p = 1.0 if self.annealer is None else self.annealer.p
        loss = objective.loss(coder, encodings, x, y, coefficient, p)
        gradients: dict[str, Tensor] = {}
        terms = dict(loss.terms)
        dead = (self.statistics.tokens_since_fired >= self.dead_after).split([part.coder.d_sae for part in parts])
        policy = None if only_reconstruction else config.revive
        for part, encoding, own, dead_F in zip(parts, encodings, loss.parts, dead, strict=True):
            found = revival(part, encoding, loss, dead_F, policy)
            mine = part.coder.backward(
                encoding,
                own.g_out,
                own.own,
                levels=own.levels,
                extra=None if found is None else found.extra,
                everywhere=None if found is None else found.everywhere,
                unit_norm=self.unit_norm,
            )
            if found is not None:
                terms[found.name] = terms.get(found.name, 0) + found.value
                for name, value in found.parameters.items():
                    mine[name] = mine[name] + value
            gradients |= {part.prefix + name: value for name, value in mine.items()}
        if not isinstance(coder, SparseCoder):
            gradients["b_dec"] = loss.g_out.reshape(-1, coder.d_out).sum(0)
            coder.tie_gradients_(gradients)
        if config.sparse_connection is not None and not only_reconstruction:
            with torch.autocast(coder.device.type, enabled=False):
                terms["sparse_connection"] = self._connect_(gradients)
        return _Gradients(gradients, loss, encodings, terms, self._next_penalty(encodings))

    def _next_penalty(self, encodings: tuple[Encoding, ...]) -> Tensor | None:
        coming = None if self.annealer is None or self.is_finetuning else self.annealer.next_p(self.step_number)
        if coming is None or self.sparsity is None:
            return None
        pairs = zip(self.coder.parts, encodings, strict=True)
        values = [penalty(part.coder, encoding, self.sparsity, 0.0, coming).value for part, encoding in pairs]
        return torch.stack(values).sum()

    def _connect_(self, gradients: dict[str, Tensor]) -> Tensor:
        """Add the sparse-connection loss's gradient in place; returns its value."""
        config, directions = self.config.sparse_connection, self._directions
        assert config is not None and directions is not None and isinstance(self.coder, SparseCoder)
        decoder = self.coder.W_dec
        share, value = config.coefficient / len(directions), decoder.new_zeros(())
        gradient = torch.zeros_like(decoder)
        for block in directions.to(decoder).split(max(1, 2**24 // self.coder.d_sae)):
            products = decoder @ block.T
            value += share * products.abs().sum()
            gradient.addmm_(products.sign_(), block, alpha=share)
        if self.unit_norm:
            gradient -= (gradient * decoder).sum(1, keepdim=True) * decoder
        gradients["W_dec"] = gradients["W_dec"] + gradient
        return value

    def _count(self, encodings: tuple[Encoding, ...], ok: Tensor) -> tuple[Tensor, int]:
        """Firing counts ``[F]`` and the number of active entries; running thresholds are updated in place."""
        parts = self.coder.parts
        total = None
        for start in range(0, len(encodings), len(parts)):
            group = encodings[start : start + len(parts)]
            counts = torch.cat([encoding.latents.counts() for encoding in group])
            total = counts if total is None else total + counts
            for part, encoding in zip(parts, group, strict=True):
                part.coder.activation.update_(encoding.selection, ok)
        assert total is not None
        return total, sum(encoding.latents.nnz for encoding in encodings)

    def _steer(self, done: _Gradients, l0: float) -> None:
        if self.is_finetuning:
            return
        if self.controller is not None:
            self.controller.update_(l0, self._largest_coefficient(done.loss))
        if self.annealer is not None and done.next_penalty is not None and done.loss.penalty is not None:
            self.annealer.update_(self.step_number, float(done.loss.penalty), float(done.next_penalty))

    def _largest_coefficient(self, loss: Loss) -> float:
        """Bound of the controller: above it, a penalty that shrinks activations takes them all to zero."""
        if not isinstance(self.sparsity, L1 | Lp | Tanh):
            return math.inf
        power, factor = (1.0, 1.0) if self.annealer is None else (self.annealer.p, self.annealer.factor)
        return loss.largest_coefficient(power) / factor

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

    def _candidates(self, rule: ResampleRule, x: Tensor, y: Tensor, number: int) -> Candidates:
        part = self.coder.parts[number]
        if rule.by == "model_loss":
            if self.model_losses is None or not isinstance(self.coder, SparseCoder):
                raise ConfigError('Resample(by="model_loss") needs the model: train on an ActivationStream, one coder')
            rows, losses = self.model_losses(self.inference_coder(), rule.n_contexts)  # type: ignore[arg-type]
            x, y = self._scaled(rows)
            return Candidates(x, y, losses.clamp(min=0).to(x.device))
        if self.candidate_rows is not None:
            x, y = self._scaled(self.candidate_rows(rule.n_candidates))
        target = y if isinstance(self.coder, SparseCoder) else part.take(y) / len(part.writes)
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
        config, k = self.config, getattr(self.coder.config.activation, "k", 0)
        if config.k_start is None:
            return float(k)
        share = min(1.0, self.step_number / max(1.0, config.k_anneal_fraction * self.n_main_steps))
        return config.k_start + (k - config.k_start) * share

    def _set_k(self) -> None:
        if self.config.k_start is None:
            return
        for part in self.coder.parts:
            assert isinstance(part.coder.activation, FixedCountActivation)
            part.coder.activation.k = self._k_now()

    def _autocast(self) -> torch.autocast:
        dtype = None if self.config.autocast is None else parse_dtype(self.config.autocast)
        return torch.autocast(self.coder.device.type, dtype=dtype, enabled=dtype is not None)

    def _noise(self, part: int, n_tokens: int, number: int) -> Tensor | None:
        if self.config.pre_noise == 0 or self.is_finetuning:
            return None
        coder = self.coder.parts[part].coder
        generator = random_stream(self.config.seed, "pre_noise", self.step_number, part, number)
        noise = torch.randn(n_tokens, coder.d_sae, generator=generator, dtype=torch.float32)
        return noise.mul_(self.config.pre_noise).to(device=coder.device, dtype=coder.dtype)

    def _begin_finetuning(self) -> None:
        phase = self.config.finetuning
        assert phase is not None
        if phase.weights != "all":
            self.unit_norm = False  # the rows' norms are what is trained
            self._finetuner = FineTuner(self.coder, phase, self.config, self.n_steps - self.n_main_steps)

    def _center(self, rows: Tensor) -> Tensor:
        if self.config.b_dec_init == "mean":
            return rows.mean(0)
        median = geometric_median(rows).median
        assert isinstance(median, Tensor)
        return median

    @property
    def _is_autoencoder(self) -> bool:
        return self.coder.hook_name == self.coder.hook_name_out and self.coder.d_in == self.coder.d_out

    def _scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(device=self.coder.device, dtype=self.coder.dtype)
        x, y = self._token_scaled(rows)
        x = self.input_scaling.apply(x)
        return (x, x) if self._is_autoencoder else (x, self.output_scaling.apply(y))

    def _token_scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self._split(rows)
        x = self.coder.scale_tokens(x)
        return x, x if self._is_autoencoder else y

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        d_in, d_out = self.coder.d_in, self.coder.d_out
        if self._is_autoencoder:
            if rows.ndim != 2 or rows.shape[1] != d_in:
                raise ShapeError(f"expected rows [B, {d_in}], got {list(rows.shape)}")
            return rows, rows
        if rows.ndim != 2 or rows.shape[1] != d_in + d_out:
            raise ShapeError(f"expected rows [B, {d_in} + {d_out}] (input, then target), got {list(rows.shape)}")
        return rows[:, :d_in], rows[:, d_in:]

    def _workspace(self, part: int, coder: SparseCoder, n_tokens: int) -> Tensor:
        while len(self._workspaces) <= part:
            self._workspaces.append(torch.empty(0))
        if len(self._workspaces[part]) < n_tokens:
            self._workspaces[part] = torch.empty(n_tokens, coder.d_sae, dtype=coder.dtype, device=coder.device)
        return self._workspaces[part]


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.stack(given).sum(0) if given else None
