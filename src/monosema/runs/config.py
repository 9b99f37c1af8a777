"""One run, from model to report, as a config without torch: what ``config.yaml`` holds and the command line takes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from monosema.coders.config import ActivationConfig, BatchTopK, BDecMode, DecoderInit, EncoderInit, TokenScaling
from monosema.core.compiling import CompileMode
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options
from monosema.data.config import SOURCE_OPTIONS, TextSource, WhenDry
from monosema.data.packing_config import Packing, Positions
from monosema.training.config import TrainingConfig

MAIN_MODEL = "base"
"""What ``model`` is called where ``other_models`` stand beside it."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The language model; see ``load_model``."""

    source: str = "builtin"
    """Hub id, local folder, or ``builtin``."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: str | None = None
    """Type of the weights; the checkpoint's own by default."""
    device: str | None = None
    """Where the model goes; a GPU where there is one."""
    device_map: str | None = None
    """Placement over several devices (``auto``), in place of ``device``."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; the command line or the environment says so, no file can."""
    tokenizer: str | None = None
    """Another tokenizer than the model's own."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``from_pretrained``; a file can name ``attn_implementation``, ``low_cpu_mem_usage`` and
    ``quantization_config``, the environment any."""
    forward_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments added to every forward pass."""
    fingerprint: str | None = None
    """That of the weights; a run records it, and one that is given is held against the weights loaded."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """The text; see ``load_tokens``."""

    source: str = "stdlib"
    """``stdlib``, a file, a folder, a glob, a URL of these, or the name of a Hugging Face dataset."""
    context_size: int | None = None
    """Tokens in a context; the model's own, at most 256, by default."""
    heldout_fraction: float | None = None
    """Share of documents held out; 0.02, and 0.05 for ``stdlib``, by default."""
    exclude_special_tokens: bool | tuple[int, ...] = True
    """Whether positions of special tokens are left out, or which ids."""
    column: str | None = None
    """Name of the column of text or conversations."""
    max_documents: int | None = None
    """Read only the first so many documents."""
    split: str | None = None
    """Split of a dataset that has several."""
    config_name: str | None = None
    """Configuration of a dataset loaded by name."""
    data_files: tuple[str, ...] | None = None
    """Which files of a dataset loaded by name are read."""
    data_dir: str | None = None
    """Which of its folders."""
    streaming: bool = False
    """Whether a dataset loaded by name is read over the network as needed, without a copy on disk."""
    mixture: dict[str, TextSource] = field(default_factory=dict)
    """Several sources by name, mixed by ``weight``, in place of ``source``. Named in the config file or the
    environment; the command line can change those named there."""
    when_dry: WhenDry = "stop"
    """Whether a mixture ends with the first part that has no more documents, or goes on with the others."""
    n_processes: int = 1
    """Worker processes that tokenise, for tokenizers that are pure Python; the result is the same."""
    packing: Packing = Packing()
    """How documents become contexts."""
    positions: Positions = Positions()
    """The positions of each context that become rows; all by default."""
    attend_across_documents: bool = True
    """Whether documents of one context attend to each other, as in plain packing; else each is computed as if it stood
    alone at the start of a context."""
    in_memory: bool = True
    """Whether all of the text is tokenised at once and kept; else it is read as the run needs it, in flat memory."""

    def __post_init__(self) -> None:
        if self.mixture:
            default = {each.name: each.default for each in fields(self)}
            own = [name for name in ("source", *SOURCE_OPTIONS) if getattr(self, name) != default[name]]
            if own:
                raise ConfigError(f"mixture has parts with options of their own; leave out {' and '.join(own)}")


@explains_options
@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The activations; see ``ActivationStream``."""

    hook_names: tuple[str, ...] = ("blocks.2.hook_resid_post",)
    """Sites read; with ``other_models``, each behind its model's name (``base:blocks.2.hook_resid_post``)."""
    targets: tuple[str, ...] | None = None
    """Sites written, where they are others (a transcoder)."""
    batch_size: int = 2048
    """Rows in a training step."""
    seed: int = 0
    """Seed of the order of contexts and rows."""
    epochs: int = 1
    """How often the text may be read."""
    chunk_contexts: int | None = None
    """Contexts in a shuffled chunk."""
    chunk_bytes: int | None = None
    """Instead, how large a chunk of activations may be."""
    model_batch_size: int = 32
    """Contexts in one forward pass."""
    dtype: str | None = None
    """Type of the activations; the model's own by default."""
    autocast: Literal["bfloat16", "float16"] | None = None
    """Type of a float32 model's products while activations are made."""
    compile: CompileMode | None = None
    """Mode of ``torch.compile`` for the model's blocks meanwhile; ``reduce-overhead`` is refused."""
    prefetch: bool | None = None
    """Whether the next chunk is harvested while one is trained on, which takes the memory of a second chunk; by default
    on GPUs, without ``compile``."""
    outlier_norm_multiple: float | None = 10.0
    """A row whose norm at a site exceeds so many times the median there is left out; null leaves no row out."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What is written of a stream: ``write_cache``."""

    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "bfloat16"
    """Type the activations are stored in; ``int8`` has a scale for each channel of each shard."""
    tokens: int | None = None
    """Rows wanted, in whole chunks; all of the text by default."""
    shard_bytes: int = 2**27
    """About the size of a file."""
    rank: int = 0
    """Which of several processes that write into one folder this one is."""
    n_writers: int = 1
    """How many there are."""


@explains_options
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


@explains_options
@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The tokenizer alone, as it comes with a model."""

    source: str = "builtin"
    """Hub id or local folder of the model or tokenizer, or ``builtin``."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Whether code that comes with it may run; the command line or the environment says so, no file can."""


@explains_options
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
        default = TokenOptions()
        for name in ("exclude_special_tokens", "positions", "in_memory"):
            if getattr(self.tokens, name) != getattr(default, name):
                raise ConfigError(
                    f"tokens.{name} is said where packed tokens are read (monosema train); leave it out here"
                )


@explains_options
@dataclass(frozen=True, kw_only=True)
class CacheSource:
    """A cache of activations in place of model, text and stream; see ``ActivationCache``."""

    folder: str
    """What ``monosema cache`` wrote: a path, a URL, or the hub's name of a dataset repository."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    batch_size: int = 2048
    """Rows in a training step."""
    hook_names: tuple[str, ...] | None = None
    """Sites read, of those in the cache; those it was made for by default."""
    targets: tuple[str, ...] | None = None
    """Sites written, where they are others (a transcoder)."""
    seed: int = 0
    """Seed of the order of shards and rows."""
    epochs: int = 1
    """How often the cache may be read."""
    mix_bytes: int = 2**30
    """Memory for the shards that are mixed."""
    validation_fraction: float = 0.0
    """Share of the shards set aside for evaluation."""
    prefetch: bool = True
    """Whether the next shards are read while some are trained on, which takes as much memory again."""
    model: str | None = None
    """Model that the cache must be of."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """Type it must be stored in."""
    outlier_norm_multiple: float | None = 10.0
    """A row whose norm at a site exceeds so many times the median there is left out; null leaves no row out."""
    fingerprint: str | None = None
    """Content it must have; runs record it."""
    device: str | None = None
    """Where the dictionary is trained; a GPU where there is one."""


@explains_options
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

    n_tokens: int | None = 200_000
    """Held-out tokens used at most; null for all."""
    n_loss_tokens: int | None = None
    """Of these, how many go through the spliced and ablated runs; null for all."""
    ablation: Literal["zero", "mean", "both"] = "both"
    """What the site becomes in the ablated run; of both, the flat figures are those of zero."""


@explains_options
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
