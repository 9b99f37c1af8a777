"""What ``load_tokens`` does: text in, packed contexts with a fixed held-out split out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monosema.core.config import to_plain
from monosema.core.errors import ConfigError, DataError
from monosema.core.logs import get_logger
from monosema.data.config import Mixture, TextSource, TokenOptions
from monosema.data.contexts import Contexts, RowRule, special_token_ids
from monosema.data.corpus import Corpus, open_parts, token_column
from monosema.data.heldout import WINDOW_DOCUMENTS, Divider, HeldoutRule, choose_by_hash
from monosema.data.packed.contexts import DOCUMENTS, StoredContexts
from monosema.data.packed.manifest import is_packed
from monosema.data.packed.read import StoredTokens, open_packed
from monosema.data.packing import (
    PADDING,
    PackedBlock,
    PackingRule,
    document_numbers,
    joined,
    pack_blocks,
    packing_rule,
)
from monosema.data.packing_config import Packing
from monosema.data.pretokenised import find_metadata, framing, opening_token, read_rows
from monosema.data.reading import BlockReader, choose_streamed, gather_heldout, open_readers, streamed_split
from monosema.data.stdlib import HELDOUT_FRACTION as STDLIB_HELDOUT_FRACTION
from monosema.data.stdlib import STDLIB
from monosema.data.tokenise import encode
from monosema.data.tokens import Tokens, TokenSplit
from monosema.data.workers import Workers

logger = get_logger("monosema.data")

DEFAULT_HELDOUT_FRACTION = 0.02


def make_tokens(text: TextSource | Mixture, options: TokenOptions, tokenizer: Any) -> Tokens:
    """``load_tokens`` of ``text``; the options of a source in ``options`` are not used."""
    if isinstance(text, TextSource) and is_packed(text.source):
        return _checked(_from_packed(text, options, tokenizer))
    fraction = resolve_heldout_fraction(text, options.heldout_fraction)
    opened = open_parts(text)
    options = replace(options, heldout_fraction=fraction, packing=options.packing.resolved())
    record = {**text.record(), **options.record()}
    if isinstance(text, TextSource):
        ids = token_column(next(iter(opened.values())), text.column)
        if ids is not None:
            return _checked(_from_rows(next(iter(opened.values())), ids, text, options, tokenizer, record))
    make = _from_text if options.in_memory else _streamed
    return _checked(make(text, opened, options, tokenizer, record))


def _checked(tokens: Tokens) -> Tokens:
    """``tokens``; it is logged where text should have been held out and none is."""
    if tokens.record["heldout_fraction"] > 0 and tokens.heldout.n_contexts == 0:
        logger.warning("nothing is held out: %s", tokens.how_to_hold_out)
    return tokens


def packing_rule_of(options: TokenOptions, tokenizer: Any) -> PackingRule:
    """How text is packed into contexts; ``ConfigError`` where text cannot be."""
    if options.context_size is None:
        raise ConfigError("give context_size (number of tokens in a context)")
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer, or pretokenised data")
    return packing_rule(options.packing, tokenizer, options.context_size)


def workers_of(options: TokenOptions, tokenizer: Any) -> AbstractContextManager[Workers | None]:
    """The processes that tokenise; None where this one does."""
    return Workers(tokenizer, options.n_processes, encode) if options.n_processes != 1 else nullcontext()


def _row_rule(options: TokenOptions, tokenizer: Any) -> RowRule:
    return RowRule(special_token_ids(tokenizer, options.exclude_special_tokens), options.positions)


def _from_packed(text: TextSource, options: TokenOptions, tokenizer: Any) -> Tokens:
    """What ``pretokenize`` wrote."""
    if not options.in_memory or options.n_processes != 1:
        raise ConfigError(
            f"{text.source} holds packed tokens, which are memory-mapped; leave out in_memory, n_processes"
        )
    asked = {**text.chosen(), **options.record_of_documents()}
    for name in ("heldout_fraction", "context_size"):
        asked[name] = getattr(options, name)
    stored = open_packed(
        Path(text.source),
        tokenizer,
        asked,
        packing=options.packing,
        attend_across_documents=options.attend_across_documents,
    )
    rule = _row_rule(options, tokenizer)
    if tokenizer is None and options.exclude_special_tokens is True:
        rule = RowRule(frozenset(stored.manifest.plan.special_token_ids), options.positions)
    chosen = {
        name: value for name, value in options.record().items() if name in ("exclude_special_tokens", "positions")
    }
    return Tokens(
        _stored(stored, rule, "train"), _stored(stored, rule, "heldout"), {**stored.record(), **chosen}, tokenizer
    )


def _stored(stored: StoredTokens, rule: RowRule, name: str) -> TokenSplit:
    shards, side = stored.shards(name), getattr(stored.manifest, name)
    documents = StoredContexts(shards, DOCUMENTS) if stored.manifest.plan.keeps_documents else None
    return TokenSplit(
        StoredContexts(shards), rule.special_token_ids, name, side.fingerprint, documents, positions=rule.positions
    )


def _from_rows(
    dataset: Any, column: str, text: TextSource, options: TokenOptions, tokenizer: Any, record: dict[str, Any]
) -> Tokens:
    """Rows of token ids that somebody else made."""
    _refuse_for_rows(options)
    metadata = find_metadata(text.source)
    rows = read_rows(dataset, column, options.context_size, text.max_documents, tokenizer, metadata)
    opens = None if options.attend_across_documents else opening_token(tokenizer, metadata)
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
        **framing(tokenizer, metadata),
    }
    keeps_documents = options.keeps_documents or bool(rows.is_padding.any())
    return _tokens(train, heldout, options, tokenizer, {**record, **found}, keeps_documents=keeps_documents)


def _refuse_for_rows(options: TokenOptions) -> None:
    """Raise ``ConfigError`` for an option that pretokenised rows, which are taken as they are, do not have."""
    if not options.in_memory:
        raise ConfigError("pretokenised rows are read at once; leave out in_memory=False")
    if options.packing.resolved() != Packing().resolved():
        raise ConfigError("packing is for text; pretokenised rows are taken as they are: leave it out")
    if other := options.record_of_documents():
        names = ", ".join(other)
        raise ConfigError(f"{names}: pretokenised rows are taken as they are; leave it out, or give their text")


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
    text: TextSource | Mixture,
    opened: Mapping[str, Any],
    options: TokenOptions,
    tokenizer: Any,
    record: dict[str, Any],
) -> Tokens:
    """Text that is tokenised now, all of it."""
    rule = packing_rule_of(options, tokenizer)
    divider = Divider(record["heldout_fraction"], rule, is_counted=is_counted(text))
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with workers_of(options, tokenizer) as workers:
        corpus = Corpus(text, opened, options, tokenizer, workers)
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
    return _tokens(train, heldout, options, tokenizer, {**record, **found}, keeps_documents=options.keeps_documents)


def _streamed(
    text: TextSource | Mixture,
    opened: Mapping[str, Any],
    options: TokenOptions,
    tokenizer: Any,
    record: dict[str, Any],
) -> Tokens:
    """Text that is read as a run needs it; only the held-out side is there."""
    if options.n_processes != 1:
        raise ConfigError("n_processes tokenises all at once; with in_memory=False leave it out")
    packing, rows = packing_rule_of(options, tokenizer), _row_rule(options, tokenizer)
    reader = BlockReader(
        readers=open_readers(text, opened, options, tokenizer),
        when_dry=text.when_dry if isinstance(text, Mixture) else "stop",
        tokenizer=tokenizer,
        packing=packing,
        keeps_documents=options.keeps_documents,
        heldout=HeldoutRule(below=0.0),
    )
    reader = choose_streamed(reader, record["heldout_fraction"], is_counted=is_counted(text))
    heldout, seen = gather_heldout(reader)
    record = {**record, **packing.record(), **seen}
    return Tokens(streamed_split(reader, rows, record), _split(heldout, rows, "heldout"), record, tokenizer)


def _tokens(
    train: PackedBlock,
    heldout: PackedBlock,
    options: TokenOptions,
    tokenizer: Any,
    record: dict[str, Any],
    *,
    keeps_documents: bool,
) -> Tokens:
    """The two sides in memory."""
    context_size = train.ids.shape[1]
    refuse_too_little(len(train.ids), context_size)
    rule = _row_rule(options, tokenizer)

    def split(block: PackedBlock, name: str) -> TokenSplit:
        documents = torch.from_numpy(block.documents) if keeps_documents else None
        return _split(Contexts(torch.from_numpy(block.ids), documents), rule, name)

    return Tokens(split(train, "train"), split(heldout, "heldout"), {**record, "context_size": context_size}, tokenizer)


def _split(contexts: Contexts, rule: RowRule, name: str) -> TokenSplit:
    return TokenSplit(
        contexts.ids, rule.special_token_ids, name, documents=contexts.documents, positions=rule.positions
    )


def refuse_too_little(n_contexts: int, context_size: int) -> None:
    """Raise ``DataError`` where there is no training context."""
    if n_contexts == 0:
        raise DataError(
            f"the training text fills no context of {context_size} tokens; give more text or a smaller context_size"
        )


def is_counted(text: TextSource | Mixture) -> bool:
    """Whether documents of a short text are counted to hold out a share of them; modules are chosen by name alone."""
    parts = text.parts.values() if isinstance(text, Mixture) else [text]
    return not any(isinstance(part.source, str) and part.source == STDLIB for part in parts)


def resolve_heldout_fraction(source: Any, fraction: float | None) -> float:
    """The share of documents held out, where None stands for the source's own; ``ConfigError`` out of [0, 1)."""
    if isinstance(source, TextSource):
        source = source.source
    if fraction is None:
        is_stdlib = isinstance(source, str) and source == STDLIB
        return STDLIB_HELDOUT_FRACTION if is_stdlib else DEFAULT_HELDOUT_FRACTION
    if not 0 <= fraction < 1:
        raise ConfigError(f"heldout_fraction must be at least 0 and below 1, got {fraction}")
    return fraction
