"""``monosema cache``: write a model's activations to disk; the same command goes on with an unfinished cache.

``monosema cache shuffle FOLDER --out NEW`` writes the rows of a cache in another order, ``monosema cache export FOLDER
--out NEW`` in sae-lens' layout or, with ``--format npy``, as one array with drrik's metadata, and ``monosema cache push
FOLDER owner/name`` uploads it to the hub.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monosema.cli.option_files import read_dotenv, use_dotenv
from monosema.cli.options import add_logging, configure_logging, load_libraries, parse, whole
from monosema.cli.output import show
from monosema.cli.wording import FLAGS
from monosema.core.words import counted
from monosema.runs.config import CacheConfig

if TYPE_CHECKING:
    from monosema.data.cache import Manifest


def run(arguments: Sequence[str]) -> int:
    """Parse, write, print."""
    if arguments and arguments[0] in _ACTIONS:
        return _ACTIONS[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(
        prog="monosema cache", description=__doc__, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="folder of the cache, or URL; by default activations/{text}/{model}/{hook}")
    parser.add_argument("--progress-every", type=float, default=30.0, help="seconds between lines of progress")
    parsed = parse(CacheConfig, arguments, parser, {})
    load_libraries("monosema.runs.cache")
    from monosema.runs.cache import default_folder, make_cache

    out = parsed.extra.out or default_folder(parsed.config)
    manifest = make_cache(parsed.config, out, progress=_progress(parsed.extra))
    show(f"{out}: this writer is done, others are not" if manifest is None else _summary(manifest, out))
    return 0


def _shuffle(arguments: Sequence[str]) -> int:
    parser = _parser("shuffle", "Write all rows of a cache in another order; the same command goes on with it.")
    parser.add_argument("--seed", type=whole, default=0, help="decides the order (default 0)")
    parser.add_argument("--memory-bytes", type=whole, default=2**32, help="for rows in hand (default 4 GiB)")
    parser.add_argument("--shard-bytes", type=whole, default=2**27, help="about the size of a file (default 128 MiB)")
    extra = _parsed(parser, arguments)
    load_libraries("monosema.runs.cache")
    from monosema.runs.cache import shuffle

    options = {"seed": extra.seed, "memory_bytes": extra.memory_bytes, "shard_bytes": extra.shard_bytes}
    show(_summary(shuffle(extra.folder, extra.out, **options, progress=_progress(extra)), extra.out))
    return 0


def _export(arguments: Sequence[str]) -> int:
    parser = _parser("export", "Write a cache for others to read.")
    parser.add_argument(
        "--format",
        choices=("arrow", "npy"),
        default="arrow",
        help="arrow: sae-lens' layout, a datasets folder with a column for each hook (default); npy: activations.npy "
        "and metadata.json, as drrik's",
    )
    parser.add_argument("--context-size", type=whole, help="arrow: rows in a context; the text's by default")
    extra = _parsed(parser, arguments)
    load_libraries("monosema.runs.cache")
    from monosema.runs.cache import export

    n_left = export(extra.folder, extra.out, to=extra.format, context_size=extra.context_size)
    show(f"{extra.out}" + (f" (without the last {counted(n_left, 'row')}, which fill no context)" if n_left else ""))
    return 0


def _push(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="monosema cache push", description="Upload a cache to the hub, in one commit."
    )
    parser.add_argument("folder", help="the cache's folder")
    parser.add_argument("repository", help="dataset repository, owner/name; made where there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch; main by default")
    add_logging(parser)
    extra = _parsed(parser, arguments)
    load_libraries("monosema.data.cache")
    from monosema.data.cache import push_cache

    show(push_cache(extra.folder, extra.repository, private=extra.private, revision=extra.revision))
    return 0


_ACTIONS = {"shuffle": _shuffle, "export": _export, "push": _push}


def _parser(action: str, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"monosema cache {action}", description=text)
    parser.add_argument("folder", help="the cache: a folder, a URL, or owner/name on the hub")
    parser.add_argument("--out", required=True, help="the new folder" + ("" if action == "export" else " or URL"))
    parser.add_argument("--progress-every", type=float, default=30.0, help="seconds between lines of progress")
    add_logging(parser)
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    FLAGS.add_arguments(parser)
    extra = parser.parse_args(list(arguments))
    configure_logging(extra)
    use_dotenv(read_dotenv())
    return extra


def _progress(extra: argparse.Namespace) -> bool | float:
    return False if extra.quiet else float(extra.progress_every)


def _summary(manifest: Manifest, out: str | Path) -> str:
    return (
        f"{counted(manifest.n_rows, 'row')} of {', '.join(name for name, _ in manifest.plan.shards.sites)} in "
        f"{counted(len(manifest.shards), 'shard')} of {manifest.plan.dtype}, {manifest.n_bytes / 2**30:.2f} GiB: {out}"
    )
