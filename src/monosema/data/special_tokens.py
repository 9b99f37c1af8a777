"""Tokens that frame text (BOS, EOS, [CLS], …): which they are, and where they stand."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def special_mask(contexts: Tensor, special_token_ids: Collection[int]) -> Tensor:
    """True where ``contexts`` holds a special token; same shape."""
    mask = torch.zeros_like(contexts, dtype=torch.bool)
    for token in special_token_ids:
        mask |= contexts == token
    return mask


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
