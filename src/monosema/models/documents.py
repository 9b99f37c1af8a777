"""Documents that share a context kept apart: what a model is given beside its token ids so that none sees another.

``documents_BT`` numbers the document of each position: 0 first, then 1, …; -1 is padding behind them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from monosema.core.errors import DataError, UserError
from monosema.core.logs import get_logger

logger = get_logger("monosema.models")

Inputs = dict[str, Tensor]
"""Arguments of a transformers model's forward pass."""

Cut = Callable[[Tensor, torch.dtype], Inputs]
"""From ``documents_BT`` and the model's dtype to what keeps the documents apart."""

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Relative to the largest logit (parts of a float64 model may compute in float32); 0.05 for types not named, and then
a fifth of what not cutting would do at most."""


def check_documents(documents_BT: Any, tokens_BT: Tensor) -> None:
    """Raise ``DataError`` for what does not number the documents of ``tokens_BT``."""
    if not isinstance(documents_BT, Tensor) or documents_BT.shape != tokens_BT.shape:
        raise DataError(f"expected the number of each token's document, in the tokens' shape {list(tokens_BT.shape)}")
    step = documents_BT[:, 1:] - documents_BT[:, :-1]
    is_padding = documents_BT[:, 1:] == -1
    goes_on = ((step == 0) | (step == 1)) & (documents_BT[:, :-1] >= 0)
    if not bool(((is_padding | goes_on).all(1) & (documents_BT[:, 0] == 0)).all()):
        raise DataError(
            "documents are numbered from 0 on along a context, and -1 is padding behind the last; got "
            f"{documents_BT.unique().tolist()[:9]} in another order"
        )


def has_several(documents_BT: Tensor) -> bool:
    """Whether a context holds more than one document."""
    return bool((documents_BT > 0).any())


def find_cut(
    run: Callable[[Mapping[str, Tensor]], Tensor], probe_BT: Tensor, dtype: torch.dtype, *, sliding_window: bool
) -> Cut | None:
    """The first way to keep documents apart that gives each of them what it gets alone; None where none does.

    ``run`` computes logits (or last hidden states) of a few tokens, given further inputs, and takes any of them.
    ``sliding_window`` says that layers see a window of their own, which an explicit mask would undo.
    """
    n_tokens = probe_BT.shape[1]
    if n_tokens < 4:
        return None
    places = torch.arange(n_tokens)
    documents_BT = torch.stack([(places >= 2).int() + (places >= 3).int(), (places >= n_tokens // 2 + 1).int()])
    for cut in (_by_positions,) if sliding_window else (_by_positions, _by_mask):
        if _holds(run, cut, probe_BT[:2], documents_BT.to(probe_BT.device), dtype):
            return cut
    return None


def _holds(
    run: Callable[[Mapping[str, Tensor]], Tensor], cut: Cut, tokens_BT: Tensor, documents_BT: Tensor, dtype: torch.dtype
) -> bool:
    try:
        together = run({"input_ids": tokens_BT, **cut(documents_BT, dtype)})
    except (TypeError, ValueError, RuntimeError) as error:
        logger.debug("one way to keep documents apart is not for this model: %s", error)
        return False
    alone = torch.empty_like(together)
    for context, documents_T in enumerate(documents_BT):
        for number in documents_T.unique().tolist():
            own = documents_T == number
            alone[context, own] = run({"input_ids": tokens_BT[context, own].unsqueeze(0)})[0]
    off = float((together - alone).abs().max())
    uncut = float((run({"input_ids": tokens_BT}) - alone).abs().max())
    close = off <= _TOLERANCE.get(dtype, 0.05) * float(together.abs().max())
    return close and (dtype in _TOLERANCE or off <= uncut / 5)


def _by_positions(documents_BT: Tensor, dtype: torch.dtype) -> Inputs:
    """Position ids that start again: transformers makes a mask of them that keeps documents apart."""
    return {"position_ids": positions_in_documents(documents_BT)}


def _by_mask(documents_BT: Tensor, dtype: torch.dtype) -> Inputs:
    """The same and an explicit mask ``[B, 1, T, T]``, added to attention scores: for models that make none of them."""
    seen_BTT = (documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)).tril()
    mask = torch.zeros(seen_BTT.shape, dtype=dtype, device=documents_BT.device)
    mask.masked_fill_(~seen_BTT, torch.finfo(dtype).min)
    return {**_by_positions(documents_BT, dtype), "attention_mask": mask.unsqueeze(1)}


def positions_in_documents(documents_BT: Tensor) -> Tensor:
    """The place of each position within its document, from 0 on; ``[B, T]`` int64."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins = torch.ones_like(documents_BT, dtype=torch.bool)
    begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return places_T - torch.where(begins, places_T, 0).cummax(1).values


def refuse_several(kind: str, reason: str) -> UserError:
    """The error for a model that cannot keep documents apart."""
    return UserError(
        f"{kind} cannot keep the documents of a context apart: {reason}. Leave attend_across_documents=True, or give "
        "each document contexts of its own with packing mode 'windows', 'truncate' or 'one_document'"
    )
