"""``pretokenize``: text in, packed tokens on disk out; the same call goes on with an unfinished folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monosema.core.config import differences, to_plain
from monosema.core.errors import ConfigError, FileError
from monosema.core.files import cannot_write
from monosema.core.progress import Progress
from monosema.data.config import Mixture, TextSource, TokenOptions, load_tokens
from monosema.data.contexts import special_token_ids
from monosema.data.corpus import Corpus, open_parts, token_column
from monosema.data.loading import is_counted, packing_rule_of, resolve_heldout_fraction, workers_of
from monosema.data.packed.manifest import Manifest, TokenPlan, is_packed, read_manifest
from monosema.data.packed.tokenizer import TokenizerIdentity
from monosema.data.packed.writer import TokenWriter
from monosema.data.tokens import Tokens


def write_tokens(
    text: TextSource | Mixture,
    options: TokenOptions,
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int,
    progress: bool | float,
) -> Tokens:
    """``pretokenize`` of ``text``; the options of a source in ``options`` are not used."""
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes must be at least 1, got {shard_bytes}")
    rule = packing_rule_of(options, tokenizer)
    plan = TokenPlan(
        text=text.record() | options.record_of_documents(),
        context_size=rule.context_size,
        heldout_fraction=float(resolve_heldout_fraction(text, options.heldout_fraction)),
        packing=options.packing.resolved(),
        attend_across_documents=options.attend_across_documents,
        marks=rule.record(),
        padding=rule.padding,
        special_token_ids=tuple(sorted(special_token_ids(tokenizer, True))),
        tokenizer=TokenizerIdentity.of(tokenizer),
        shard_contexts=max(1, shard_bytes // (4 * rule.context_size)),
    )
    folder = Path(out)
    if _begun(folder, plan).text is None:
        opened = open_parts(text)
        if isinstance(text, TextSource) and token_column(next(iter(opened.values())), text.column) is not None:
            raise ConfigError(f"{plan.source} is tokenised already; load_tokens reads it as it is")
        bar = Progress(
            "pretokenize",
            None,
            unit="char",
            interval=30.0 if isinstance(progress, bool) else progress,
            enabled=progress is not False,
        )
        with _locked(folder), bar, workers_of(options, tokenizer) as workers:
            writer = TokenWriter(folder, _begun(folder, plan), rule, is_counted=is_counted(text))
            is_wanted = writer.wants() if isinstance(text, TextSource) else None
            corpus = Corpus(text, opened, options, tokenizer, workers, is_wanted)
            for each in writer.divided(corpus):
                writer.add(each)
                bar.advance(len(each.document.text))
            writer.finish(corpus)
    return load_tokens(folder, tokenizer)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make ``folder`` and keep other processes from writing there."""
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise FileError(f"another process is writing to {folder}; wait for it, or choose another out=") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _begun(folder: Path, plan: TokenPlan) -> Manifest:
    """The manifest in ``folder``, or a new one where there is none; ``ConfigError`` where it has another plan."""
    if not is_packed(folder):
        if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no packed tokens; choose another folder")
        return Manifest(plan=plan)
    manifest = read_manifest(folder)
    # a tokenizer is what it does, wherever it was loaded from
    begun = replace(manifest.plan, tokenizer=replace(manifest.plan.tokenizer, name=plan.tokenizer.name))
    different = differences(to_plain(begun), to_plain(plan))
    if different:
        raise ConfigError(
            f"{folder} holds tokens that were begun with other options ({'; '.join(different)}); choose another "
            "folder, or delete this one"
        )
    if manifest.text is None and manifest.heldout_rule is None and (manifest.train.shards or manifest.heldout.shards):
        raise ConfigError(
            f"{folder} was begun by an older version, which held out other documents, and is not finished; delete it, "
            "or choose another folder"
        )
    return manifest
