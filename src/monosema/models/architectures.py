"""The architecture table: for each model family, where its parts are. Data only.

Paths are relative to the model's body (``hf.base_model``: ``GPT2Model`` inside ``GPT2LMHeadModel``) or, for the parts
of a block, to the block. The embedding and the unembedding need no entry (``get_input_embeddings()`` and
``get_output_embeddings()`` know them), and what can be measured is measured when the model is loaded instead of being
written here: the kind of norm and its gain, the embedding scale, whether attention is causal. A new family is one
entry.

The numerical check (``verify.py``) refuses an entry that does not fit the model it is used for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

BlockKind = Literal["sequential", "parallel", "post_norm", "mixer", "opaque"]
"""How a block updates the residual stream, with a, m the attention and MLP branches' contributions:

``sequential``  mid = pre + a(pre), post = mid + m(mid)
``parallel``    post = pre + a(pre) + m(pre); there is no mid
``post_norm``   mid = pre + a(pre), post = ln1(mid) + m(ln1(mid)), next pre = ln2(post): BERT
``mixer``       post = pre + mixer(pre): a state-space block
``opaque``      only the block's input and output are known
"""

FusedLayout = Literal["concatenated", "grouped"]
"""Columns of a fused query-key-value projection: ``concatenated`` is [all q | all k | all v]; ``grouped`` is, for every
key-value head, [the q heads that share it | k | v] (GPT-NeoX, BLOOM and Falcon are all of this kind)."""


@dataclass(frozen=True, kw_only=True)
class AttentionLayout:
    """Where the parts of an attention module are; paths relative to the block. ``None``: unknown or absent."""

    o: str | None = None
    """The output projection; its input is ``hook_z``."""
    q: str | None = None
    """The query projection."""
    k: str | None = None
    """The key projection."""
    v: str | None = None
    """The value projection."""
    qkv: str | None = None
    """The fused projection, instead of ``q``, ``k`` and ``v``."""
    fused_layout: FusedLayout | None = None
    """How the columns of ``qkv`` are laid out."""


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """Where the parts of one block are; paths relative to the block. ``None``: the block has no such part."""

    kind: BlockKind
    """The residual equation."""
    attn_in: str | None = None
    """The module whose input is the attention's input (usually the attention module)."""
    attn_out: str | None = None
    """The module whose output is the attention's output before post-norm and multiplier (usually the same module)."""
    mlp_in: str | None = None
    """The module whose input is the MLP's input."""
    mlp_out: str | None = None
    """The module whose output is the MLP's output before post-norm and multiplier."""
    ln1: str | None = None
    """The norm before attention; in a post-norm block the norm that follows the attention's sum."""
    ln2: str | None = None
    """The norm before the MLP (may be ``ln1`` again); in a post-norm block the norm that follows the MLP's sum."""
    ln1_post: str | None = None
    """The norm on the attention branch, before it is added to the residual stream (Gemma 2, OLMo-2)."""
    ln2_post: str | None = None
    """The norm on the MLP branch, before it is added to the residual stream."""
    attention: AttentionLayout | None = None
    """Projections inside the attention; ``None``: the per-head sites are not defined."""
    mlp_gate: str | None = None
    """The linear map whose output enters the activation function (``hook_pre``)."""
    mlp_up: str | None = None
    """The linear map whose output multiplies the activation (``hook_pre_linear``) in a gated MLP."""
    mlp_down: str | None = None
    """The last linear map; its input is ``hook_post``."""
    mixer: str | None = None
    """The state-space mixer, instead of attention and MLP."""
    parallel_if: str | None = None
    """Configuration attribute that makes a ``sequential`` entry ``parallel`` where it is true."""
    multiplier: str | None = None
    """Configuration attribute that multiplies both branches before they are added (Granite)."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where the parts of a model are; paths relative to ``hf.base_model``."""

    blocks: str
    """The ``ModuleList`` of blocks."""
    ln_final: str | None
    """The final norm; ``None`` where the unembedding does not read a normed residual stream (BERT)."""
    block: BlockLayout
    """The layout every block has."""
    note: str = "architecture table"
    """How this map was found."""
    opaque_reason: str = ""
    """Why blocks are opaque, for error messages."""


def _llama_like(**changes: Any) -> Architecture:
    block = BlockLayout(
        kind="sequential",
        attn_in="self_attn",
        attn_out="self_attn",
        mlp_in="mlp",
        mlp_out="mlp",
        ln1="input_layernorm",
        ln2="post_attention_layernorm",
        attention=AttentionLayout(
            q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj"
        ),
        mlp_gate="mlp.gate_proj",
        mlp_up="mlp.up_proj",
        mlp_down="mlp.down_proj",
    )
    return Architecture(blocks="layers", ln_final="norm", block=replace(block, **changes))


def _bert_like() -> Architecture:
    return Architecture(
        blocks="encoder.layer",
        ln_final=None,
        block=BlockLayout(
            kind="post_norm",
            attn_in="attention.self",
            attn_out="attention.output.dense",
            mlp_in="intermediate",
            mlp_out="output.dense",
            ln1="attention.output.LayerNorm",
            ln2="output.LayerNorm",
            attention=AttentionLayout(
                q="attention.self.query",
                k="attention.self.key",
                v="attention.self.value",
                o="attention.output.dense",
            ),
            mlp_gate="intermediate.dense",
            mlp_down="output.dense",
        ),
    )


_GPT2 = Architecture(
    blocks="h",
    ln_final="ln_f",
    block=BlockLayout(
        kind="sequential",
        attn_in="attn",
        attn_out="attn",
        mlp_in="mlp",
        mlp_out="mlp",
        ln1="ln_1",
        ln2="ln_2",
        attention=AttentionLayout(qkv="attn.c_attn", fused_layout="concatenated", o="attn.c_proj"),
        mlp_gate="mlp.c_fc",
        mlp_down="mlp.c_proj",
    ),
)

_GPT_NEOX = Architecture(
    blocks="layers",
    ln_final="final_layer_norm",
    block=BlockLayout(
        kind="sequential",
        parallel_if="use_parallel_residual",
        attn_in="attention",
        attn_out="attention",
        mlp_in="mlp",
        mlp_out="mlp",
        ln1="input_layernorm",
        ln2="post_attention_layernorm",
        attention=AttentionLayout(qkv="attention.query_key_value", fused_layout="grouped", o="attention.dense"),
        mlp_gate="mlp.dense_h_to_4h",
        mlp_down="mlp.dense_4h_to_h",
    ),
)

_GPT_NEO = Architecture(
    blocks="h",
    ln_final="ln_f",
    block=BlockLayout(
        kind="sequential",
        attn_in="attn",
        attn_out="attn",
        mlp_in="mlp",
        mlp_out="mlp",
        ln1="ln_1",
        ln2="ln_2",
        attention=AttentionLayout(
            q="attn.attention.q_proj",
            k="attn.attention.k_proj",
            v="attn.attention.v_proj",
            o="attn.attention.out_proj",
        ),
        mlp_gate="mlp.c_fc",
        mlp_down="mlp.c_proj",
    ),
)

_BLOOM = Architecture(
    blocks="h",
    ln_final="ln_f",
    # BLOOM's attention and MLP modules add the residual themselves: the branches end at their last linear maps.
    block=BlockLayout(
        kind="sequential",
        attn_in="self_attention",
        attn_out="self_attention.dense",
        mlp_in="mlp",
        mlp_out="mlp.dense_4h_to_h",
        ln1="input_layernorm",
        ln2="post_attention_layernorm",
        attention=AttentionLayout(
            qkv="self_attention.query_key_value", fused_layout="grouped", o="self_attention.dense"
        ),
        mlp_gate="mlp.dense_h_to_4h",
        mlp_down="mlp.dense_4h_to_h",
    ),
)

_MPT = Architecture(
    blocks="blocks",
    ln_final="norm_f",
    # MPT's MLP module adds the residual itself: the branch ends at its last linear map.
    block=BlockLayout(
        kind="sequential",
        attn_in="attn",
        attn_out="attn",
        mlp_in="ffn",
        mlp_out="ffn.down_proj",
        ln1="norm_1",
        ln2="norm_2",
        attention=AttentionLayout(qkv="attn.Wqkv", fused_layout="concatenated", o="attn.out_proj"),
        mlp_gate="ffn.up_proj",
        mlp_down="ffn.down_proj",
    ),
)

_DISTILBERT = Architecture(
    blocks="transformer.layer",
    ln_final=None,
    block=BlockLayout(
        kind="post_norm",
        attn_in="attention",
        attn_out="attention.out_lin",
        mlp_in="ffn",
        mlp_out="ffn.lin2",
        ln1="sa_layer_norm",
        ln2="output_layer_norm",
        attention=AttentionLayout(q="attention.q_lin", k="attention.k_lin", v="attention.v_lin", o="attention.out_lin"),
        mlp_gate="ffn.lin1",
        mlp_down="ffn.lin2",
    ),
)

_GEMMA_POST_NORMS = {
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}

_MAMBA = Architecture(
    blocks="layers",
    ln_final="norm_f",
    block=BlockLayout(kind="mixer", ln1="norm", mixer="mixer"),
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "bloom": _BLOOM,
    "mpt": _MPT,
    "llama": _llama_like(),
    "mistral": _llama_like(),
    "qwen2": _llama_like(),
    "qwen3": _llama_like(),
    "gemma": _llama_like(),
    "gemma2": _llama_like(**_GEMMA_POST_NORMS),
    "gemma3_text": _llama_like(**_GEMMA_POST_NORMS),
    "bert": _bert_like(),
    "distilbert": _DISTILBERT,
    "roberta": _bert_like(),
    "electra": _bert_like(),
    "xlm-roberta": _bert_like(),
    "camembert": _bert_like(),
    "data2vec-text": _bert_like(),
    "ernie": _bert_like(),
    "mamba": _MAMBA,
}
"""Families by the ``model_type`` of their transformers configuration."""


def lookup(config: Any) -> Architecture | None:
    """The table's entry for a transformers configuration, with its conditions settled; ``None`` if there is none."""
    entry = ARCHITECTURES.get(config.model_type)
    if entry is None:
        return None
    condition = entry.block.parallel_if
    if condition is not None and getattr(config, condition):
        return replace(entry, block=replace(entry.block, kind="parallel"))
    return entry
