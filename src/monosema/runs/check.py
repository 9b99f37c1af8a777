"""What is wrong with a run's options by themselves: found before a model or a text is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from monosema import hub
from monosema.coders.activations.family import FixedCount
from monosema.core.devices import parse_dtype
from monosema.core.errors import ConfigError, refuse_misspelling
from monosema.data.cache.rows import check_cache_options
from monosema.data.loading import resolve_heldout_fraction
from monosema.data.named_models import refuse_repeated_sites
from monosema.data.prefetch import check_prefetch
from monosema.data.sites import RowLayout
from monosema.data.stdlib import STDLIB
from monosema.data.stream import check_sizes
from monosema.evaluation.evaluate import ablations_of
from monosema.evaluation.measure import check_counts
from monosema.models.compiled import refuse_cuda_graphs
from monosema.models.load import BUILTIN
from monosema.runs.config import CacheSource, CoderOptions, ModelOptions, RunConfig, StreamOptions, TokenOptions
from monosema.runs.make import make_coder
from monosema.training.resolve import check_training
from monosema.training.terms import Matryoshka

_WIDTH, _MANY = 2, 2**16
"""Width of a site, and most latents, of the small coder that stands for one whose widths are not known yet."""


def check_run(config: RunConfig) -> None:
    """Raise what ``config`` would be refused for later, as far as neither the model's widths nor the text decide it.

    Raises ``ConfigError`` for options that are out of range or contradict each other, ``UnknownNameError`` for a
    misspelt built-in model or text, ``FileError`` where ``training.sparse_connection.path`` holds no dictionary.
    """
    if config.cache is None:
        _check_source(config)
    else:
        _check_cache(config, config.cache)
    evaluation = config.evaluation
    check_counts(n_tokens=evaluation.n_tokens, n_loss_tokens=evaluation.n_loss_tokens)
    ablations_of(evaluation.ablation)
    if config.training.sparse_connection is not None:
        hub.load(config.training.sparse_connection.path, device="cpu")
    if config.coder.start_from is None and config.cache is None:  # a cache's widths are known when it is opened
        _check_coder(config)


def _check_source(config: RunConfig) -> None:
    for model in config.other_models.values():
        _check_model(model)
    check_rows(config.model, config.tokens, config.stream)
    heldout = resolve_heldout_fraction(config.tokens.source, config.tokens.heldout_fraction)
    if heldout == 0 and config.training.eval_every > 0:
        raise ConfigError(
            "training.eval_every needs held-out text; raise tokens.heldout_fraction, or leave eval_every at 0"
        )


def _check_cache(config: RunConfig, cache: CacheSource) -> None:
    default = RunConfig()
    for name in ("model", "other_models", "tokens", "stream"):
        if getattr(config, name) != getattr(default, name):
            raise ConfigError(f"cache.folder takes the place of {name}: leave out {name}.*, or cache.*")
    check_cache_options(cache.batch_size, cache.epochs, cache.mix_bytes, cache.validation_fraction)
    if cache.validation_fraction == 0 and config.training.eval_every > 0:
        raise ConfigError("training.eval_every needs rows set aside; raise cache.validation_fraction, or leave it at 0")


def check_rows(model: ModelOptions, tokens: TokenOptions, stream: StreamOptions) -> None:
    """The same of what activations are made from."""
    _check_model(model)
    for source in (tokens.source, *(part.source for part in tokens.mixture.values())):
        refuse_misspelling("text", str(source), STDLIB)
    if tokens.context_size is not None:
        tokens.positions.of(tokens.context_size)
    _check_stream(stream)


def _check_model(model: ModelOptions) -> None:
    refuse_misspelling("model", model.source, BUILTIN)
    if model.dtype is not None:
        parse_dtype(model.dtype)


def _check_stream(options: StreamOptions) -> None:
    check_sizes(
        options.batch_size, options.model_batch_size, options.epochs, options.chunk_contexts, options.chunk_bytes
    )
    check_prefetch(options.prefetch, options.compile)
    for names in (options.hook_names, options.targets):
        if names is not None:
            refuse_repeated_sites(names)
    if options.dtype is not None:
        parse_dtype(options.dtype)
    refuse_cuda_graphs(options.compile)


def _check_coder(config: RunConfig) -> None:
    """Make the coder with narrow sites, and hold it against the training options."""
    options = config.coder
    d_sae = options.d_sae
    if d_sae is None or d_sae > _MANY:
        d_sae = _MANY
        if max(_counts(config)) > _MANY:
            return
    small: CoderOptions = replace(options, d_sae=d_sae, expansion_factor=None)
    reads, targets = config.stream.hook_names, config.stream.targets
    check_training(make_coder(small, _narrow(reads, targets)), config.training, config.stream.batch_size)


def _narrow(reads: Sequence[str], targets: Sequence[str] | None) -> RowLayout:
    read = tuple((name, _WIDTH) for name in reads)
    return RowLayout(read, read if targets is None else tuple((name, _WIDTH) for name in targets))


def _counts(config: RunConfig) -> tuple[float, ...]:
    """The options that the number of latents bounds."""
    levels = config.training.levels
    widths = (levels.widths or ()) if isinstance(levels, Matryoshka) else ()
    activation = config.coder.activation
    k = activation.k if isinstance(activation, FixedCount) else 0
    return (k, config.training.k_start or 0, *widths)
