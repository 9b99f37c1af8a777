"""``pretokenize``: text in, packed tokens on disk out; the same call goes on with an unfinished folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monosema.core.config import differences, to_plain
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.core.files import cannot_write
from monosema.core.progress import Progress
from monosema.data.documents import Document, documents_from, open_source
from monosema.data.packing import PackingRule
from monosema.data.pretokenized.manifest import Manifest, TokenPlan, is_pretokenized, read_manifest
from monosema.data.pretokenized.tokenizer import TokenizerIdentity
from monosema.data.pretokenized.writer import TokenWriter
from monosema.data.tokens import (
    Tokens,
    load_tokens,
    packing_rule,
    resolve_heldout_fraction,
    source_name,
    special_token_ids,
    token_column,
    tokenise,
)

logger = logging.getLogger("monosema.data.pretokenized")

SHARD_BYTES = 2**26
"""About the size of a shard: seconds of work to lose at most, and few enough files."""
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 2**22
"""A batch is that many documents, or as many as hold so much text."""
_SAMPLE = 64


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
    shard_bytes: int = SHARD_BYTES,
    progress: bool | float = True,
) -> Tokens:
    """Write what ``load_tokens`` makes of ``source`` into the folder ``out``, and open it: the same contexts on the
    same sides, memory-mapped.

    The folder is a Hugging Face ``DatasetDict`` (``train``, ``heldout``; column ``input_ids``) with sae-lens' metadata;
    the same options write the same bytes. Every file is written whole or not at all: after a kill at any moment the
    same call reads the documents it has packed without tokenising them, and goes on behind the last shard.

    Args:
        source: text as of ``load_tokens``; not what is tokenised already.
        tokenizer: a transformers tokenizer.
        context_size: tokens in a context.
        out: the folder; a finished one of the same options is opened.
        heldout_fraction, column, max_documents, split, config_name, data_files, data_dir: as of ``load_tokens``.
        shard_bytes: about the size of a file.
        progress: whether to show it, or seconds between lines.

    Raises:
        ConfigError: options out of range; tokens in ``out`` that were begun with others; a source already tokenised.
        FileError: not enough room on the disk (before a shard is written), another process writes there, or it cannot
            be written.
        DataError: no text, too little for one training context, or other text than ``out`` was begun with.
    """
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes must be at least 1, got {shard_bytes}")
    options = {"split": split, "name": config_name, "data_files": data_files, "data_dir": data_dir}
    options = {key: value for key, value in options.items() if value is not None}
    rule = packing_rule(tokenizer, context_size)
    plan = TokenPlan(
        source=source_name(source),
        options={key: str(value) for key, value in options.items()},
        column=column,
        max_documents=max_documents,
        **asdict(rule),
        heldout_fraction=float(resolve_heldout_fraction(source, heldout_fraction)),
        special_token_ids=tuple(sorted(special_token_ids(tokenizer, True))),
        tokenizer=TokenizerIdentity.of(tokenizer),
        shard_contexts=max(1, shard_bytes // (4 * context_size)),
    )
    folder = Path(out)
    if _begun(folder, plan).text is None:
        opened = open_source(source, options)
        if token_column(opened, column) is not None:
            raise ConfigError(f"{plan.source} is tokenised already; load_tokens reads it as it is")
        documents = documents_from(opened, column=column, max_documents=max_documents)
        interval = 30.0 if isinstance(progress, bool) else progress
        n_characters = _n_characters(documents)
        bar = Progress("pretokenize", n_characters, unit="char", interval=interval, enabled=progress is not False)
        with _locked(folder), bar:
            _write(folder, _begun(folder, plan), rule, tokenizer, documents, bar)
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
    if not is_pretokenized(folder):
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
    return manifest


def _write(
    folder: Path, begun: Manifest, rule: PackingRule, tokenizer: Any, documents: Iterable[Document], bar: Progress
) -> None:
    n_written = sum(shard.n_bytes for side in (begun.train, begun.heldout) for shard in side.shards)
    writer: TokenWriter | None = None
    for batch in _batches(documents):
        if writer is None:
            _require_room(folder, batch[:_SAMPLE], tokenizer, bar.total, n_written)
            writer = TokenWriter(folder, begun, rule, tokenizer)
        writer.add(batch)
        bar.advance(sum(len(document.text) for document in batch))
    if writer is None:
        raise DataError("the text is empty")
    writer.finish()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents that are not empty, together as they are tokenised; cut alike every time."""
    batch: list[Document] = []
    n_characters = 0
    for document in documents:
        if document.text.strip():
            batch.append(document)
            n_characters += len(document.text)
            if len(batch) == BATCH_DOCUMENTS or n_characters >= BATCH_CHARACTERS:
                yield batch
                batch, n_characters = [], 0
    if batch:
        yield batch


def _n_characters(documents: Iterable[Document]) -> int | None:
    """Of all documents; None where they are not at hand before they are read."""
    return sum(len(document.text) for document in documents) if isinstance(documents, Sequence) else None


def _require_room(
    folder: Path, sample: Sequence[Document], tokenizer: Any, n_characters: int | None, n_written: int
) -> None:
    """Say what the whole text takes on disk, and raise ``FileError`` where there is less."""
    free = shutil.disk_usage(folder).free
    if n_characters is None:
        logger.info("%s: %.2f GiB free; the length of the text is not known before it is read", folder, free / 2**30)
        return
    per_character = sum(map(len, tokenise(sample, tokenizer))) / sum(len(document.text) for document in sample)
    n_tokens = per_character * n_characters
    needed = max(0.0, 4 * n_tokens - n_written)
    logger.info(
        "about %s tokens in %s: %.2f GiB to be written, %.2f GiB free",
        f"{n_tokens:,.0f}",
        folder,
        needed / 2**30,
        free / 2**30,
    )
    if needed > free:
        raise FileError(
            f"the tokens need about {needed / 2**30:.2f} GiB more, {folder} has {free / 2**30:.2f} GiB free; free "
            "some, choose another place, or lower max_documents"
        )
