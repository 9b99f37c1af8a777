"""How a coder is trained, without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from monosema.coders.config import TokenScaling
from monosema.core.compiling import CompileMode, check_compile_mode
from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options
from monosema.metrics.figures import BEST
from monosema.training.terms import AuxK, FineTuning, LevelsConfig, Revive, SparseConnection, Sparsity, TermConfig

InputScaling = Literal["expected_norm", "expected_norm_one", "whitening", "constant_norm", "layer_norm", "none"]
PER_TOKEN: tuple[TokenScaling, ...] = ("constant_norm", "layer_norm")
"""The input scalings that are not linear and stay in the coder."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training run; the defaults work untouched."""

    tokens: int = 1_200_000
    """Training tokens (rows), in whole batches; 0 for fine-tuning alone, of a dictionary that was saved."""
    lr: float | Literal["auto"] = "auto"
    """Adam's learning rate; ``"auto"`` chooses by width, batch and run length (``schedules.automatic_lr``)."""
    seed: int = 0
    """Seed of every draw made while training."""
    warmup_fraction: float = 0.03
    """Share of the run over which the learning rate rises linearly."""
    decay_fraction: float = 0.3
    """Share of the run, at its end, over which the learning rate falls linearly to zero."""
    lr_schedule: Literal["constant", "linear", "cosine", "cosine_restarts"] = "constant"
    """The learning rate between warm-up and decay."""
    lr_end_fraction: float = 0.1
    """Where that ends, as a share of the peak (not for ``constant``)."""
    lr_cycles: int = 1
    """Cycles of ``cosine_restarts``."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float | Literal["auto"] = "auto"
    """Adam's decay of the second moment; ``"auto"``: a memory of a twentieth of the run, at least 20 and at most 1,000
    steps (``schedules.automatic_beta2``)."""
    epsilon: float = 1e-8
    """Adam's ε."""
    grad_clip: float | None = None
    """Largest global gradient norm; none by default."""
    gradient_accumulation: int = 1
    """Parts in which a batch is processed, one after the other, to save memory; BatchTopK selects in each part."""
    reconstruction: Literal["sum_of_squares", "mean_per_dimension", "by_norm", "by_batch_deviation"] = "sum_of_squares"
    """Reconstruction loss of a token: ``‖e‖²``; ``‖e‖²/d``; ``‖e‖²/(d ‖y‖)``; ``‖e‖²/‖y - ȳ‖`` with
    the batch's mean ȳ."""
    site_weights: tuple[float, ...] | None = None
    """Weight of each site written in the reconstruction loss; all one by default."""
    levels: LevelsConfig | None = None
    """Nested reconstructions (Matryoshka, hierarchical top-k) in place of one."""
    sparsity: Sparsity | None = None
    """Sparsity loss; by default the activation's own (none for TopK, AbsTopK and BatchTopK)."""
    revive: Revive | None = AuxK()
    """What brings dead latents back; None for nothing."""
    sparse_connection: SparseConnection | None = None
    """A loss on the transcoder's connections to an SAE's latents."""
    k_start: int | None = None
    """k at the first step, from which it falls linearly to the activation's own (k-annealing); none by default."""
    k_anneal_fraction: float = 0.1
    """Share of the run over which it falls."""
    calibrate_threshold: bool = True
    """After the last step, set the threshold that BatchTopK (and TopK and AbsTopK with ``inference="threshold"``) infer
    with to the one that gives k active latents a token on training rows; without it, the running mean is kept."""
    pre_noise: float = 0.0
    """Standard deviation of Gaussian noise added to pre-activations while training."""
    finetuning: FineTuning | None = None
    """A last phase that trains only some weights."""
    decoder: Literal["auto", "unit_norm", "free"] = "auto"
    """Decoder rows of norm one, their gradient projected; or unconstrained. ``auto``: unit norm where the sparsity loss
    could be lowered by long decoder rows (its ``weighting`` is ``none``), where ``sparse_connection`` could be lowered
    by short ones, and for Gated."""
    b_dec_init: Literal["geometric_median", "mean", "zeros"] = "geometric_median"
    """Initial decoder bias (and input bias, of its own site), from rows of the first chunk."""
    input_scaling: InputScaling = "expected_norm"
    """Scale each site's inputs and targets while training, by constants so that their mean norm is √d or 1, or by a
    linear map that whitens them; folded on save. Or scale each token by its own size, ``constant_norm`` to norm √d and
    ``layer_norm`` to mean 0 and deviation 1: that is not linear and stays in the dictionary as its ``token_scaling``.
    A transcoder's targets, whose size is not known at inference, are then scaled as by ``expected_norm``; a dictionary
    that has a ``token_scaling`` of its own takes the linear scalings on top of it."""
    autocast: Literal["bfloat16", "float16"] | None = None
    """Type of the products of a step, forward and backward, in place of float32; weights, moments, losses and the
    values of chosen latents stay float32."""
    compile: CompileMode | None = None
    """Mode of ``torch.compile`` for the encoder's product, the part of a step whose shapes are fixed; eager by
    default. ``reduce-overhead`` is refused: CUDA graphs need fixed shapes throughout."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; a tenth of the run by default, 0 for none but the last."""
    keep_checkpoints: int = 2
    """Checkpoints kept on disk, the newest ones."""
    keep_every: int = 0
    """Steps whose multiples' checkpoints are written and kept for good; 0 for none."""
    checkpoint_tokens: tuple[int, ...] = ()
    """Training tokens after which a checkpoint is written (after the step that reaches them) and kept for good."""
    n_checkpoints: int = 0
    """So many checkpoints kept for good, evenly spaced between the run's first step and its last."""
    keep_best: str | None = None
    """A figure of ``eval_every``, such as ``heldout/fve``: the checkpoint where it is best is written and kept while it
    is the best one."""
    background_checkpoints: bool = True
    """Checkpoints are written while steps go on, from a copy of the state in host memory; steps wait otherwise."""
    max_hours: float | None = None
    """Hours after which the process writes a checkpoint and stops, as after a signal; the same call goes on."""
    log_every: int = 50
    """Steps between logged lines of metrics."""
    eval_every: int = 0
    """Steps between evaluations on held-out text while training; 0 for none but the last."""

    def __post_init__(self) -> None:
        check_types(self)
        least = 1 if self.finetuning is None else 0
        _require(self.tokens >= least, f"tokens must be at least {least}, got {self.tokens}")
        _require(self.lr == "auto" or self.lr > 0, f"lr must be positive or 'auto', got {self.lr}")
        for name in ("warmup_fraction", "decay_fraction"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be between 0 and 1, got {getattr(self, name)}")
        _require(
            self.warmup_fraction + self.decay_fraction <= 1,
            "warmup_fraction and decay_fraction together exceed the run; lower one of them",
        )
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            _require(beta == "auto" or 0 <= beta < 1, f"{name} must be at least 0 and below 1, got {beta}")
        _require(0 <= self.lr_end_fraction <= 1, f"lr_end_fraction must be between 0 and 1, got {self.lr_end_fraction}")
        _require(self.lr_cycles >= 1, f"lr_cycles must be at least 1, got {self.lr_cycles}")
        parts = self.gradient_accumulation
        _require(parts >= 1, f"gradient_accumulation must be at least 1, got {parts}")
        weights = self.site_weights
        _require(weights is None or all(w >= 0 for w in weights), f"site_weights must not be negative, got {weights}")
        _require(self.k_start is None or self.k_start >= 1, f"k_start must be at least 1, got {self.k_start}")
        fraction = self.k_anneal_fraction
        _require(0 < fraction <= 1, f"k_anneal_fraction must be above 0 and at most 1, got {fraction}")
        _require(self.pre_noise >= 0, f"pre_noise must not be negative, got {self.pre_noise}")
        _require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        _require(self.eval_every >= 0, f"eval_every must not be negative, got {self.eval_every}")
        _require(self.keep_checkpoints >= 1, f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
        _require(self.keep_every >= 0, f"keep_every must not be negative, got {self.keep_every}")
        self._check_kept()
        _require(self.max_hours is None or self.max_hours > 0, f"max_hours must be positive, got {self.max_hours}")
        _require(
            self.checkpoint_every is None or self.checkpoint_every >= 0,
            f"checkpoint_every must not be negative, got {self.checkpoint_every}",
        )
        reason = "CUDA graphs need shapes that do not depend on what is selected"
        check_compile_mode(self.compile, "a coder", reason)
        _require(self.grad_clip is None or self.grad_clip > 0, f"grad_clip must be positive, got {self.grad_clip}")

    def _check_kept(self) -> None:
        counts, best = self.checkpoint_tokens, self.keep_best
        _require(all(count >= 1 for count in counts), f"checkpoint_tokens must be at least 1, got {counts}")
        _require(self.n_checkpoints >= 0, f"n_checkpoints must not be negative, got {self.n_checkpoints}")
        _require(
            not (counts and self.n_checkpoints),
            "checkpoint_tokens and n_checkpoints both say which checkpoints to keep; leave out one of them",
        )
        if best is not None:
            _require(
                is_known(best),
                f"keep_best={best!r} is no figure of held-out rows with a best value; known: {', '.join(BEST)}",
            )
            _require(self.eval_every > 0, f"keep_best={best!r} is measured while training; set eval_every, too")

    @property
    def further_terms(self) -> tuple[TermConfig, ...]:
        """The terms beside reconstruction and sparsity, in the order of the fields."""
        values = (getattr(self, each.name) for each in fields(self))
        return tuple(value for value in values if isinstance(value, TermConfig))

    def main_steps(self, batch_size: int) -> int:
        """Steps before the fine-tuning phase: of all that is trained, where there is none."""
        return 0 if self.tokens == 0 else max(1, self.tokens // batch_size)

    def finetuning_steps(self, batch_size: int) -> int:
        """Steps of the fine-tuning phase."""
        return 0 if self.finetuning is None else max(1, self.finetuning.tokens // batch_size)


def is_known(best: str) -> bool:
    """Whether ``best`` is a figure of ``BEST``, of one model or of a named one."""
    return "/".join(best.split("/")[:2]) in BEST


def is_better(best: str, value: float, than: float | None) -> bool:
    """Whether ``value`` of the figure ``best`` is better than another; no number is better than none."""
    if value != value or than is None:
        return value == value
    return value > than if BEST["/".join(best.split("/")[:2])] == "highest" else value < than


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
