"""Sites: the names of activations, and what a name promises.

Names are TransformerLens'. ``MODEL_NAMES`` and ``BLOCK_NAMES`` are the whole grammar, in the order of the computation;
which of them a model defines depends on its architecture, and ``taps.py`` says where each is read and written. One head
of a site that has heads is a site too, its index in brackets: ``blocks.2.attn.hook_z[3]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from monosema.core.errors import UnknownNameError, UserError

BLOCK_NAMES = (
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "hook_mixer_in",
    "hook_mixer_out",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "ln1_post.hook_scale",
    "ln1_post.hook_normalized",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "ln2_post.hook_scale",
    "ln2_post.hook_normalized",
    "hook_mlp_out",
    "hook_resid_post",
    "hook_normalized_resid_post",
)
"""Names inside a block, written ``blocks.{layer}.{name}``."""

MODEL_NAMES = ("hook_embed", "ln_final.hook_scale", "ln_final.hook_normalized")
"""Names outside the blocks."""

ON_REQUEST = ("attn.hook_pattern",)
"""Names that are not listed by ``hook_names`` because most attention implementations never compute them."""

HEAD_NAMES = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "attn.hook_result")
"""Names whose last dimension is [heads, width of one]; an index in brackets names one head of them."""

_BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
_HEAD_NAME = re.compile(r"(.+)\[([^\[\]]*)\]")


@dataclass(frozen=True, kw_only=True)
class Site:
    """One activation site of one model.

    Captured values and the values edits see are flat, [B, T, width]; ``value.unflatten(-1, site.shape)`` gives the
    heads back: query and z are [B, T, n_heads, d_head], key and value [B, T, n_kv_heads, d_head] (grouped-query
    attention is not expanded), all before rotary embedding and query-key norms; ``hook_result`` is [B, T, n_heads,
    d_model]. The one exception is ``attn.hook_pattern``, which has no width of its own: it is [B, n_heads, T, T].
    """

    name: str
    """The hook name, or ``module.path:in`` / ``module.path:out``."""
    width: int
    """Size of the last dimension of the flat value (``n_heads`` for ``attn.hook_pattern``)."""
    shape: tuple[int, ...]
    """The dimensions that ``width`` flattens."""
    writable: bool
    """Whether ``edits`` accepts the site."""
    read_only_reason: str = ""
    """Why not, when it is not."""
    layer: int | None = None
    """The block's index; ``None`` outside the blocks and for module paths."""

    def value_shape(self, tokens_shape: tuple[int, int]) -> tuple[int, ...]:
        """The shape of the flat value on tokens [B, T]."""
        n_batch, n_tokens = tokens_shape
        if split_name(self.name)[1] == "attn.hook_pattern":
            return (n_batch, self.width, n_tokens, n_tokens)
        return (n_batch, n_tokens, self.width)


def split_name(name: str) -> tuple[int | None, str]:
    """``"blocks.3.attn.hook_q"`` as ``(3, "attn.hook_q")``, and a name outside the blocks as ``(None, name)``."""
    match = _BLOCK_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def join_name(layer: int | None, name: str) -> str:
    """The inverse of ``split_name``."""
    return name if layer is None else f"blocks.{layer}.{name}"


def split_head(name: str) -> tuple[str, str | None]:
    """``"blocks.2.attn.hook_z[3]"`` as ``("blocks.2.attn.hook_z", "3")``, and a name without brackets with ``None``."""
    match = _HEAD_NAME.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def one_head(whole: Site, index: str) -> tuple[Site, slice]:
    """Head ``index`` of ``whole``: its site, and its columns in the flat value of ``whole``.

    Raises:
        UserError: the site has no heads.
        UnknownNameError: there is no such head; the message says how many there are.
    """
    inner = split_name(whole.name)[1]
    if inner not in HEAD_NAMES:
        raise UserError(
            f"{whole.name!r} cannot be cut into heads; an index in brackets works on "
            f"{', '.join(HEAD_NAMES[:-1])} and {HEAD_NAMES[-1]}"
        )
    n_heads, width = whole.shape
    if not re.fullmatch("0|[1-9][0-9]*", index) or int(index) >= n_heads:
        kind = "key-value heads" if inner in ("attn.hook_k", "attn.hook_v") else "heads"
        raise UnknownNameError(
            f"unknown head {index!r} of {whole.name!r}, which has {n_heads} {kind}: write an index from 0 to "
            f"{n_heads - 1}, as in '{whole.name}[{n_heads - 1}]'"
        )
    head = int(index)
    site = replace(whole, name=f"{whole.name}[{head}]", width=width, shape=(width,))
    return site, slice(head * width, (head + 1) * width)
