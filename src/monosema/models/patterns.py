"""Attention patterns, whatever attention a model runs with: one pass of its own eager attention, which forms them.

Fast implementations never have the pattern, [B, H, T, T], so for one forward pass the model's configurations say
``eager``; afterwards they say what they said before, however the pass ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from monosema.core.errors import UserError
from monosema.models.language_model import LanguageModel
from monosema.models.sites import join_name, split_head, split_name
from monosema.models.verify import probe_tokens

_IMPLEMENTATION = "_attn_implementation_internal"
"""Where a transformers configuration keeps it; the public property also writes to the configurations inside."""


@dataclass(frozen=True)
class PatternHeads:
    """The attention heads whose patterns a site of queries or keys decides."""

    layer: int
    """The block they are in."""
    heads: tuple[int, ...]
    """Their indices among the query heads."""


def pattern_heads(model: LanguageModel, name: str) -> PatternHeads | None:
    """Those of ``attn.hook_q``, ``attn.hook_k`` or one head of either; None for every other site.

    A key head is read by all the query heads that share it (grouped-query attention).
    """
    whole, head = split_head(name)
    layer, inner = split_name(whole)
    if layer is None or inner not in ("attn.hook_q", "attn.hook_k"):
        return None
    n_heads, n_own = (model.site(join_name(layer, each)).shape[0] for each in ("attn.hook_z", inner))
    first, n = (0, n_own) if head is None else (int(head), 1)
    shared_by = n_heads // n_own
    return PatternHeads(layer, tuple(range(first * shared_by, (first + n) * shared_by)))


def attention_pattern(
    model: LanguageModel, tokens_BT: Tensor, layer: int, *, documents_BT: Tensor | None = None
) -> Tensor:
    """The attention weights ``[B, H, T, T]`` (queries, then keys) of one block by the model's eager attention.

    The pass ends at that block. Inside ``edits`` they are those after the edits; ``documents_BT`` as in
    ``LanguageModel.__call__``. Until it has ended, other threads wait for the model (``LanguageModel.reserved``).

    Raises ``UserError`` where the model does not give its weights, and what ``capture`` raises.
    """
    name = join_name(layer, "attn.hook_pattern")
    with model.reserved(), _eager_attention(model):
        return model.capture(tokens_BT, [name], documents_BT=documents_BT)[name]


def why_no_pattern(model: LanguageModel, layer: int) -> str:
    """Why ``attention_pattern`` cannot be had of a block, found out on a few tokens; empty where it can."""
    tokens_BT = probe_tokens(model.vocab_size, model.special_token_ids, model.device, model.context_size)
    try:
        attention_pattern(model, tokens_BT, layer)
    except UserError as error:
        return str(error)
    except (AttributeError, ImportError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"eager attention of {type(model.hf).__name__} fails with {type(error).__name__}: {error}"
    return ""


@contextmanager
def _eager_attention(model: LanguageModel) -> Iterator[None]:
    """Inside, ``model`` runs eager attention where its code chooses by its configuration."""
    found = [getattr(module, "config", None) for module in model.hf.modules()]
    own = {id(each): each for each in found if _IMPLEMENTATION in getattr(each, "__dict__", {})}.values()
    before = [(each, getattr(each, _IMPLEMENTATION)) for each in own]
    try:
        for each, _ in before:
            setattr(each, _IMPLEMENTATION, "eager")
        yield
    finally:
        for each, implementation in before:
            setattr(each, _IMPLEMENTATION, implementation)
