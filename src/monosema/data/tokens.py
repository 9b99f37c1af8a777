"""``load_tokens``: text in, packed contexts with a fixed held-out split out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.core.config import to_plain
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.data.config import MIXTURE, Mixture, TextSource
from monosema.data.contexts import Contexts, RowRule, special_token_ids
from monosema.data.corpus import Corpus, open_parts, token_column
from monosema.data.packed.contexts import DOCUMENTS, StoredContexts
from monosema.data.packed.manifest import is_packed
from monosema.data.packed.read import StoredTokens, open_packed
from monosema.data.packing import (
    PADDED_MODES,
    PackedBlock,
    PackingRule,
    document_numbers,
    joined,
    pack_blocks,
    packing_rule,
)
from monosema.data.packing_config import Packing, Positions
from monosema.data.pretokenised import find_metadata, framing, opening_token, read_rows
from monosema.data.reading import BlockReader, gather_heldout, open_readers, streamed_split
from monosema.data.stdlib import HELDOUT_FRACTION as STDLIB_HELDOUT_FRACTION
from monosema.data.stdlib import STDLIB, is_heldout_name
from monosema.data.streamed import StreamedSplit
from monosema.data.tokenise import encode
from monosema.data.workers import Workers

DEFAULT_HELDOUT_FRACTION = 0.02
_TOKENS_AT_ONCE = 2**24


@dataclass(frozen=True)
class TokenSplit:
    """Packed contexts of one side of the split."""

    contexts: Tensor | StoredContexts
    """[n_contexts, context_size] int32; on disk where ``pretokenize`` wrote them."""
    special_token_ids: frozenset[int]
    """Tokens that frame text (BOS, EOS, [CLS], …); their positions are not training rows."""
    name: str
    """``train`` or ``heldout``."""
    fingerprint: str = field(default="")
    """sha256 of the contexts, and of ``documents`` where there are some."""
    documents: Tensor | StoredContexts | None = None
    """[n_contexts, context_size]: the number, within its context, of the document that a position belongs to, -1 for
    padding behind it. None where nothing is padded and documents of a context attend to each other."""
    positions: Positions = Positions()
    """The positions of each context that become rows."""

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents.shape != self.contexts.shape:
            raise ShapeError(
                f"documents must have the shape of the contexts, {list(self.contexts.shape)}, got "
                f"{list(self.documents.shape)}"
            )
        self.positions.of(self.context_size)
        if not self.fingerprint:
            ids, documents = self.contexts, self.documents
            assert isinstance(ids, Tensor) and not isinstance(documents, StoredContexts), "what is stored has one"
            digest = hashlib.sha256(str(tuple(ids.shape)).encode())
            digest.update(ids.numpy().tobytes())
            if documents is not None:
                digest.update(documents.to(torch.int32).numpy().tobytes())
            object.__setattr__(self, "fingerprint", digest.hexdigest())

    @property
    def context_size(self) -> int:
        return self.contexts.shape[1]

    @property
    def n_contexts(self) -> int:
        return self.contexts.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens in all contexts, special ones included, padding left out."""
        if self.documents is None:
            return self.contexts.numel()
        return sum(int((self.documents[part] >= 0).sum()) for part in self._slices())

    @property
    def rule(self) -> RowRule:
        """Which positions become rows."""
        return RowRule(self.special_token_ids, self.positions)

    def part(self, which: Tensor | slice = slice(None)) -> Contexts:
        """The contexts ``which``."""
        return Contexts(self.contexts[which], self.documents_of(which))

    def parts(self) -> Iterator[Contexts]:
        """All contexts, some at a time."""
        return (self.part(which) for which in self._slices())

    def rows_in_contexts(self) -> Tensor:
        """How many positions of each context become rows, ``[n_contexts]`` int64."""
        counts = [self.rule.row_mask(part).sum(1) for part in self.parts()]
        return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64)

    def _slices(self) -> Iterator[slice]:
        size = max(1, _TOKENS_AT_ONCE // self.context_size)
        return (slice(start, start + size) for start in range(0, self.n_contexts, size))

    def text_mask(self, which: Tensor | slice = slice(None)) -> Tensor:
        """``RowRule.text_mask`` of the contexts ``which``."""
        return self.rule.text_mask(self.part(which))

    def row_mask(self, which: Tensor | slice = slice(None)) -> Tensor:
        """``RowRule.row_mask`` of the contexts ``which``."""
        return self.rule.row_mask(self.part(which))

    def special_mask(self, contexts: Tensor) -> Tensor:
        """``RowRule.special_mask``."""
        return self.rule.special_mask(contexts)

    def documents_of(self, which: Tensor | slice) -> Tensor | None:
        """``documents`` of the contexts ``which``: what models are given beside their token ids."""
        return None if self.documents is None else self.documents[which]

    def __len__(self) -> int:
        return self.n_contexts

    def __repr__(self) -> str:
        return f"TokenSplit({self.name}, {self.n_contexts} contexts of {self.context_size} tokens)"


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus, split by document."""

    train: TokenSplit | StreamedSplit
    """What dictionaries are trained on."""
    heldout: TokenSplit
    """What they are evaluated on."""
    record: Mapping[str, Any]
    """What was read and how, JSON-able; kept with every dictionary trained on it."""

    @property
    def context_size(self) -> int:
        return self.train.context_size

    def __repr__(self) -> str:
        n_train = f"{self.train.n_tokens:,}" if isinstance(self.train, TokenSplit) else "streamed"
        return (
            f"Tokens({self.record['source']}: {n_train} training and {self.heldout.n_tokens:,} held-out tokens in "
            f"contexts of {self.context_size})"
        )


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
            saved on disk, or its name; a dataset with a ``tokens`` or ``input_ids`` column; a ``Mixture``; a
            folder that ``pretokenize`` wrote, which is memory-mapped and says how text was read and packed.
        tokenizer: a transformers tokenizer (``model.tokenizer``).
        context_size: tokens in a context. May be left out for pretokenised data, whose first row then decides.
        heldout_fraction: share of the documents held out, chosen by a hash of the document (of the module's name for
            ``"stdlib"``). Default 0.02, and 0.05 for ``"stdlib"``.
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
    packing, positions = packing or Packing(), positions or Positions()
    rule = RowRule(special_token_ids(tokenizer, exclude_special_tokens), positions)
    read = {"exclude_special_tokens": _plain_exclusion(exclude_special_tokens), "positions": to_plain(positions)}
    if isinstance(text, TextSource) and is_packed(source):
        if not in_memory or n_processes != 1:
            raise ConfigError(
                f"{source} holds packed tokens, which are memory-mapped; leave out in_memory, n_processes"
            )
        sizes = {"context_size": context_size, "heldout_fraction": heldout_fraction}
        stored = open_packed(
            Path(source),
            tokenizer,
            {**text.chosen(), **sizes},
            packing=packing,
            attend_across_documents=attend_across_documents,
        )
        if tokenizer is None and exclude_special_tokens is True:
            rule = RowRule(frozenset(stored.manifest.plan.special_token_ids), positions)
        return Tokens(_stored(stored, rule, "train"), _stored(stored, rule, "heldout"), {**stored.record(), **read})
    fraction = resolve_heldout_fraction(source, heldout_fraction)
    keeps_documents = not attend_across_documents or packing.resolved().mode in PADDED_MODES
    opened = open_parts(text)
    dataset, pretokenised = next(iter(opened.values())), None
    if isinstance(text, TextSource):
        pretokenised = token_column(dataset, column)
    record = {
        **text.record(),
        "context_size": context_size,
        "heldout_fraction": fraction,
        **read,
        "packing": to_plain(packing.resolved()),
        "attend_across_documents": attend_across_documents,
        "in_memory": in_memory,
    }
    if pretokenised is None:
        if context_size is None:
            raise ConfigError("give context_size (number of tokens in a context)")
        if tokenizer is None:
            raise ConfigError("text needs a tokenizer: pass model.tokenizer, or pretokenised data")
        marks = packing_rule(packing, tokenizer, context_size)
        record |= marks.record()
        if not in_memory:
            if n_processes != 1:
                raise ConfigError("n_processes tokenises all at once; with in_memory=False leave it out")
            reader = BlockReader(
                readers=open_readers(text, opened, tokenizer),
                when_dry=text.when_dry if isinstance(text, Mixture) else "stop",
                tokenizer=tokenizer,
                packing=marks,
                keeps_documents=keeps_documents,
                heldout_fraction=fraction,
            )
            heldout, seen = gather_heldout(reader)
            record |= seen
            return Tokens(streamed_split(reader, rule, record), _split(heldout, rule, "heldout"), record)
        with Workers(tokenizer, n_processes, encode) if n_processes != 1 else nullcontext() as workers:
            sides, details = _tokenised(Corpus(text, opened, tokenizer, workers), marks, fraction)
    else:
        if not in_memory:
            raise ConfigError("pretokenised rows are read at once; leave out in_memory=False")
        if packing.resolved() != Packing().resolved():
            raise ConfigError("packing is for text; pretokenised rows are taken as they are: leave it out")
        metadata = find_metadata(source)
        rows = read_rows(dataset, pretokenised, context_size, max_documents, tokenizer, metadata)
        opens = None if attend_across_documents else opening_token(tokenizer, metadata)
        sides, details = _split_rows(rows, fraction, opens)
        details = {"pretokenised_column": pretokenised, **details, **framing(tokenizer, metadata)}
    context_size = sides[0].ids.shape[1]
    refuse_too_little(len(sides[0].ids), context_size)
    record |= {"context_size": context_size, **details}
    train, side = (
        Contexts(torch.from_numpy(each.ids), torch.from_numpy(each.documents) if keeps_documents else None)
        for each in sides
    )
    return Tokens(_split(train, rule, "train"), _split(side, rule, "heldout"), record)


def _split(contexts: Contexts, rule: RowRule, name: str) -> TokenSplit:
    return TokenSplit(
        contexts.ids, rule.special_token_ids, name, documents=contexts.documents, positions=rule.positions
    )


def _stored(stored: StoredTokens, rule: RowRule, name: str) -> TokenSplit:
    shards, side = stored.shards(name), getattr(stored.manifest, name)
    documents = StoredContexts(shards, DOCUMENTS) if stored.manifest.plan.keeps_documents else None
    return TokenSplit(
        StoredContexts(shards), rule.special_token_ids, name, side.fingerprint, documents, positions=rule.positions
    )


def refuse_too_little(n_contexts: int, context_size: int) -> None:
    """Raise ``DataError`` where there is no training context."""
    if n_contexts == 0:
        raise DataError(
            f"the training text fills no context of {context_size} tokens; give more text or a smaller context_size"
        )


def _plain_exclusion(exclude: bool | Collection[int]) -> bool | list[int]:
    return exclude if isinstance(exclude, bool) else sorted(exclude)


def text_source(source: Any, *, data_files: Any = None, **options: Any) -> TextSource | Mixture:
    """``load_tokens``' source and ``SOURCE_OPTIONS`` as one config; ``ConfigError`` for options beside a mixture."""
    options["data_files"] = _file_names(data_files)
    if not isinstance(source, Mixture):
        return TextSource(source=source, **options)
    chosen = TextSource(source=MIXTURE, **options).chosen()
    if chosen:
        raise ConfigError(f"a mixture's parts have their own {', '.join(chosen)}; set them in TextSource(...)")
    return source


def _file_names(data_files: Any) -> tuple[str, ...] | None:
    if isinstance(data_files, Mapping):
        raise ConfigError("data_files must be a name or a list of names; of several splits, give the files of one")
    return (data_files,) if isinstance(data_files, str) else None if data_files is None else tuple(data_files)


def _tokenised(
    corpus: Corpus, rule: PackingRule, fraction: float
) -> tuple[tuple[PackedBlock, PackedBlock], dict[str, Any]]:
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for each in corpus:
        sides[is_heldout_name(each.document.name, fraction)].append(each.tokens)
    if not any(sides):
        raise DataError("the text is empty")
    train, heldout = (joined(pack_blocks(side, rule), rule.context_size) for side in sides)
    return (train, heldout), {**corpus.record(), "n_heldout_documents": len(sides[1])}


def _split_rows(
    rows: np.ndarray, fraction: float, opens: int | None
) -> tuple[tuple[PackedBlock, PackedBlock], dict[str, Any]]:
    """The two sides of pretokenised rows, where ``opens`` is the token that begins a document (None: they are one)."""
    held = np.array([is_heldout_name(hashlib.sha256(row.tobytes()).hexdigest(), fraction) for row in rows])
    documents = document_numbers(rows, opens)
    train, heldout = (PackedBlock(rows[side], documents[side]) for side in (~held, held))
    return (train, heldout), {"n_documents": len(rows)}


def resolve_heldout_fraction(source: Any, fraction: float | None) -> float:
    """The share of documents held out, where None stands for the source's own; ``ConfigError`` out of [0, 1)."""
    if fraction is None:
        is_stdlib = isinstance(source, str) and source == STDLIB
        return STDLIB_HELDOUT_FRACTION if is_stdlib else DEFAULT_HELDOUT_FRACTION
    if not 0 <= fraction < 1:
        raise ConfigError(f"heldout_fraction must be at least 0 and below 1, got {fraction}")
    return fraction
