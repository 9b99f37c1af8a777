"""``load_tokens``: text in, packed contexts with a fixed held-out split out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError
from monosema.data.documents import Document, documents_from, is_dataset_dict, open_source, text_fingerprint
from monosema.data.packing import PackingRule, pack
from monosema.data.pretokenized.contexts import StoredContexts
from monosema.data.pretokenized.manifest import is_pretokenized
from monosema.data.pretokenized.read import StoredTokens, open_pretokenized
from monosema.data.stdlib import HELDOUT_FRACTION as STDLIB_HELDOUT_FRACTION
from monosema.data.stdlib import STDLIB, is_heldout_name

DEFAULT_HELDOUT_FRACTION = 0.02
IN_MEMORY = "text in memory"
"""Recorded as the source of text that has no name to load it by again."""

_TOKEN_COLUMNS = ("tokens", "input_ids")
_TOKENS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class TokenSplit:
    """Packed contexts of one side of the split."""

    contexts: Tensor | StoredContexts
    """[n_contexts, context_size] int32; on disk where they were written before."""
    special_token_ids: frozenset[int]
    """Tokens that frame text (BOS, EOS, [CLS], …); their positions are not training rows."""
    name: str
    """``train`` or ``heldout``."""
    fingerprint: str = field(default="")
    """sha256 of the contexts."""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            assert isinstance(self.contexts, Tensor), "what is stored has its fingerprint"
            digest = hashlib.sha256(str(tuple(self.contexts.shape)).encode())
            digest.update(self.contexts.numpy().tobytes())
            object.__setattr__(self, "fingerprint", digest.hexdigest())

    @property
    def context_size(self) -> int:
        return self.contexts.shape[1]

    @property
    def n_contexts(self) -> int:
        return self.contexts.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens in all contexts, special ones included."""
        return self.contexts.numel()

    def special_mask(self, contexts: Tensor) -> Tensor:
        """True where ``contexts`` holds a special token; same shape."""
        mask = torch.zeros_like(contexts, dtype=torch.bool)
        for token in self.special_token_ids:
            mask |= contexts == token
        return mask

    def usable_per_context(self) -> Tensor:
        """How many positions of each context are training rows, ``[n_contexts]`` int32."""
        step = max(1, _TOKENS_AT_A_TIME // self.context_size)
        counts = [torch.zeros(0, dtype=torch.int32)]
        for start in range(0, self.n_contexts, step):
            special = self.special_mask(self.contexts[start : start + step])
            counts.append((~special).sum(1, dtype=torch.int32))
        return torch.cat(counts)

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
) -> Tokens:
    """Tokenise ``source``, pack it to contexts of exactly ``context_size``, and hold part of its documents out.

    Args:
        source: ``"stdlib"``; a text, JSON-lines, JSON or Parquet file; a folder of them; a list of strings or of
            ``pathlib.Path``; a Hugging Face dataset or its name; a dataset with a ``tokens`` or ``input_ids`` column;
            a folder that ``pretokenize`` wrote, which is memory-mapped and says the rest itself.
        tokenizer: a transformers tokenizer (``model.tokenizer``).
        context_size: tokens in a context. May be left out for pretokenised data, whose first row then decides.
        heldout_fraction: share of the documents held out, chosen by a hash of the document (of the module's name for
            ``"stdlib"``). Default 0.02, and 0.05 for ``"stdlib"``.
        exclude_special_tokens: positions holding these tokens never become training rows: True for the tokenizer's
            special tokens, False for none, or a list of ids.
        column: name of the text (or token) column.
        max_documents: read only the first so many documents.
        split, config_name, data_files, data_dir: passed on when a dataset is loaded by name.

    Raises:
        DataError: no text, or too little for one training context.
        ConfigError: options out of range, or other ones than a folder of ``pretokenize``'s was written with.
        FileError: such a folder that is not finished or damaged; the file is named.
    """
    options = {"split": split, "name": config_name, "data_files": data_files, "data_dir": data_dir}
    options = {key: value for key, value in options.items() if value is not None}
    if is_pretokenized(source):
        packing = {"context_size": context_size, "heldout_fraction": heldout_fraction}
        stored = open_pretokenized(
            Path(source), tokenizer, {**packing, "column": column, "max_documents": max_documents, **options}
        )
        return _stored(stored, tokenizer, exclude_special_tokens)
    fraction = resolve_heldout_fraction(source, heldout_fraction)
    special = special_token_ids(tokenizer, exclude_special_tokens)
    opened = open_source(source, options)
    rows_column = token_column(opened, column)
    if rows_column is not None:
        packed = _pretokenised(opened, rows_column, context_size, fraction, max_documents)
    else:
        documents = documents_from(opened, column=column, max_documents=max_documents)
        packed = _tokenised(documents, tokenizer, context_size, fraction)
    train, heldout, context_size, details = packed
    refuse_too_little(len(train), context_size)
    record = {
        "source": source_name(source),
        **({"options": {key: str(value) for key, value in options.items()}} if options else {}),
        "column": column,
        "max_documents": max_documents,
        "context_size": context_size,
        "heldout_fraction": fraction,
        "exclude_special_tokens": _plain_exclusion(exclude_special_tokens),
        **details,
    }
    return Tokens(
        TokenSplit(torch.from_numpy(train), special, "train"),
        TokenSplit(torch.from_numpy(heldout), special, "heldout"),
        record,
    )


def _stored(stored: StoredTokens, tokenizer: Any, exclude: bool | Collection[int]) -> Tokens:
    """The tokens of a folder that ``pretokenize`` wrote, as ``load_tokens`` gives them."""
    plan = stored.manifest.plan
    special = special_token_ids(tokenizer, exclude)
    if tokenizer is None and exclude is True:
        special = frozenset(plan.special_token_ids)
    record = {
        "source": str(stored.folder),
        "column": None,
        "max_documents": None,
        "context_size": plan.context_size,
        "heldout_fraction": plan.heldout_fraction,
        "exclude_special_tokens": _plain_exclusion(exclude),
        **stored.record(),
    }
    manifest = stored.manifest
    return Tokens(
        TokenSplit(stored.contexts("train"), special, "train", manifest.train.fingerprint),
        TokenSplit(stored.contexts("heldout"), special, "heldout", manifest.heldout.fingerprint),
        record,
    )


def refuse_too_little(n_contexts: int, context_size: int) -> None:
    """Raise ``DataError`` where there is no training context."""
    if n_contexts == 0:
        raise DataError(
            f"the training text fills no context of {context_size} tokens; give more text or a smaller context_size"
        )


def source_name(source: Any) -> str:
    """What is recorded of ``source``, to load it by again."""
    return str(source) if isinstance(source, (str, Path)) else IN_MEMORY


def _plain_exclusion(exclude: bool | Collection[int]) -> bool | list[int]:
    return exclude if isinstance(exclude, bool) else sorted(exclude)


def _tokenised(
    documents: list[Document], tokenizer: Any, context_size: int | None, fraction: float
) -> tuple[np.ndarray, np.ndarray, int, dict[str, Any]]:
    if tokenizer is None:
        raise ConfigError("text needs a tokenizer: pass model.tokenizer, or pretokenised data")
    if context_size is None:
        raise ConfigError("give context_size (number of tokens in a context)")
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise DataError("the text is empty")
    rule = packing_rule(tokenizer, context_size)
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        sides[is_heldout_name(document.name, fraction)].append(document)
    train, heldout = (pack(tokenise(side, tokenizer), rule) for side in sides)
    details = {
        "text_sha256": text_fingerprint(documents),
        "n_documents": len(documents),
        "n_heldout_documents": len(sides[1]),
        "begin_context": rule.begin_context,
        "separator": rule.separator,
        "end_context": rule.end_context,
    }
    return train, heldout, context_size, details


def tokenise(documents: Sequence[Document], tokenizer: Any, batch: int = 256) -> list[np.ndarray]:
    """The token ids of each document, int32, framed by nothing."""
    rows: list[np.ndarray] = []
    for start in range(0, len(documents), batch):
        texts = [document.text for document in documents[start : start + batch]]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows += [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    return rows


def packing_rule(tokenizer: Any, context_size: int) -> PackingRule:
    """How documents are packed for the model that ``tokenizer`` belongs to."""
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls is not None and sep is not None:
        return PackingRule(context_size=context_size, begin_context=cls, separator=sep, end_context=sep)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return PackingRule(context_size=context_size, begin_context=begin, separator=begin)


def _pretokenised(
    dataset: Any, column: str, context_size: int | None, fraction: float, max_rows: int | None
) -> tuple[np.ndarray, np.ndarray, int, dict[str, Any]]:
    if hasattr(dataset, "__len__"):
        rows = dataset.select_columns([column]).with_format("numpy")[:max_rows][column]
    else:  # streamed
        rows = [np.asarray(row[column]) for row in itertools.islice(dataset, max_rows)]
    lengths = {len(row) for row in rows}
    if not lengths:
        raise DataError("the pretokenised dataset is empty")
    size = context_size if context_size is not None else len(rows[0])
    if min(lengths) < size:
        raise DataError(
            f"a pretokenised row has {min(lengths)} tokens, context_size is {size}; use context_size={min(lengths)}"
        )
    if max(lengths) > size:
        import logging

        logging.getLogger("monosema.data").warning("pretokenised rows of up to %d are cut to %d", max(lengths), size)
    contexts = np.stack([np.asarray(row[:size]) for row in rows]).astype(np.int32)
    held = np.array([is_heldout_name(hashlib.sha256(row.tobytes()).hexdigest(), fraction) for row in contexts])
    return contexts[~held], contexts[held], size, {"pretokenised_column": column, "n_documents": len(contexts)}


def token_column(dataset: Any, column: str | None) -> str | None:
    """The column of an opened source that holds token ids; None where it is text."""
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


def special_token_ids(tokenizer: Any, exclude: bool | Collection[int]) -> frozenset[int]:
    """The tokens whose positions are not training rows; see ``load_tokens``."""
    if isinstance(exclude, bool):
        if not exclude or tokenizer is None:
            return frozenset()
        roles = (getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "cls", "sep", "pad", "mask"))
        framing = {token for token in roles if token is not None}
        # the unknown token stands for text, unless it is a framing token too (GPT-2 has one token for all)
        unknown = {getattr(tokenizer, "unk_token_id", None)} - framing
        return frozenset(token for token in tokenizer.all_special_ids if token not in unknown)
    return frozenset(int(token) for token in exclude)
