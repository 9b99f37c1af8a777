"""The numerical check of query, key and value: which columns of which projection are which.

The residual equations cannot see inside attention, and a fused projection read in the wrong layout gives plausible
numbers. Two facts of softmax attention decide, whatever the positional encoding: adding one constant to the values of
every position adds that constant to z (the weights of a query sum to one), and the query of a position influences no
other position's z, while its key does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from monosema.models.hooks import Action, ForwardStopped, Interceptor, ValueEdit
from monosema.models.sitemap import SiteMap
from monosema.models.trace import rms

_Q, _K, _V, _Z = (f"blocks.0.attn.hook_{part}" for part in "qkvz")


def check_heads(site_map: SiteMap, run: Callable[[], Any]) -> list[str]:
    """The facts above that do not hold in the first block; empty where they do, or where the sites are not defined."""
    if not all(name in site_map.sites for name in (_Q, _K, _V, _Z)):
        return []
    z = _z_with(site_map, run)
    problems = []
    n_heads, d_head = site_map.sites[_Z].shape
    n_kv_heads = site_map.sites[_V].shape[0]
    if n_heads % n_kv_heads or site_map.sites[_Q].shape != (n_heads, d_head):
        return ["block 0: the heads of query, key and value do not fit together"]
    generator = torch.Generator().manual_seed(1)
    constant = torch.randn(n_kv_heads, d_head, generator=generator).to(z) * (rms(z).mean().to(z) + 1e-3)
    expected = z + constant.repeat_interleave(n_heads // n_kv_heads, dim=0).flatten()
    shifted = _z_with(site_map, run, _V, lambda v: v + constant.flatten())
    # A tenth of the change is far above rounding in any dtype and far below what a wrong column causes.
    if float((shifted - expected).abs().max()) > 0.1 * float(constant.abs().max()):
        problems.append("block 0: hook_v is not what attention averages into hook_z")

    def disturb_first(x: Tensor) -> Tensor:
        first = x[:, :1] * -2 + torch.randn(x.shape[-1], generator=generator).to(x) * (rms(x).mean().to(x) + 1e-3)
        return torch.cat([first, x[:, 1:]], dim=1)

    if z.shape[1] > 1:
        moved_by_q, moved_by_k = (
            float((_z_with(site_map, run, name, disturb_first) - z)[:, 1:].abs().max()) for name in (_Q, _K)
        )
        if moved_by_q > 0.1 * moved_by_k or moved_by_k == 0.0:
            problems.append("block 0: hook_q and hook_k are not the queries and the keys")
    return problems


def _z_with(
    site_map: SiteMap, run: Callable[[], Any], edited: str | None = None, edit: ValueEdit | None = None
) -> Tensor:
    """z of the first block, [B, T, H·K], with one site edited."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> None:
        found.append(value.detach().clone())
        raise ForwardStopped

    interceptor = Interceptor()
    actions = [Action(tap=site_map.taps[_Z], name=_Z, observe=keep)]
    if edited is not None:
        actions.append(Action(tap=site_map.taps[edited], name=edited, edit=edit))
    with torch.no_grad(), interceptor.active(actions), suppress(ForwardStopped):
        run()
    return found[0]
