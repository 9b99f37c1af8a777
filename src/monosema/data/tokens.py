"""A tokenised corpus: contexts of token ids, one part of its documents held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, ShapeError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.words import counted
from monosema.data.contexts import Contexts, RowRule
from monosema.data.named_models import vocabulary_difference
from monosema.data.packed.contexts import StoredContexts
from monosema.data.packing_config import Positions
from monosema.data.streamed import StreamedSplit
from monosema.models import LanguageModel

_TOKENS_AT_ONCE = 2**24


@shown_as_facts
@dataclass(frozen=True, repr=False)
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

    def _facts(self) -> Facts:
        n, size = counted(self.n_contexts, "context"), counted(self.context_size, "token")
        return Facts(f"TokenSplit({self.name}, {n} of {size})")


@shown_as_facts
@dataclass(frozen=True, repr=False)
class Tokens:
    """A tokenised corpus, split by document."""

    train: TokenSplit | StreamedSplit
    """What dictionaries are trained on."""
    heldout: TokenSplit
    """What they are evaluated on."""
    record: Mapping[str, Any]
    """What was read and how, JSON-able; kept with every dictionary trained on it."""
    tokenizer: Any = field(default=None, repr=False, compare=False)
    """What the ids belong to; None where that is not known."""

    @property
    def context_size(self) -> int:
        return self.train.context_size

    @property
    def how_to_hold_out(self) -> str:
        """What to do where the held-out side is empty."""
        function = "pretokenize" if "pretokenized" in self.record else "load_tokens"
        if not self.record.get("heldout_fraction"):
            return f"{function}(..., heldout_fraction=0.02) sets some text aside"
        return (
            f"the text has too few documents to fill a context of {counted(self.context_size, 'token')} beside those "
            "trained on; "
            f"give {function} more text or a smaller context_size"
        )

    def require_vocabulary_of(self, model: LanguageModel) -> None:
        """Raise ``ConfigError`` where the ids mean something else to ``model``; not known without both tokenizers.

        Tokens that were added to one of them do not matter.
        """
        if self.tokenizer is None or model.tokenizer is None or self.tokenizer is model.tokenizer:
            return
        problem = vocabulary_difference("the tokens", self.tokenizer, model.name, model.tokenizer, additions=False)
        if problem:
            raise ConfigError(
                f"the tokens were made with another tokenizer than that of {model.name}: {problem}. Tokenise the text "
                "with model.tokenizer, or, if the ids mean the same, load the model with load_model(..., tokenizer=...)"
            )

    def _facts(self) -> Facts:
        n_train = f"{self.train.n_tokens:,}" if isinstance(self.train, TokenSplit) else "streamed"
        return Facts(
            f"Tokens({self.record['source']}: {n_train} training and "
            f"{counted(self.heldout.n_tokens, 'held-out token')} in "
            f"contexts of {self.context_size})"
        )
