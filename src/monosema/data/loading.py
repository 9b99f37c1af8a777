"""``load_tokens``: text in, packed contexts with a fixed held-out split out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monosema.core.config import to_plain
from monosema.core.errors import ConfigError, DataError
from monosema.core.logs import get_logger
from monosema.core.peers import explains_options
from monosema.core.words import counted
from monosema.data.config import MIXTURE, Mixture, TextSource
from monosema.data.contexts import Contexts, RowRule, special_token_ids
from monosema.data.corpus import Corpus, open_parts, token_column
from monosema.data.heldout import WINDOW_DOCUMENTS, Divider, HeldoutRule, choose_by_hash
from monosema.data.packed.contexts import DOCUMENTS, StoredContexts
from monosema.data.packed.manifest import is_packed
from monosema.data.packed.read import StoredTokens, open_packed
from monosema.data.packing import (
    PADDED_MODES,
    PADDING,
    PackedBlock,
    PackingRule,
    document_numbers,
    joined,
    pack_blocks,
    packing_rule,
)
from monosema.data.packing_config import Packing, Positions
from monosema.data.pretokenised import find_metadata, framing, opening_token, read_rows
from monosema.data.reading import BlockReader, choose_streamed, gather_heldout, open_readers, streamed_split
from monosema.data.stdlib import HELDOUT_FRACTION as STDLIB_HELDOUT_FRACTION
from monosema.data.stdlib import STDLIB
from monosema.data.tokenise import encode
from monosema.data.tokens import Tokens, TokenSplit
from monosema.data.workers import Workers

logger = get_logger("monosema.data")

DEFAULT_HELDOUT_FRACTION = 0.02


@explains_options
def load_tokens(
    source: Any,
    tokenizer: Any,
    context_size: int | None = None,
    *,
    heldout_fraction: float | None = None,
    exclude_special_tokens: bool | Collection[int] = True,
    column: str | None = None,
    max_documents: int | None = None,
    split: str | None = None,
    config_name: str | None = None,
    data_files: Any = None,
    data_dir: str | None = None,
    streaming: bool = False,
    n_processes: int = 1,
    packing: Packing | None = None,
    positions: Positions | None = None,
    attend_across_documents: bool = True,
    in_memory: bool = True,
) -> Tokens:
    """Tokenise ``source``, make contexts of exactly ``context_size`` of it, and hold part of its documents out.

    Args:
        source: ``"stdlib"``; a file (.txt, .md, .rst, .py, .json, .jsonl, .ndjson, .parquet; also .gz and .zst), a
            folder of them, a glob, a URL of these that fsspec knows (``s3://bucket/*.jsonl.zst``); an iterable of
            strings, of records or of ``pathlib.Path``, or a function that returns one; a Hugging Face dataset, one
            saved on disk, or its name; a dataset with a ``tokens`` or ``input_ids`` column, whose
            ``attention_mask``, where there is one, says what is padding; a ``Mixture``; a
            folder that ``pretokenize`` wrote, which is memory-mapped and says how text was read and packed.
        tokenizer: a transformers tokenizer (``model.tokenizer``).
        context_size: tokens in a context. May be left out for pretokenised data, whose first row then decides.
        heldout_fraction: share of the documents held out, chosen by a hash of the text (of the module's name for
            ``"stdlib"``); 0 for none. Default 0.02, and 0.05 for ``"stdlib"``. At least one context is held out where
            the text has two; see ``HeldoutRule`` and ``choose_heldout``.
        exclude_special_tokens: positions holding these tokens never become training rows: True for the tokenizer's
            special tokens, False for none, or a list of ids.
        column: name of the column of text, of conversations (lists of {role, content} or {from, value}, written by the
            tokenizer's chat template), or of tokens.
        max_documents: read only the first so many documents.
        split: split of a dataset that has several.
        config_name, data_files (a name or several), data_dir, streaming: passed on when a dataset is loaded by name.
        n_processes: worker processes that tokenise, for tokenizers that are pure Python; the result is the same.
        packing: how documents become contexts; one after another, without padding, by default.
        positions: the positions of each context that become rows; all by default.
        attend_across_documents: False cuts attention between the documents of a context: each is computed as if it
            stood alone at the start of one. What precedes a document (BOS, separator) is its first token; in
            pretokenised rows every BOS (EOS where there is none) begins one.
        in_memory: False reads text as a run needs it, in flat memory whatever its length: contexts are drawn from a
            pool of at least eight chunks, a streamed dataset's shards are taken in an order of the seed's, and a run
            is resumed to the bit. The held-out side is then of the first documents only, 262,144 tokens of it.

    Raises:
        ConfigError: options that are out of range or contradict each other or the source (also other ones than a folder
            of ``pretokenize``'s was written with), or a token that the tokenizer lacks.
        DataError: no text, text that cannot be read, or too little for one training context.
        FileError: a file that is missing or damaged; a folder of ``pretokenize``'s that is not finished.
    """
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
    wanted = _Wanted(
        tokenizer=tokenizer,
        context_size=context_size,
        exclude_special_tokens=exclude_special_tokens,
        packing=packing or Packing(),
        positions=positions or Positions(),
        attend_across_documents=attend_across_documents,
    )
    if isinstance(text, TextSource) and is_packed(source):
        if not in_memory or n_processes != 1:
            raise ConfigError(
                f"{source} holds packed tokens, which are memory-mapped; leave out in_memory, n_processes"
            )
        return _checked(_from_packed(Path(source), wanted, text.chosen() | {"heldout_fraction": heldout_fraction}))
    fraction = resolve_heldout_fraction(source, heldout_fraction)
    opened = open_parts(text)
    record = {
        **text.record(),
        "context_size": context_size,
        "heldout_fraction": fraction,
        **wanted.record(),
        "packing": to_plain(wanted.packing.resolved()),
        "attend_across_documents": attend_across_documents,
        "in_memory": in_memory,
    }
    ids = token_column(next(iter(opened.values())), column) if isinstance(text, TextSource) else None
    if ids is not None:
        if not in_memory:
            raise ConfigError("pretokenised rows are read at once; leave out in_memory=False")
        assert isinstance(text, TextSource)
        return _checked(_from_rows(next(iter(opened.values())), ids, text, wanted, record))
    if in_memory:
        return _checked(_from_text(text, opened, wanted, record, n_processes))
    if n_processes != 1:
        raise ConfigError("n_processes tokenises all at once; with in_memory=False leave it out")
    return _checked(_streamed(text, opened, wanted, record))


def _checked(tokens: Tokens) -> Tokens:
    """``tokens``; it is logged where text should have been held out and none is."""
    if tokens.record["heldout_fraction"] > 0 and tokens.heldout.n_contexts == 0:
        logger.warning("nothing is held out: %s", tokens.how_to_hold_out)
    return tokens


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What contexts and rows ``load_tokens`` was asked for, whatever the source."""

    tokenizer: Any
    """None where there are token ids already."""
    context_size: int | None
    """None for that of the source."""
    exclude_special_tokens: bool | Collection[int]
    """The tokens whose positions are no rows."""
    packing: Packing
    """How documents become contexts."""
    positions: Positions
    """The positions that are rows."""
    attend_across_documents: bool
    """Whether documents of a context see each other."""

    def record(self) -> dict[str, Any]:
        """How rows are chosen, JSON-able."""
        exclude = self.exclude_special_tokens
        plain = exclude if isinstance(exclude, bool) else sorted(exclude)
        return {"exclude_special_tokens": plain, "positions": to_plain(self.positions)}

    @property
    def rule(self) -> RowRule:
        return RowRule(special_token_ids(self.tokenizer, self.exclude_special_tokens), self.positions)

    @property
    def keeps_documents(self) -> bool:
        return not self.attend_across_documents or self.packing.resolved().mode in PADDED_MODES

    def packing_rule(self) -> PackingRule:
        """How text is packed into contexts; ``ConfigError`` where text cannot be."""
        if self.context_size is None:
            raise ConfigError("give context_size (number of tokens in a context)")
        if self.tokenizer is None:
            raise ConfigError("text needs a tokenizer: pass model.tokenizer, or pretokenised data")
        return packing_rule(self.packing, self.tokenizer, self.context_size)


def _from_packed(folder: Path, wanted: _Wanted, asked: Mapping[str, Any]) -> Tokens:
    """What ``pretokenize`` wrote; ``asked`` is what else was asked for."""
    stored = open_packed(
        folder,
        wanted.tokenizer,
        {**asked, "context_size": wanted.context_size},
        packing=wanted.packing,
        attend_across_documents=wanted.attend_across_documents,
    )
    rule = wanted.rule
    if wanted.tokenizer is None and wanted.exclude_special_tokens is True:
        rule = RowRule(frozenset(stored.manifest.plan.special_token_ids), wanted.positions)
    record = {**stored.record(), **wanted.record()}
    return Tokens(_stored(stored, rule, "train"), _stored(stored, rule, "heldout"), record, wanted.tokenizer)


def _stored(stored: StoredTokens, rule: RowRule, name: str) -> TokenSplit:
    shards, side = stored.shards(name), getattr(stored.manifest, name)
    documents = StoredContexts(shards, DOCUMENTS) if stored.manifest.plan.keeps_documents else None
    return TokenSplit(
        StoredContexts(shards), rule.special_token_ids, name, side.fingerprint, documents, positions=rule.positions
    )


def _from_rows(dataset: Any, column: str, text: TextSource, wanted: _Wanted, record: dict[str, Any]) -> Tokens:
    """Rows of token ids that somebody else made."""
    if wanted.packing.resolved() != Packing().resolved():
        raise ConfigError("packing is for text; pretokenised rows are taken as they are: leave it out")
    metadata = find_metadata(text.source)
    rows = read_rows(dataset, column, wanted.context_size, text.max_documents, wanted.tokenizer, metadata)
    opens = None if wanted.attend_across_documents else opening_token(wanted.tokenizer, metadata)
    documents = document_numbers(rows.ids, opens)
    documents[rows.is_padding] = PADDING
    rule, held = _heldout_rows(rows.ids, record["heldout_fraction"])
    train, heldout = (PackedBlock(rows.ids[side], documents[side]) for side in (~held, held))
    found = {
        "pretokenised_column": column,
        "n_documents": len(rows.ids),
        **({"n_padding": int(rows.is_padding.sum())} if rows.is_padding.any() else {}),
        "n_heldout_documents": int(held.sum()),
        "heldout_rule": to_plain(rule),
        **framing(wanted.tokenizer, metadata),
    }
    return _tokens(train, heldout, wanted, {**record, **found}, is_padded=bool(rows.is_padding.any()))


def _heldout_rows(rows: np.ndarray, fraction: float) -> tuple[HeldoutRule, np.ndarray]:
    """The rule for rows that are a document and a context each, and for each row whether it is held out."""
    names = [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
    rule = HeldoutRule(below=0.0)
    if fraction > 0:
        rule = choose_by_hash(
            names[:WINDOW_DOCUMENTS],
            fraction,
            is_whole=len(names) < WINDOW_DOCUMENTS,
            is_counted=True,
            fills=lambda name: True,
        )
    return rule, np.array([rule.concerns(name, heldout=True) for name in names])


def _from_text(
    text: TextSource | Mixture, opened: Mapping[str, Any], wanted: _Wanted, record: dict[str, Any], n_processes: int
) -> Tokens:
    """Text that is tokenised now, all of it."""
    rule = wanted.packing_rule()
    divider = Divider(record["heldout_fraction"], rule, is_counted=is_counted(text))
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with Workers(wanted.tokenizer, n_processes, encode) if n_processes != 1 else nullcontext() as workers:
        corpus = Corpus(text, opened, wanted.tokenizer, workers)
        for each in divider(corpus):
            sides[0].append(each.train)
            sides[1].append(each.heldout)
    if not any(sides):
        raise DataError("the text is empty")
    train, heldout = (joined(pack_blocks(side, rule), rule.context_size) for side in sides)
    found = {
        **rule.record(),
        **corpus.record(),
        "n_heldout_documents": divider.n_heldout,
        "heldout_rule": to_plain(divider.rule),
    }
    return _tokens(train, heldout, wanted, {**record, **found})


def _streamed(text: TextSource | Mixture, opened: Mapping[str, Any], wanted: _Wanted, record: dict[str, Any]) -> Tokens:
    """Text that is read as a run needs it; only the held-out side is there."""
    packing = wanted.packing_rule()
    reader = BlockReader(
        readers=open_readers(text, opened, wanted.tokenizer),
        when_dry=text.when_dry if isinstance(text, Mixture) else "stop",
        tokenizer=wanted.tokenizer,
        packing=packing,
        keeps_documents=wanted.keeps_documents,
        heldout=HeldoutRule(below=0.0),
    )
    reader = choose_streamed(reader, record["heldout_fraction"], is_counted=is_counted(text))
    heldout, seen = gather_heldout(reader)
    record = {**record, **packing.record(), **seen}
    train = streamed_split(reader, wanted.rule, record)
    return Tokens(train, _split(heldout, wanted.rule, "heldout"), record, wanted.tokenizer)


def _tokens(
    train: PackedBlock, heldout: PackedBlock, wanted: _Wanted, record: dict[str, Any], *, is_padded: bool = False
) -> Tokens:
    """The two sides in memory; ``is_padded`` says that there is padding whatever is ``wanted``."""
    context_size = train.ids.shape[1]
    refuse_too_little(len(train.ids), context_size)

    def split(block: PackedBlock, name: str) -> TokenSplit:
        documents = torch.from_numpy(block.documents) if wanted.keeps_documents or is_padded else None
        return _split(Contexts(torch.from_numpy(block.ids), documents), wanted.rule, name)

    return Tokens(
        split(train, "train"), split(heldout, "heldout"), {**record, "context_size": context_size}, wanted.tokenizer
    )


def _split(contexts: Contexts, rule: RowRule, name: str) -> TokenSplit:
    return TokenSplit(
        contexts.ids, rule.special_token_ids, name, documents=contexts.documents, positions=rule.positions
    )


def refuse_too_little(n_contexts: int, context_size: int) -> None:
    """Raise ``DataError`` where there is no training context."""
    if n_contexts == 0:
        raise DataError(
            f"the training text fills no context of {counted(context_size, 'token')}; give more text or a smaller "
            "context_size"
        )


def text_source(source: Any, *, data_files: Any = None, **options: Any) -> TextSource | Mixture:
    """``load_tokens``' source and ``SOURCE_OPTIONS`` as one config; ``ConfigError`` for options beside a mixture."""
    options["data_files"] = _file_names(data_files)
    if not isinstance(source, Mixture):
        return TextSource(source=source, **options)
    chosen = TextSource(source=MIXTURE, **options).chosen()
    if chosen:
        raise ConfigError(f"a mixture's parts have their own {', '.join(chosen)}; set them in TextSource(...)")
    return source


def is_counted(text: TextSource | Mixture) -> bool:
    """Whether documents of a short text are counted to hold out a share of them; modules are chosen by name alone."""
    parts = text.parts.values() if isinstance(text, Mixture) else [text]
    return not any(isinstance(part.source, str) and part.source == STDLIB for part in parts)


def _file_names(data_files: Any) -> tuple[str, ...] | None:
    if isinstance(data_files, Mapping):
        raise ConfigError("data_files must be a name or a list of names; of several splits, give the files of one")
    return (data_files,) if isinstance(data_files, str) else None if data_files is None else tuple(data_files)


def resolve_heldout_fraction(source: Any, fraction: float | None) -> float:
    """The share of documents held out, where None stands for the source's own; ``ConfigError`` out of [0, 1)."""
    if fraction is None:
        is_stdlib = isinstance(source, str) and source == STDLIB
        return STDLIB_HELDOUT_FRACTION if is_stdlib else DEFAULT_HELDOUT_FRACTION
    if not 0 <= fraction < 1:
        raise ConfigError(f"heldout_fraction must be at least 0 and below 1, got {fraction}")
    return fraction
