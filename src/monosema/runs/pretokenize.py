"""Packed tokens from their config alone: what the command line calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monosema.core.errors import refuse_misspelling
from monosema.data import Tokens
from monosema.data.packed.write import write_tokens
from monosema.data.stdlib import STDLIB
from monosema.runs.config import PretokenizeConfig
from monosema.runs.session import DEFAULT_CONTEXT_SIZE


def make_tokens(config: PretokenizeConfig, out: Path, *, progress: bool | float = True) -> Tokens:
    """Load the tokenizer and write the text's tokens to ``out``."""
    tokens = config.tokens
    for each in (tokens.source, *(part.source for part in tokens.mixture.values())):
        refuse_misspelling("text", str(each), STDLIB)
    tokenizer = config.tokenizer.build()
    if tokens.context_size is None:
        tokens = replace(tokens, context_size=min(tokenizer.model_max_length, DEFAULT_CONTEXT_SIZE))
    return write_tokens(tokens.text(), tokens, tokenizer, out, shard_bytes=config.shard_bytes, progress=progress)
