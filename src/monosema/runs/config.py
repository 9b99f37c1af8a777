"""One run, from model to report, as a config without torch: what ``config.yaml`` holds and the command line takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from monosema.coders.config import ActivationConfig, BatchTopK, BDecMode, DecoderInit, EncoderInit, TokenScaling
from monosema.core.errors import ConfigError
from monosema.core.foreign import is_ablation, is_count
from monosema.core.option_fields import chosen, from_file
from monosema.core.peers import explains_options
from monosema.data.cache_config import CacheOptions, CacheSource
from monosema.data.config import CHOSEN_WHERE_READ, TokenOptions
from monosema.data.stream_config import StreamOptions
from monosema.models.config import ModelOptions, TokenizerOptions
from monosema.training.config import TrainingConfig

__all__ = [
    "CacheConfig",
    "CacheOptions",
    "CacheSource",
    "CoderOptions",
    "EvaluationOptions",
    "ModelOptions",
    "PretokenizeConfig",
    "RunConfig",
    "StreamOptions",
    "TokenOptions",
    "TokenizerOptions",
]

MAIN_MODEL = "base"
"""What ``model`` is called where ``other_models`` stand beside it."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """``monosema cache``: model, text and stream as of a run, and what is written."""

    model: ModelOptions = ModelOptions()
    """The language model."""
    tokens: TokenOptions = TokenOptions()
    """The text."""
    stream: StreamOptions = StreamOptions()
    """The sites; a chunk (``chunk_contexts``, ``chunk_bytes``) is the window that rows are permuted in."""
    cache: CacheOptions = CacheOptions()
    """What is written."""


@dataclass(frozen=True, kw_only=True)
class PretokenizeConfig:
    """``monosema pretokenize``: text, and the tokenizer of the models it is for."""

    tokenizer: TokenizerOptions = TokenizerOptions()
    """The tokenizer."""
    tokens: TokenOptions = TokenOptions()
    """The text; which positions become rows is said where the folder is read."""
    shard_bytes: int = 2**26
    """About the size of a file."""

    def __post_init__(self) -> None:
        for name in chosen(self.tokens, CHOSEN_WHERE_READ):
            raise ConfigError(f"tokens.{name} is said where packed tokens are read (monosema train); leave it out here")


@dataclass(frozen=True, kw_only=True)
class CoderOptions:
    """The dictionary; widths of input and output come from the sites."""

    d_sae: int | None = None
    """Number of latents; 16 times the input width by default."""
    expansion_factor: float | None = None
    """Number of latents as a multiple of the input width, instead of ``d_sae``."""
    activation: ActivationConfig = BatchTopK(k=32)
    """How pre-activations become sparse latents."""
    b_dec: BDecMode | None = None
    """Where the decoder bias acts; on both sides for an SAE, on the output for a transcoder, by default."""
    variant: Literal["auto", "cross_layer_transcoder"] = "auto"
    """``auto``: an SAE for one site, a crosscoder for several, a transcoder for one target, a cross-layer transcoder
    for several sites read and as many targets."""
    skip: bool = False
    """Whether a transcoder has a linear skip connection."""
    token_scaling: TokenScaling = "none"
    """Scaling of each token by its own size, as a part of the dictionary; ``training.input_scaling`` can name it too,
    and is then all the scaling there is."""
    causal: bool = False
    """Whether a crosscoder is weakly causal."""
    tied: Literal["none", "per_source", "per_target"] = "none"
    """Which decoders of a cross-layer transcoder are one; needs sites of one width, and refuses whitening."""
    decoder_init: DecoderInit = "random"
    """Starting directions of the decoder rows."""
    decoder_init_norm: float | None = None
    """Starting norm of the decoder rows; by default as the coder's activation wants it."""
    encoder_init: EncoderInit = "auto"
    """Whether encoder rows start as the decoder's; by default those of autoencoders and crosscoders do."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of the parameters."""
    seed: int = 0
    """Seed of the initial weights."""
    start_from: str | None = None
    """Saved dictionary, run folder or hub repository that the run starts from; it has all of the above already, and
    what is given none the less must agree with it (starting weights apart)."""
    start_name: str | None = None
    """Dictionary inside that repository or folder of several."""
    start_at_other_sites: bool = False
    """Whether it may be trained on other sites than those it names."""

    def __post_init__(self) -> None:
        if self.d_sae is not None and self.expansion_factor is not None:
            raise ConfigError("give d_sae or expansion_factor, not both")
        if self.expansion_factor is not None and self.expansion_factor <= 0:
            raise ConfigError(f"expansion_factor must be positive, got {self.expansion_factor}")
        if self.start_from is None and self.start_name is not None:
            raise ConfigError("start_name is a dictionary inside start_from; give that too")


@explains_options
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The held-out evaluation at the end of a run; see ``evaluate``."""

    n_tokens: int | None = from_file("held-out tokens used at most; null for all", is_count, default=200_000)
    """Held-out tokens used at most; null for all."""
    n_loss_tokens: int | None = from_file(
        "of these, how many go through the spliced and ablated runs; null for all", is_count, default=None
    )
    """Of these, how many go through the spliced and ablated runs; null for all."""
    ablation: Literal["zero", "mean", "both"] = from_file(
        "what the site becomes in the ablated run", is_ablation, default="both"
    )
    """What the site becomes in the ablated run; of both, the flat figures are those of zero."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: ModelOptions = ModelOptions()
    """The language model."""
    other_models: dict[str, ModelOptions] = field(default_factory=dict)
    """Further models by name that read the same tokens, for a crosscoder between models; ``model`` is then called
    ``base``. Named in the config file or the environment; the command line can change those named there."""
    tokens: TokenOptions = TokenOptions()
    """The text."""
    stream: StreamOptions = StreamOptions()
    """The activations."""
    cache: CacheSource | None = None
    """A cache of activations in place of all of the above: no model is loaded."""
    coder: CoderOptions = CoderOptions()
    """The dictionary."""
    training: TrainingConfig = TrainingConfig()
    """The training run."""
    evaluation: EvaluationOptions = EvaluationOptions()
    """The evaluation at its end."""

    def __post_init__(self) -> None:
        if MAIN_MODEL in self.other_models:
            raise ConfigError(f"other_models cannot have {MAIN_MODEL!r}: it is what model is called; use another name")


_HARMLESS = {
    "training": (
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_every",
        "checkpoint_tokens",
        "n_checkpoints",
        "keep_best",
        "background_checkpoints",
        "max_hours",
        "eval_every",
    ),
    "cache": ("folder", "revision", "prefetch", "model", "dtype", "device"),  # its content is compared
}
HARMLESS = tuple(f"{section}.{name}" for section, names in _HARMLESS.items() for name in names)
"""Options that may change when a run is resumed: they do not change what is computed."""
