"""Dictionaries trained from caches beside the same run live: FVE on held-out text, and the caches' sizes.

    python benchmarks/cache_quality.py --write-docs

The caches are written from one stream, with as many rows in a file whatever the type, so that all serve the same rows
in the same order and differ in precision alone. The live run reads the same text through a window that holds all of it,
so that it mixes as many rows as the caches do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from final_fve import add_arguments, cells, header, heldout_rows, setting, spread, trained_fve
from report import command, markdown_table, refresh_block

import monosema as ms
from monosema.data import write_cache
from monosema.data.cache.shards import DTYPES, ShardLayout

SHARD_ROWS = 2**14
LIVE = "live, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16", "int8"])
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = ms.load_model("builtin", dtype="float32")
    tokens = ms.load_tokens("stdlib", model.tokenizer, 256)
    heldout = heldout_rows(model, tokens.heldout, options.site, options.heldout_tokens)

    def stream(seed: int = 0) -> ms.ActivationStream:
        window = int(1.1 * options.tokens / tokens.context_size)
        fresh = ms.ActivationStream(
            model, tokens, options.site, batch_size=options.batch_size, chunk_contexts=window, seed=seed
        )
        fresh.plan(options.tokens)
        return fresh

    results: dict[str, list[float]] = {LIVE: []}
    bytes_a_row: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in options.dtypes:
            row_bytes = ShardLayout(((options.site, model.d_model),), dtype).row_bytes
            folder = Path(scratch) / dtype
            manifest = write_cache(
                stream(), folder, tokens=options.tokens, dtype=dtype, shard_bytes=SHARD_ROWS * row_bytes
            )
            assert manifest is not None
            bytes_a_row[dtype] = sum(file.stat().st_size for file in folder.iterdir()) / manifest.n_rows
            results[dtype] = []
        for seed in range(options.seeds):
            results[LIVE].append(trained_fve(stream(seed), heldout, seed, options))
            for dtype in options.dtypes:
                cache = ms.ActivationCache(Path(scratch) / dtype, options.batch_size, seed=seed)
                results[dtype].append(trained_fve(cache, heldout, seed, options))
            print(f"seed {seed}: { ({name: each[-1] for name, each in results.items()}) }", file=sys.stderr, flush=True)
    live = results[LIVE]
    rows = []
    for name, each in results.items():
        size = bytes_a_row.get(name)
        sizes = ["", ""] if size is None else [f"{size:.1f}", f"{size / bytes_a_row['float32']:.4f}"]
        rows.append([name if size is None else f"cache, {name}", *cells(each, live), *sizes])
    text = (
        f"{markdown_table([*header('rows', range(options.seeds)), 'bytes a row', 'of float32'], rows)}\n\n"
        f"The live runs' seeds are {spread(live):.5f} apart. {setting(options, len(heldout))}.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("cache-quality", text)


if __name__ == "__main__":
    main()
