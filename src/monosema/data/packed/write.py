"""``pretokenize``: text in, packed tokens on disk out; the same call goes on with an unfinished folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monosema.core.config import differences, to_plain
from monosema.core.errors import ConfigError, FileError
from monosema.core.files import cannot_write
from monosema.core.peers import explains_options
from monosema.core.progress import Progress
from monosema.data.config import TextSource
from monosema.data.contexts import special_token_ids
from monosema.data.corpus import Corpus, open_parts, token_column
from monosema.data.loading import is_counted, load_tokens, resolve_heldout_fraction, text_source
from monosema.data.packed.manifest import Manifest, TokenPlan, is_packed, read_manifest
from monosema.data.packed.tokenizer import TokenizerIdentity
from monosema.data.packed.writer import TokenWriter
from monosema.data.packing import packing_rule
from monosema.data.packing_config import Packing
from monosema.data.tokenise import encode
from monosema.data.tokens import Tokens
from monosema.data.workers import Workers

SHARD_BYTES = 2**26
"""About the size of a shard: seconds of work to lose at most, and few enough files."""


@explains_options
def pretokenize(
    source: Any,
    tokenizer: Any,
    context_size: int,
    out: str | os.PathLike[str],
    *,
    heldout_fraction: float | None = None,
    column: str | None = None,
    max_documents: int | None = None,
    split: str | None = None,
    config_name: str | None = None,
    data_files: Any = None,
    data_dir: str | None = None,
    streaming: bool = False,
    n_processes: int = 1,
    packing: Packing | None = None,
    attend_across_documents: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: bool | float = True,
) -> Tokens:
    """Write what ``load_tokens`` makes of ``source`` into the folder ``out``, and open it: the same contexts on the
    same sides, memory-mapped.

    The folder is a Hugging Face ``DatasetDict`` (``train``, ``heldout``; column ``input_ids``, and ``documents`` where
    contexts are padded or documents do not attend to each other) with sae-lens' metadata; the same options write the
    same bytes. Every file is written whole or not at all: after a kill at any moment the same call goes on behind the
    last shard, and reads the documents before it without tokenising them (but those of a mixture, whose tokens decide
    its order).

    Args:
        source: text as of ``load_tokens``; not what is tokenised already.
        tokenizer: a transformers tokenizer.
        context_size: tokens in a context.
        out: the folder; a finished one of the same options is opened.
        heldout_fraction, column, max_documents, split, config_name, data_files, data_dir, streaming, n_processes,
            packing, attend_across_documents: as of ``load_tokens``; the other options are given where it is read.
        shard_bytes: about the size of a file.
        progress: whether to show it, or seconds between lines.

    Raises:
        ConfigError: options out of range; tokens in ``out`` that were begun with others; a source already tokenised.
        FileError: not enough room on the disk (the same call goes on later), another process writes there, or it cannot
            be written.
        DataError: no text, too little for one training context, or other text than ``out`` was begun with.
    """
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes must be at least 1, got {shard_bytes}")
    text = text_source(
        source,
        column=column,
        max_documents=max_documents,
        split=split,
        config_name=config_name,
        data_files=data_files,
        data_dir=data_dir,
        streaming=streaming,
    )
    packing = (packing or Packing()).resolved()
    rule = packing_rule(packing, tokenizer, context_size)
    plan = TokenPlan(
        text=text.record(),
        context_size=context_size,
        heldout_fraction=float(resolve_heldout_fraction(source, heldout_fraction)),
        packing=packing,
        attend_across_documents=attend_across_documents,
        marks=rule.record(),
        padding=rule.padding,
        special_token_ids=tuple(sorted(special_token_ids(tokenizer, True))),
        tokenizer=TokenizerIdentity.of(tokenizer),
        shard_contexts=max(1, shard_bytes // (4 * context_size)),
    )
    folder = Path(out)
    if _begun(folder, plan).text is None:
        opened = open_parts(text)
        alone = isinstance(text, TextSource)
        if alone and token_column(next(iter(opened.values())), column) is not None:
            raise ConfigError(f"{plan.source} is tokenised already; load_tokens reads it as it is")
        bar = Progress(
            "pretokenize",
            None,
            unit="char",
            interval=30.0 if isinstance(progress, bool) else progress,
            enabled=progress is not False,
        )
        with (
            _locked(folder),
            bar,
            Workers(tokenizer, n_processes, encode) if n_processes != 1 else nullcontext() as workers,
        ):
            writer = TokenWriter(folder, _begun(folder, plan), rule, is_counted=is_counted(text))
            corpus = Corpus(text, opened, tokenizer, workers, writer.wants() if alone else None)
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
