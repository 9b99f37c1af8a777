"""``load_tokens``: text in, packed contexts with a fixed held-out split out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.core.config import to_plain
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.data.documents import Document, documents_from, is_dataset_dict, open_source, text_fingerprint
from monosema.data.packing import PADDED_MODES, PackedBlock, document_numbers, joined, pack_blocks, packing_rule
from monosema.data.packing_config import Packing, Positions
from monosema.data.pretokenised import find_metadata, framing, opening_token, read_rows
from monosema.data.stdlib import HELDOUT_FRACTION as STDLIB_HELDOUT_FRACTION
from monosema.data.stdlib import STDLIB, is_heldout_name

DEFAULT_HELDOUT_FRACTION = 0.02
IN_MEMORY = "text in memory"
"""Recorded as the source of text that has no name to load it by again."""

_TOKEN_COLUMNS = ("tokens", "input_ids")


@dataclass(frozen=True)
class TokenSplit:
    """Packed contexts of one side of the split."""

    contexts: Tensor
    """[n_contexts, context_size] int32."""
    special_token_ids: frozenset[int]
    """Tokens that frame text (BOS, EOS, [CLS], …); their positions are not training rows."""
    name: str
    """``train`` or ``heldout``."""
    fingerprint: str = field(default="")
    """sha256 of the contexts, and of ``documents`` where there are some."""
    documents: Tensor | None = None
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
            digest = hashlib.sha256(str(tuple(self.contexts.shape)).encode())
            digest.update(self.contexts.numpy().tobytes())
            if self.documents is not None:
                digest.update(self.documents.to(torch.int32).numpy().tobytes())
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
        return self.contexts.numel() if self.documents is None else int((self.documents >= 0).sum())

    def special_mask(self, contexts: Tensor) -> Tensor:
        """True where ``contexts`` holds a special token; same shape."""
        mask = torch.zeros_like(contexts, dtype=torch.bool)
        for token in self.special_token_ids:
            mask |= contexts == token
        return mask

    def text_mask(self, which: Tensor | slice = slice(None)) -> Tensor:
        """True where a position of the contexts ``which`` holds text: no special token and no padding; ``[n, T]``."""
        text = ~self.special_mask(self.contexts[which])
        return text if self.documents is None else text & (self.documents[which] >= 0)

    def row_mask(self, which: Tensor | slice = slice(None)) -> Tensor:
        """True where a position of the contexts ``which`` becomes a row: text at one of ``positions``; ``[n, T]``."""
        mask = self.text_mask(which)
        if self.positions.is_everything:
            return mask
        chosen = torch.zeros(self.context_size, dtype=torch.bool)
        chosen[torch.tensor(self.positions.of(self.context_size))] = True
        return mask & chosen

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

    train: TokenSplit
    """What dictionaries are trained on."""
    heldout: TokenSplit
    """What they are evaluated on."""
    record: Mapping[str, Any]
    """What was read and how, JSON-able; kept with every dictionary trained on it."""

    @property
    def context_size(self) -> int:
        return self.train.context_size

    def __repr__(self) -> str:
        return (
            f"Tokens({self.record['source']}: {self.train.n_tokens:,} training and {self.heldout.n_tokens:,} held-out "
            f"tokens in contexts of {self.context_size})"
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
    packing: Packing | None = None,
    positions: Positions | None = None,
    attend_across_documents: bool = True,
) -> Tokens:
    """Tokenise ``source``, make contexts of exactly ``context_size`` of it, and hold part of its documents out.

    Args:
        source: ``"stdlib"``; a text, JSON-lines, JSON or Parquet file; a folder of them; a list of strings or of
            ``pathlib.Path``; a Hugging Face dataset or its name; a dataset with a ``tokens`` or ``input_ids`` column.
        tokenizer: a transformers tokenizer (``model.tokenizer``).
        context_size: tokens in a context. May be left out for pretokenised data, whose first row then decides.
        heldout_fraction: share of the documents held out, chosen by a hash of the document (of the module's name for
            ``"stdlib"``). Default 0.02, and 0.05 for ``"stdlib"``.
        exclude_special_tokens: positions holding these tokens never become training rows: True for the tokenizer's
            special tokens, False for none, or a list of ids.
        column: name of the text (or token) column.
        max_documents: read only the first so many documents.
        split, config_name, data_files, data_dir: passed on when a dataset is loaded by name.
        packing: how documents become contexts; one after another, without padding, by default.
        positions: the positions of each context that become rows; all by default.
        attend_across_documents: False cuts attention between the documents of a context: each is computed as if it
            stood alone at the start of one. What precedes a document (BOS, separator) is its first token; in
            pretokenised rows every BOS (EOS where there is none) begins one.

    Raises:
        ConfigError: options that are out of range or contradict each other, or a token that the tokenizer lacks.
        DataError: no text, or too little for one training context.
    """
    options = {"split": split, "name": config_name, "data_files": data_files, "data_dir": data_dir}
    options = {key: value for key, value in options.items() if value is not None}
    packing, positions = packing or Packing(), positions or Positions()
    fraction = resolve_heldout_fraction(source, heldout_fraction)
    special = _special_token_ids(tokenizer, exclude_special_tokens)
    opened = open_source(source, options)
    token_column = _token_column(opened, column)
    if token_column is not None:
        if packing.resolved() != Packing().resolved():
            raise ConfigError("packing is for text; pretokenised rows are taken as they are: leave it out")
        metadata = find_metadata(source)
        rows = read_rows(opened, token_column, context_size, max_documents, tokenizer, metadata)
        opens = None if attend_across_documents else opening_token(tokenizer, metadata)
        sides, details = _split_rows(rows, fraction, opens)
        details = {"pretokenised_column": token_column, **details, **framing(tokenizer, metadata)}
    else:
        documents = documents_from(opened, column=column, max_documents=max_documents)
        sides, details = _tokenised(documents, tokenizer, context_size, fraction, packing)
    train, heldout = sides
    context_size = train.ids.shape[1]
    if len(train.ids) == 0:
        raise DataError(
            f"the training text fills no context of {context_size} tokens; give more text or a smaller context_size"
        )
    keep_documents = not attend_across_documents or packing.resolved().mode in PADDED_MODES
    record = {
        "source": str(source) if isinstance(source, (str, Path)) else IN_MEMORY,
        **({"options": {key: str(value) for key, value in options.items()}} if options else {}),
        "column": column,
        "max_documents": max_documents,
        "context_size": context_size,
        "heldout_fraction": fraction,
        "exclude_special_tokens": (
            exclude_special_tokens if isinstance(exclude_special_tokens, bool) else sorted(exclude_special_tokens)
        ),
        "packing": to_plain(packing.resolved()),
        "positions": to_plain(positions),
        "attend_across_documents": attend_across_documents,
        **details,
    }

    def split_of(side: PackedBlock, name: str) -> TokenSplit:
        documents = torch.from_numpy(side.documents) if keep_documents else None
        return TokenSplit(torch.from_numpy(side.ids), special, name, documents=documents, positions=positions)

    return Tokens(split_of(train, "train"), split_of(heldout, "heldout"), record)


def _tokenised(
    documents: list[Document], tokenizer: Any, context_size: int | None, fraction: float, packing: Packing
) -> tuple[tuple[PackedBlock, PackedBlock], dict[str, Any]]:
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer, or pretokenised data")
    if context_size is None:
        raise ConfigError("give context_size (number of tokens in a context)")
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise DataError("the text is empty")
    rule = packing_rule(packing, tokenizer, context_size)
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        sides[is_heldout_name(document.name, fraction)].append(document)
    train, heldout = (joined(pack_blocks(_tokenise(side, tokenizer), rule), context_size) for side in sides)
    details = {
        "text_sha256": text_fingerprint(documents),
        "n_documents": len(documents),
        "n_heldout_documents": len(sides[1]),
        "begin_context": rule.begin_context,
        "begin_document": rule.begin_document,
        "separator": rule.separator,
        "end_context": rule.end_context,
    }
    return (train, heldout), details


def _split_rows(
    rows: np.ndarray, fraction: float, opens: int | None
) -> tuple[tuple[PackedBlock, PackedBlock], dict[str, Any]]:
    """The two sides of pretokenised rows, where ``opens`` is the token that begins a document (None: they are one)."""
    held = np.array([is_heldout_name(hashlib.sha256(row.tobytes()).hexdigest(), fraction) for row in rows])
    documents = document_numbers(rows, opens)
    train, heldout = (PackedBlock(rows[side], documents[side]) for side in (~held, held))
    return (train, heldout), {"n_documents": len(rows)}


def _tokenise(documents: list[Document], tokenizer: Any, batch: int = 256) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for start in range(0, len(documents), batch):
        texts = [document.text for document in documents[start : start + batch]]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows += [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    return rows


def _token_column(dataset: Any, column: str | None) -> str | None:
    if is_dataset_dict(dataset):
        return None
    names = getattr(dataset, "column_names", None) or []
    if column is not None:
        return column if column in names and column in _TOKEN_COLUMNS else None
    return next((name for name in _TOKEN_COLUMNS if name in names), None)


def resolve_heldout_fraction(source: Any, fraction: float | None) -> float:
    """The share of documents held out, where None stands for the source's own; ``ConfigError`` out of [0, 1)."""
    if fraction is None:
        is_stdlib = isinstance(source, str) and source == STDLIB
        return STDLIB_HELDOUT_FRACTION if is_stdlib else DEFAULT_HELDOUT_FRACTION
    if not 0 <= fraction < 1:
        raise ConfigError(f"heldout_fraction must be at least 0 and below 1, got {fraction}")
    return fraction


def _special_token_ids(tokenizer: Any, exclude: bool | Collection[int]) -> frozenset[int]:
    if isinstance(exclude, bool):
        if not exclude or tokenizer is None:
            return frozenset()
        roles = (getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "cls", "sep", "pad", "mask"))
        framing = {token for token in roles if token is not None}
        # the unknown token stands for text, unless it is a framing token too (GPT-2 has one token for all)
        unknown = {getattr(tokenizer, "unk_token_id", None)} - framing
        return frozenset(token for token in tokenizer.all_special_ids if token not in unknown)
    return frozenset(int(token) for token in exclude)
