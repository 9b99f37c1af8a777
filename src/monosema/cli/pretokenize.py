"""``monosema pretokenize``: write packed tokens to disk; the same command goes on with an unfinished folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monosema.cli.options import load_libraries, parse
from monosema.cli.output import show
from monosema.core.errors import ConfigError
from monosema.core.words import counted
from monosema.runs.config import PretokenizeConfig


def run(arguments: Sequence[str]) -> int:
    """Parse, write, push where asked to, print."""
    parser = argparse.ArgumentParser(prog="monosema pretokenize", description=__doc__, add_help=False)
    parser.add_argument("--out", type=Path, help="folder of the tokens (required)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="dataset repository on the hub to upload to (HF_TOKEN)")
    parser.add_argument("--private", action="store_true", help="whether a repository that --push makes is private")
    parser.add_argument("--progress-every", type=float, default=30.0, help="seconds between lines of progress")
    parsed = parse(PretokenizeConfig, arguments, parser)
    extra = parsed.extra
    if extra.out is None:
        parser.error("--out is required: the folder for the tokens")
    if extra.private and extra.push is None:
        raise ConfigError("--private says how a repository is made; name it with --push owner/name")
    load_libraries("monosema.runs.pretokenize")
    from monosema.data import push_pretokenized
    from monosema.data.order import indexed
    from monosema.runs.pretokenize import make_tokens

    tokens = make_tokens(parsed.config, extra.out, progress=False if extra.quiet else extra.progress_every)
    show(
        f"{indexed(tokens.train).n_tokens:,} training and {counted(tokens.heldout.n_tokens, 'held-out token')} in "
        "contexts of "
        f"{tokens.context_size}: {extra.out}"
    )
    if extra.push is not None:
        show(push_pretokenized(extra.out, extra.push, private=extra.private))
    return 0
