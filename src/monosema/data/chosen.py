"""Which contexts are read to measure a dictionary or to show its latents.

Evaluation and features choose by the same rule, so what they count for the same number of tokens is the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.words import counted
from monosema.data.tokens import Tokens, TokenSplit
from monosema.models import LanguageModel


def split_to_read(tokens: object, models: Collection[LanguageModel]) -> TokenSplit:
    """The split of ``tokens`` that is read: the held-out one of a ``Tokens``, a ``TokenSplit`` itself, or one made of a
    tensor of ids ``[n, T]``, in which the models' special tokens are special.

    Raises ``DataError`` where it holds no context, ``ConfigError`` where the ids are those of another tokenizer, and
    ``ShapeError`` where the contexts are not ``[n, T]`` or too long for a model.
    """
    if isinstance(tokens, Tokens):  # models that are read together share a vocabulary
        tokens.require_vocabulary_of(next(iter(models)))
    split = _split_of(tokens, frozenset().union(*(model.special_token_ids for model in models)))
    if split.contexts.numel() == 0:
        how = tokens.how_to_hold_out if isinstance(tokens, Tokens) else "give more text"
        raise DataError(f"the {split.name} split holds no context to read; {how}")
    for model in models:
        if model.context_size is not None and split.context_size > model.context_size:
            raise ShapeError(
                f"contexts of {counted(split.context_size, 'token')} are longer than the "
                f"{counted(model.context_size, 'position')} of "
                f"{model.name}; tokenise with a smaller context_size"
            )
    return split


def choose_contexts(split: TokenSplit, n_tokens: int | None) -> Tensor:
    """``[n]`` int64, ascending: the contexts of ``split`` that hold ``n_tokens`` tokens, all of them where None.

    They are spread evenly over the split: its first contexts are its first few documents, and not like the rest.
    """
    return spread_evenly(split.n_contexts, n_tokens, split.n_tokens / split.n_contexts)


def spread_evenly(n_contexts: int, n_tokens: int | None, tokens_per_context: float) -> Tensor:
    """Evenly spaced indices of as many of ``n_contexts`` contexts as hold ``n_tokens`` tokens."""
    n = n_contexts if n_tokens is None else min(n_contexts, math.ceil(n_tokens / tokens_per_context))
    return torch.arange(n) * n_contexts // max(1, n)


def require_known_ids(ids: Tensor, models: Collection[LanguageModel]) -> None:
    """Raise ``DataError`` for a token id that a model does not know."""
    low, high = int(ids.min()), int(ids.max())
    for model in models:
        if low < 0 or high >= model.vocab_size:
            raise DataError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {model.name} (0 to "
                f"{model.vocab_size - 1}); tokenise with the model's own tokenizer"
            )


def _split_of(tokens: object, special_token_ids: frozenset[int]) -> TokenSplit:
    if isinstance(tokens, Tokens):
        return tokens.heldout
    if isinstance(tokens, TokenSplit):
        return tokens
    if not isinstance(tokens, Tensor):
        raise ConfigError(
            "tokens must be a Tokens, a TokenSplit or an integer tensor of contexts [n, T], got "
            f"{type(tokens).__name__}"
        )
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ShapeError(
            f"contexts must be integer token ids [n, T], got {list(tokens.shape)} of {tokens.dtype}; "
            "for activations use activations="
        )
    if tokens.shape[1] == 0:
        raise DataError(f"contexts of no tokens were given, {list(tokens.shape)}; there is nothing to read")
    ids = tokens.detach().to(device="cpu", dtype=torch.int32).contiguous()
    if not torch.equal(ids, tokens.cpu()):
        raise DataError("the contexts hold ids that no vocabulary has: they do not fit into 32 bits")
    return TokenSplit(ids, special_token_ids, "contexts")
