"""Packing documents into contexts of exactly ``context_size`` tokens.

A context starts with the begin token; documents follow one another, parted by the separator; where a document runs
over, it goes on in the next context. A token that is already there is not written twice. No padding; the tail that
fills no context is dropped. The rules are SAELens' ``concat_and_batch_sequences`` (6.54), token for token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from monosema.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PackingRule:
    """Which tokens frame contexts and documents; None leaves the place empty."""

    context_size: int
    """Tokens in a context, framing included."""
    begin_context: int | None
    """First token of every context (BOS, [CLS])."""
    separator: int | None
    """Token between two documents of one context (BOS, EOS, [SEP])."""
    end_context: int | None = None
    """Last token of every context ([SEP] of encoders)."""

    def __post_init__(self) -> None:
        framing = sum(token is not None for token in (self.begin_context, self.end_context))
        if self.context_size <= framing:
            raise ConfigError(f"context_size must exceed {framing}, got {self.context_size}")


class Packer:
    """Packs documents as they come. What fills no context yet is ``carried``: another packer goes on from there."""

    def __init__(self, rule: PackingRule, carried: Sequence[int] = ()):
        self._rule = rule
        self._size = rule.context_size - (rule.end_context is not None)
        self._parts = [np.array(carried, dtype=np.int32)]
        self._filled = len(carried)
        self._contexts: list[np.ndarray] = []

    @property
    def carried(self) -> list[int]:
        """The beginning of the next context."""
        return np.concatenate(self._parts).tolist() if self._parts else []

    def add(self, documents: Iterable[np.ndarray]) -> np.ndarray:
        """Contexts ``[n, context_size]`` int32 that the tokenised ``documents`` complete, in order."""
        rule = self._rule
        for document in documents:
            offset = 0
            while offset < len(document):
                mark = rule.begin_context if self._filled == 0 else rule.separator if offset == 0 else None
                if mark is not None and document[offset] != mark:
                    self._put(np.array([mark], dtype=np.int32))
                    if self._filled == 0:  # the mark was the last that fitted: the document opens the next context
                        continue
                offset += self._put(document[offset:].astype(np.int32, copy=False))
        completed, self._contexts = self._contexts, []
        if not completed:
            return np.zeros((0, rule.context_size), dtype=np.int32)
        packed = np.stack(completed)
        if rule.end_context is not None:
            packed = np.concatenate([packed, np.full((len(packed), 1), rule.end_context, dtype=np.int32)], axis=1)
        return packed

    def _put(self, tokens: np.ndarray) -> int:
        """Append what fits; returns how much that was."""
        taken = tokens[: self._size - self._filled]
        self._parts.append(taken)
        self._filled += len(taken)
        if self._filled == self._size:
            self._contexts.append(np.concatenate(self._parts))
            self._parts, self._filled = [], 0
        return len(taken)


def pack(documents: Iterable[np.ndarray], rule: PackingRule) -> np.ndarray:
    """Contexts ``[n, context_size]`` int32 from tokenised documents, in order."""
    return Packer(rule).add(documents)
