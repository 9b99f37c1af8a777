"""``load_tokens``: text in, packed contexts with a fixed held-out split out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError
from monosema.data.config import MIXTURE, Mixture, TextSource
from monosema.data.corpus import Corpus, open_parts, token_column
from monosema.data.packing import PackingRule, pack
from monosema.data.stdlib import HELDOUT_FRACTION as STDLIB_HELDOUT_FRACTION
from monosema.data.stdlib import STDLIB, is_heldout_name
from monosema.data.tokenise import encode
from monosema.data.workers import Workers

DEFAULT_HELDOUT_FRACTION = 0.02


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
    """sha256 of the contexts."""

    def __post_init__(self) -> None:
        if not self.fingerprint:
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
    streaming: bool = False,
    n_processes: int = 1,
) -> Tokens:
    """Tokenise ``source``, pack it to contexts of exactly ``context_size``, and hold part of its documents out.

    Args:
        source: ``"stdlib"``; a file (.txt, .md, .rst, .py, .json, .jsonl, .ndjson, .parquet; also .gz and .zst), a
            folder of them, a glob, a URL of these that fsspec knows (``s3://bucket/*.jsonl.zst``); an iterable of
            strings, of records or of ``pathlib.Path``, or a function that returns one; a Hugging Face dataset, one
            saved on disk, or its name; a dataset with a ``tokens`` or ``input_ids`` column; a ``Mixture``.
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

    Raises:
        ConfigError: options that contradict each other or the source.
        DataError: no text, text that cannot be read, or too little for one training context.
        FileError: a file that is missing or damaged.
    """
    text = _text_source(
        source,
        column=column,
        max_documents=max_documents,
        split=split,
        config_name=config_name,
        data_files=_file_names(data_files),
        data_dir=data_dir,
        streaming=streaming,
    )
    fraction = resolve_heldout_fraction(source, heldout_fraction)
    special = _special_token_ids(tokenizer, exclude_special_tokens)
    opened = open_parts(text)
    dataset, pretokenised = next(iter(opened.values())), None
    if isinstance(text, TextSource):
        pretokenised = token_column(dataset, column)
    if pretokenised is not None:
        packed = _pretokenised(dataset, pretokenised, context_size, fraction, max_documents)
    else:
        with Workers(tokenizer, n_processes, encode) if n_processes != 1 else nullcontext() as workers:
            packed = _tokenised(Corpus(text, opened, tokenizer, workers), tokenizer, context_size, fraction)
    train, heldout, context_size, details = packed
    if len(train) == 0:
        raise DataError(
            f"the training text fills no context of {context_size} tokens; give more text or a smaller context_size"
        )
    record = {
        **text.record(),
        "context_size": context_size,
        "heldout_fraction": fraction,
        "exclude_special_tokens": (
            exclude_special_tokens if isinstance(exclude_special_tokens, bool) else sorted(exclude_special_tokens)
        ),
        **details,
    }
    return Tokens(
        TokenSplit(torch.from_numpy(train), special, "train"),
        TokenSplit(torch.from_numpy(heldout), special, "heldout"),
        record,
    )


def _text_source(source: Any, **options: Any) -> TextSource | Mixture:
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
    corpus: Corpus, tokenizer: Any, context_size: int | None, fraction: float
) -> tuple[np.ndarray, np.ndarray, int, dict[str, Any]]:
    if context_size is None:
        raise ConfigError("give context_size (number of tokens in a context)")
    rule = _packing_rule(tokenizer, context_size)
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for each in corpus:
        sides[is_heldout_name(each.document.name, fraction)].append(each.tokens)
    if not any(sides):
        raise DataError("the text is empty")
    train, heldout = (pack(side, rule) for side in sides)
    details = {
        **corpus.record(),
        "n_heldout_documents": len(sides[1]),
        "begin_context": rule.begin_context,
        "separator": rule.separator,
        "end_context": rule.end_context,
    }
    return train, heldout, context_size, details


def _packing_rule(tokenizer: Any, context_size: int) -> PackingRule:
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
