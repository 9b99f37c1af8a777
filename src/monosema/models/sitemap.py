"""From the parts of a model to its sites: every hook name it defines, and for the others the reason it does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monosema.models.architectures import AttentionLayout
from monosema.models.calls import Side
from monosema.models.norms import NormRule
from monosema.models.parts import BlockParts, ModelParts
from monosema.models.sites import BLOCK_NAMES, MODEL_NAMES, Site, join_name
from monosema.models.taps import (
    ColumnsTap,
    HeadResultTap,
    NormalizedTap,
    PatternTap,
    ResidMidTap,
    ScaleTap,
    Tap,
    WholeTap,
    projection_size,
)
from monosema.models.verify import NORM_PARTS, Measurements

_RANK = {name: rank for rank, name in enumerate((*BLOCK_NAMES, *MODEL_NAMES))}


@dataclass(frozen=True, kw_only=True)
class SiteMap:
    """The sites of one model."""

    sites: dict[str, Site]
    """Every defined site by name, in the order of the computation."""
    taps: dict[str, Tap]
    """Where each is read and written."""
    absent: dict[str, str]
    """Why this model does not define a name: by the name, or without ``blocks.{L}.`` where it holds in every block."""


def build_site_map(parts: ModelParts, measured: Measurements, *, n_heads: int, d_model: int) -> SiteMap:
    """The sites of a model whose map was verified; ``n_heads`` is the number of query heads."""
    builder = _Builder(parts, measured, n_heads, d_model)
    builder.add_whole("hook_embed", None, parts.embed, "out", factor=measured.embed_factor)
    for layer, block in enumerate(parts.blocks):
        builder.add_block(layer, block)
    builder.add_norm("ln_final", None, parts.ln_final, "the model's map has no final norm")
    return SiteMap(sites=builder.sites, taps=builder.taps, absent=builder.absent)


class _Builder:
    def __init__(self, parts: ModelParts, measured: Measurements, n_heads: int, d_model: int) -> None:
        self.parts = parts
        self.measured = measured
        self.n_heads = n_heads
        self.d_model = d_model
        self.layout = parts.architecture.block
        self.sites: dict[str, Site] = {}
        self.taps: dict[str, Tap] = {}
        self.absent: dict[str, str] = {}

    def add(self, name: str, layer: int | None, tap: Tap, shape: tuple[int, ...], read_only_reason: str = "") -> None:
        full_name = join_name(layer, name)
        width = 1
        for size in shape:
            width *= size
        self.taps[full_name] = tap
        self.sites[full_name] = Site(
            name=full_name,
            width=width,
            shape=shape,
            writable=not read_only_reason,
            read_only_reason=read_only_reason,
            layer=layer,
        )

    def add_whole(
        self,
        name: str,
        layer: int | None,
        module: nn.Module,
        side: Side,
        *,
        factor: float = 1.0,
        shape: tuple[int, ...] = (),
    ) -> None:
        self.add(name, layer, WholeTap(module, side, _RANK[name], factor), shape or (self.d_model,))

    def add_norm(self, part: str, layer: int | None, module: nn.Module | None, why_absent: str) -> None:
        rule: NormRule | None = self.measured.norms.get(module) if module is not None else None
        scale, normalized = f"{part}.hook_scale", f"{part}.hook_normalized"
        if rule is None:
            reason = why_absent if module is None else f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm"
            self.absent |= {scale: reason, normalized: reason}
            return
        self.add(scale, layer, ScaleTap(rule, _RANK[scale]), (1,), "a norm computes its scale from its input")
        if part == "ln2" and self.layout.ln1 == self.layout.ln2:
            self.add(
                normalized,
                layer,
                self.taps[join_name(layer, "ln1.hook_normalized")],
                (self.d_model,),
                "attention and MLP share one norm in this architecture; edit ln1.hook_normalized, which feeds both",
            )
            return
        self.add(normalized, layer, NormalizedTap(rule, _RANK[normalized]), (self.d_model,))

    def add_block(self, layer: int, block: BlockParts) -> None:
        kind = self.layout.kind
        self.add_whole("hook_resid_pre", layer, block.block, "in")
        for part in NORM_PARTS:
            why = f"blocks of this architecture have no norm in the place of {part}"
            self.add_norm(part, layer, block.get(part), self.parts.architecture.opaque_reason or why)
        if kind == "mixer":
            self._add_mixer(layer, block)
        else:
            self._refuse("this architecture has attention and MLP, not a mixer", "hook_mixer_in", "hook_mixer_out")
            if kind == "opaque":
                self._refuse_inside(self.parts.architecture.opaque_reason)
            else:
                self._add_attention(layer, block)
                self._add_branches(layer, block)
                self._add_mlp(layer, block)
        if kind == "post_norm":
            ln2 = _required(block, "ln2")
            self.add_whole("hook_resid_post", layer, ln2, "in")
            self.add_whole("hook_normalized_resid_post", layer, block.block, "out")
        elif block.block in self.measured.normed_blocks:
            self.add_whole("hook_normalized_resid_post", layer, block.block, "out")
            name = join_name(layer, "hook_resid_post")
            self.absent[name] = (
                "this block's output is the output of a norm, and the sum before the norm was not found; use "
                f"{join_name(layer, 'hook_normalized_resid_post')!r}, the block's output"
            )
        else:
            self.add_whole("hook_resid_post", layer, block.block, "out")
            self._refuse(
                "only post-norm models norm the stream itself; here use ln_final.hook_normalized",
                "hook_normalized_resid_post",
            )

    def _refuse(self, reason: str, *names: str) -> None:
        self.absent |= dict.fromkeys(names, reason)

    def _refuse_inside(self, reason: str) -> None:
        inside = [name for name in BLOCK_NAMES if name.startswith(("attn.", "mlp."))]
        self._refuse(reason, *inside, "hook_attn_out", "hook_mlp_out", "hook_resid_mid")

    def _add_mixer(self, layer: int, block: BlockParts) -> None:
        mixer = _required(block, "mixer")
        self.add_whole("hook_mixer_in", layer, mixer, "in")
        self.add_whole("hook_mixer_out", layer, mixer, "out")
        self._refuse_inside(
            "a state-space block has neither attention nor MLP, one mixer takes their place; "
            "use hook_mixer_in and hook_mixer_out"
        )

    def _add_branches(self, layer: int, block: BlockParts) -> None:
        attn_branch = block.get("ln1_post") or _required(block, "attn_out")
        mlp_branch = block.get("ln2_post") or _required(block, "mlp_out")
        factor = self.parts.factor
        self.add_whole("hook_attn_out", layer, attn_branch, "out", factor=factor)
        self.add_whole("hook_mlp_out", layer, mlp_branch, "out", factor=factor)
        if self.layout.kind == "parallel":
            self._refuse(
                "attention and MLP of a parallel block both read resid_pre and are added together, so the stream has "
                "no value between them; use hook_resid_pre, hook_attn_out, hook_mlp_out or hook_resid_post",
                "hook_resid_mid",
            )
        elif self.layout.kind == "post_norm":
            self.add_whole("hook_resid_mid", layer, _required(block, "ln1"), "in")
        else:
            tap = ResidMidTap(attn_branch, block.block, _RANK["hook_resid_mid"], factor)
            self.add("hook_resid_mid", layer, tap, (self.d_model,))

    def _add_mlp(self, layer: int, block: BlockParts) -> None:
        self.add_whole("mlp.hook_in", layer, _required(block, "mlp_in"), "in")
        for name, part, side in (
            ("mlp.hook_pre", "mlp_gate", "out"),
            ("mlp.hook_pre_linear", "mlp_up", "out"),
            ("mlp.hook_post", "mlp_down", "in"),
        ):
            module = block.get(part)
            size = projection_size(module) if module is not None else None
            if module is None or size is None:
                gated = "this MLP has no second linear map that multiplies the activation"
                inside = "the inside of this MLP is not known (a fused or mixture-of-experts MLP)"
                self._refuse(gated if part == "mlp_up" and block.get("mlp_gate") else inside, name)
            elif side == "out":
                self.add_whole(name, layer, module, "out", shape=(size[1],))
            else:
                self.add_whole(name, layer, module, "in", shape=(size[0],))

    def _add_attention(self, layer: int, block: BlockParts) -> None:
        names = [name for name in BLOCK_NAMES if name.startswith("attn.")]
        attention = _required(block, "attn_in")
        self.add(
            "attn.hook_pattern",
            layer,
            PatternTap(attention, _RANK["attn.hook_pattern"]),
            (self.n_heads,),
            "eager attention returns the weights after it used them",
        )
        output_projection = block.get("o")
        size = projection_size(output_projection) if output_projection is not None else None
        if self.layout.attention is None or output_projection is None or size is None or size[0] % self.n_heads:
            reason = "the inside of this attention is not known; hook_attn_out and module paths still work"
            self._refuse(reason, *(name for name in names if name != "attn.hook_pattern"))
            return
        d_head = size[0] // self.n_heads
        heads = (self.n_heads, d_head)
        self._add_projections(layer, block, self.layout.attention, d_head)
        self.add_whole("attn.hook_z", layer, output_projection, "in", shape=heads)
        self.add(
            "attn.hook_result",
            layer,
            HeadResultTap(output_projection, _RANK["attn.hook_result"], self.n_heads),
            (self.n_heads, size[1]),
            "the model only ever forms the sum over heads; edit attn.hook_z or hook_attn_out",
        )

    def _add_projections(self, layer: int, block: BlockParts, layout: AttentionLayout, d_head: int) -> None:
        fused = block.get("qkv")
        if fused is not None and layout.fused_layout is not None:
            size = projection_size(fused)
            assert size is not None, "a fused projection in the table is linear"
            n_kv_heads = (size[1] // d_head - self.n_heads) // 2
            columns = fused_columns(layout.fused_layout, self.n_heads, n_kv_heads, d_head)
            for name, columns_W in zip(("attn.hook_q", "attn.hook_k", "attn.hook_v"), columns, strict=True):
                shape = (len(columns_W) // d_head, d_head)
                self.add(name, layer, ColumnsTap(fused, _RANK[name], columns_W), shape)
            return
        for part in ("q", "k", "v"):
            name, module = f"attn.hook_{part}", block.get(part)
            size = projection_size(module) if module is not None else None
            if module is None or size is None or size[1] % d_head:
                self._refuse("this attention has no separate, or no known fused, query, key and value map", name)
            else:
                self.add_whole(name, layer, module, "out", shape=(size[1] // d_head, d_head))


def fused_columns(layout: str, n_heads: int, n_kv_heads: int, d_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of a fused projection that are query, key and value, each in head order (see ``FusedLayout``)."""
    every = torch.arange((n_heads + 2 * n_kv_heads) * d_head)
    if layout == "concatenated":
        q, k, v = every.split([n_heads * d_head, n_kv_heads * d_head, n_kv_heads * d_head])
        return q, k, v
    grouped = every.view(n_kv_heads, n_heads // n_kv_heads + 2, d_head)
    return grouped[:, :-2].reshape(-1), grouped[:, -2].reshape(-1), grouped[:, -1].reshape(-1)


def _required(block: BlockParts, part: str) -> nn.Module:
    module = block.get(part)
    assert module is not None, f"a verified map has {part!r}"
    return module
