"""Packed tokens from their config alone: what the command line calls."""

from __future__ import annotations

from pathlib import Path

from monosema.core.errors import refuse_misspelling
from monosema.data import Tokens, pretokenize
from monosema.data.stdlib import STDLIB
from monosema.models.load import load_tokenizer
from monosema.runs.config import PretokenizeConfig
from monosema.runs.session import DEFAULT_CONTEXT_SIZE, given


def make_tokens(config: PretokenizeConfig, out: Path, *, progress: bool | float = True) -> Tokens:
    """Load the tokenizer and write the text's tokens to ``out``."""
    refuse_misspelling("text", config.tokens.source, STDLIB)
    tokenizer = load_tokenizer(**given(config.tokenizer))
    options = given(config.tokens)
    options.pop("exclude_special_tokens")
    size = options.pop("context_size", min(tokenizer.model_max_length, DEFAULT_CONTEXT_SIZE))
    source = options.pop("source")
    return pretokenize(source, tokenizer, size, out, shard_bytes=config.shard_bytes, progress=progress, **options)
