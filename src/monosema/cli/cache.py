"""``monosema cache``: write a model's activations to disk; the same command goes on with an unfinished cache."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monosema.cli.options import parse
from monosema.runs.config import CacheConfig


def run(arguments: Sequence[str]) -> int:
    """Parse, write, print."""
    parser = argparse.ArgumentParser(prog="monosema cache", description=__doc__, add_help=False)
    parser.add_argument("--out", type=Path, help="folder of the cache (required)")
    parser.add_argument("--progress-every", type=float, default=30.0, help="seconds between lines of progress")
    parsed = parse(CacheConfig, arguments, parser, {})
    if parsed.extra.out is None:
        parser.error("--out is required: the folder for the cache")
    from monosema.runs.cache import make_cache

    progress = False if parsed.extra.quiet else parsed.extra.progress_every
    manifest = make_cache(parsed.config, parsed.extra.out, progress=progress)
    if manifest is None:
        print(f"{parsed.extra.out}: this writer is done, others are not")
        return 0
    print(
        f"{manifest.n_rows:,} rows of {', '.join(name for name, _ in manifest.plan.shards.sites)} in "
        f"{len(manifest.shards)} shards of {manifest.plan.dtype}, {manifest.n_bytes / 2**30:.2f} GiB: "
        f"{parsed.extra.out}"
    )
    return 0
