"""Contexts as they travel: token ids, the documents in them, and which of their positions become rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from monosema.data.packing_config import Positions


@final
@dataclass(frozen=True)
class Contexts:
    """Some contexts, in order."""

    ids: Tensor
    """[n, context_size] token ids."""
    documents: Tensor | None = None
    """[n, context_size]: the number, within its context, of the document that a position belongs to, -1 for padding
    behind it. None where nothing is padded and documents of a context attend to each other."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: Tensor | slice) -> Contexts:
        return Contexts(self.ids[which], None if self.documents is None else self.documents[which])

    @staticmethod
    def joined(parts: Sequence[Contexts]) -> Contexts:
        """The contexts of at least one of ``parts``, one after another."""
        documents = [part.documents for part in parts if part.documents is not None]
        return Contexts(torch.cat([part.ids for part in parts]), torch.cat(documents) if documents else None)


@final
@dataclass(frozen=True)
class RowRule:
    """Which positions of contexts become rows."""

    special_token_ids: frozenset[int]
    """Tokens that frame text (BOS, EOS, [CLS], …); their positions do not."""
    positions: Positions = Positions()
    """Of the others, these."""

    def special_mask(self, ids: Tensor) -> Tensor:
        """True where ``ids`` holds a special token; same shape."""
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for token in self.special_token_ids:
            mask |= ids == token
        return mask

    def text_mask(self, contexts: Contexts) -> Tensor:
        """True where a position holds text: no special token and no padding; ``[n, T]``."""
        text = ~self.special_mask(contexts.ids)
        return text if contexts.documents is None else text & (contexts.documents >= 0)

    def row_mask(self, contexts: Contexts) -> Tensor:
        """True where a position becomes a row: text at one of ``positions``; ``[n, T]``."""
        mask = self.text_mask(contexts)
        if self.positions.is_everything:
            return mask
        chosen = torch.zeros(mask.shape[1], dtype=torch.bool)
        chosen[torch.tensor(self.positions.of(mask.shape[1]))] = True
        return mask & chosen


def contexts_needed(rows: Tensor, n_rows: int) -> int:
    """How many of the first contexts, which give ``rows [n]`` each, hold ``n_rows``; all where they give fewer."""
    return min(len(rows), int((rows.cumsum(0) < n_rows).sum()) + 1)


def special_token_ids(tokenizer: Any, exclude: bool | Collection[int]) -> frozenset[int]:
    """The tokenizer's special tokens where ``exclude`` is True, none where it is False, or the ids it lists."""
    if isinstance(exclude, bool):
        if not exclude or tokenizer is None:
            return frozenset()
        roles = (getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "cls", "sep", "pad", "mask"))
        framing = {token for token in roles if token is not None}
        # the unknown token stands for text, unless it is a framing token too (GPT-2 has one token for all)
        unknown = {getattr(tokenizer, "unk_token_id", None)} - framing
        return frozenset(token for token in tokenizer.all_special_ids if token not in unknown)
    return frozenset(int(token) for token in exclude)
