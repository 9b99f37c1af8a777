"""Packed tokens from their config alone: what the command line calls."""

from __future__ import annotations

from pathlib import Path

from monosema.core.errors import refuse_misspelling
from monosema.data import Tokens, pretokenize
from monosema.data.config import Mixture
from monosema.data.stdlib import STDLIB
from monosema.models.load import load_tokenizer
from monosema.runs.config import PretokenizeConfig
from monosema.runs.session import DEFAULT_CONTEXT_SIZE, given


def make_tokens(config: PretokenizeConfig, out: Path, *, progress: bool | float = True) -> Tokens:
    """Load the tokenizer and write the text's tokens to ``out``."""
    tokens = config.tokens
    for each in (tokens.source, *(part.source for part in tokens.mixture.values())):
        refuse_misspelling("text", str(each), STDLIB)
    tokenizer = load_tokenizer(**given(config.tokenizer))
    options = given(tokens)
    source, mixture, when_dry = (options.pop(name) for name in ("source", "mixture", "when_dry"))
    for name in ("exclude_special_tokens", "positions", "in_memory"):
        del options[name]
    return pretokenize(
        Mixture(parts=mixture, when_dry=when_dry) if mixture else source,
        tokenizer,
        options.pop("context_size", min(tokenizer.model_max_length, DEFAULT_CONTEXT_SIZE)),
        out,
        shard_bytes=config.shard_bytes,
        progress=progress,
        **options,
    )
