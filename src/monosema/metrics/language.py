"""How much of the model's behaviour survives when a site is replaced: cross-entropy and KL divergence per token.

Shape letters: V vocabulary. ``log_p`` and ``log_q`` are log-probabilities ``[..., V]`` from :func:`log_probs`; losses
are in nats. Three runs are compared: clean (nothing edited), spliced (the site becomes the reconstruction) and
ablated (the site becomes zero, or its mean).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monosema.core.errors import ShapeError
from monosema.metrics.checks import wide

_BLOCK = 64


def log_probs(logits: Tensor) -> Tensor:
    """``log softmax(logits)`` over the last axis, in float32 or wider whatever the model's dtype.

    >>> log_probs(torch.zeros(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def token_cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """``-log p(target)`` of each token, in nats: ``log_p [..., V]`` and ``targets [...]`` give ``[...]`` float64.

    In [0, inf). Raises ``ShapeError`` where the leading shapes differ.
    """
    if log_p.shape[:-1] != targets.shape:
        raise ShapeError(
            f"expected one target per prediction, got log_p {list(log_p.shape)} and targets {list(targets.shape)}"
        )
    return -wide(log_p.gather(-1, targets.to(torch.int64).unsqueeze(-1)).squeeze(-1))


def token_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q) = sum_v p_v (log p_v - log q_v)`` of each token, in nats.

    Two ``[..., V]`` give ``[...]`` float64, in [0, inf] (down to about -1e-6 where the rounding of float32
    log-probabilities is all there is); ``p`` is the clean run. An entry with ``p_v = 0`` contributes 0, also where
    ``q_v = 0``. Raises ``ShapeError`` where shapes differ.
    """
    if log_p.shape != log_q.shape:
        raise ShapeError(f"log_p and log_q must have one shape [..., V], got {list(log_p.shape)}, {list(log_q.shape)}")
    divergence = _row_sums((log_p - log_q).mul_(log_p.exp()))
    undefined = divergence.isnan()  # 0 * inf, where the model gives an entry no probability at all
    if bool(undefined.any()):
        p, q = log_p[undefined.to(log_p.device)], log_q[undefined.to(log_q.device)]
        divergence[undefined] = _row_sums(torch.where(p == -math.inf, 0.0, (p - q) * p.exp()))
    return divergence


def negative_entropy(log_p: Tensor, p: Tensor) -> Tensor:
    """``sum_v p_v log p_v`` of each token, ``[...]`` float64 in [-log V, 0].

    ``log_p`` and ``p = exp(log_p)`` are ``[..., V]``. An entry with ``p_v = 0`` contributes 0.
    """
    return _expected(p, log_p.clone())


def token_kl_from(p: Tensor, negative_entropy: Tensor, log_q: Tensor, *, overwrites: bool = False) -> Tensor:
    """``token_kl(log p, log_q)`` where ``p [..., V]`` is compared many times: one pass over ``log_q [..., V]`` each.

    ``sum_v p_v log p_v - sum_v p_v log q_v``, the first sum given. Equal to :func:`token_kl` but for the rounding of
    float32 in either sum, about 1e-6. ``overwrites`` says that ``log_q`` is not needed any more.
    """
    if p.shape != log_q.shape:
        raise ShapeError(f"p and log_q must have one shape [..., V], got {list(p.shape)}, {list(log_q.shape)}")
    return negative_entropy - _expected(p, log_q if overwrites else log_q.clone())


def top_token(log_p: Tensor) -> Tensor:
    """``argmax_v log p_v`` of each token, ``[..., V]`` to ``[...]``: one of the most probable where several are.

    The block of the largest value is looked for first, as a search for the place of a maximum takes 5 times as long as
    one for the maximum.
    """
    n = log_p.shape[-1] // _BLOCK * _BLOCK
    blocks, rest = log_p[..., :n].unflatten(-1, (-1, _BLOCK)), log_p[..., n:]
    if n == 0:
        return rest.argmax(-1)
    largest = blocks.amax(-1)
    which = largest.argmax(-1, keepdim=True)
    inside = blocks.gather(-2, which.unsqueeze(-1).expand(*which.shape, _BLOCK)).squeeze(-2).argmax(-1)
    top = which.squeeze(-1) * _BLOCK + inside
    if rest.shape[-1] == 0:
        return top
    is_behind = rest.amax(-1) > largest.amax(-1)
    return torch.where(is_behind, n + rest.argmax(-1), top)


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """``sum_v p_v values_v`` of each token, where 0 times an infinity is 0; overwrites ``values``."""
    products = values.mul_(p)
    total = _row_sums(products)
    if bool(total.isnan().any()):  # the model gives an entry no probability at all
        total = _row_sums(products.masked_fill_(p == 0, 0.0))
    return total


def _row_sums(terms: Tensor) -> Tensor:
    """``[..., V]`` summed over V into float64.

    Blocks of a fixed length are summed in the dtype given, so that only one value in 64 is widened; fixed, so that the
    result of a row depends on no other row.
    """
    n_blocks = terms.shape[-1] // _BLOCK
    blocks = terms[..., : n_blocks * _BLOCK].unflatten(-1, (n_blocks, _BLOCK)).sum(-1)
    return wide(blocks).sum(-1) + wide(terms[..., n_blocks * _BLOCK :]).sum(-1)
