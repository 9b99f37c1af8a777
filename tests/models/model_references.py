"""Every site of the families' blocks computed by hand from the weights: the independent path of the tests.

Starts from what transformers itself reports (``output_hidden_states``, ``output_attentions``) and multiplies matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def layer_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(scale, normalised) of a LayerNorm without gain and bias."""
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scale, centred / scale


def rms_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(scale, normalised) of an RMSNorm without gain."""
    scale = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return scale, x / scale


def heads(x: Tensor, n: int) -> Tensor:
    """[B, T, n·K] as [B, n, T, K]."""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def mix(pattern: Tensor, v: Tensor, n_kv_heads: int) -> Tensor:
    """Attention's weighted sum of values: pattern [B, H, T, T], v [B, T, n_kv·K] to z [B, T, H·K]."""
    n_heads = pattern.shape[1]
    v_heads = heads(v, n_kv_heads).repeat_interleave(n_heads // n_kv_heads, dim=1)
    return (pattern @ v_heads).transpose(1, 2).flatten(2)


def reported(hf: Any, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states (the input of each block) and attention weights, as transformers reports them."""
    with torch.no_grad():
        output = hf(tokens, output_hidden_states=True, output_attentions=True)
    return list(output.hidden_states), list(output.attentions)


def plain_inputs(hf: Any, modules: list[nn.Module], tokens: Tensor) -> list[Tensor]:
    """What each module receives as its first argument, by plain PyTorch hooks."""
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[module] = args[0]

    handles = [module.register_forward_pre_hook(note) for module in modules]
    with torch.no_grad():
        hf(tokens)
    for handle in handles:
        handle.remove()
    return [seen[module] for module in modules]


def plain_output(hf: Any, module: nn.Module, tokens: Tensor) -> Tensor:
    """What a module returns (the first of several), by a plain PyTorch hook, copied before anything adds to it."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = module.register_forward_hook(note)
    with torch.no_grad():
        hf(tokens)
    handle.remove()
    return seen[0]


class Values(dict[str, Tensor]):
    """Expected values by name, with the block's prefix added."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.prefix = f"blocks.{layer}."

    def put(self, **values: Tensor) -> None:
        """Add values; ``__`` in a keyword stands for a dot."""
        for name, value in values.items():
            self[self.prefix + name.replace("__", ".")] = value

    def norm(self, name: str, scale_and_normalized: tuple[Tensor, Tensor]) -> Tensor:
        """Add a norm's two sites and return the normalised value."""
        scale, normalized = scale_and_normalized
        self[f"{self.prefix}{name}.hook_scale"] = scale
        self[f"{self.prefix}{name}.hook_normalized"] = normalized
        return normalized


def gpt2_block(hf: Any, layer: int, pre: Tensor, pattern: Tensor) -> Values:
    """Pre-norm, Conv1D weights [in, out], q, k, v side by side."""
    block, values = hf.transformer.h[layer], Values(layer)
    x = values.norm("ln1", layer_norm(pre, block.ln_1.eps)) * block.ln_1.weight + block.ln_1.bias
    q, k, v = (x @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, dim=-1)
    z = mix(pattern, v, 4)
    result = torch.stack([z[..., 8 * h : 8 * h + 8] @ block.attn.c_proj.weight[8 * h : 8 * h + 8] for h in range(4)], 2)
    attn_out = result.sum(2) + block.attn.c_proj.bias
    mid = pre + attn_out
    y = values.norm("ln2", layer_norm(mid, block.ln_2.eps)) * block.ln_2.weight + block.ln_2.bias
    mlp_pre = y @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
    mlp_post = functional.gelu(mlp_pre, approximate="tanh")
    mlp_out = mlp_post @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    values.put(attn__hook_q=q, attn__hook_k=k, attn__hook_v=v, attn__hook_z=z, attn__hook_result=result.flatten(2))
    values.put(hook_resid_pre=pre, hook_attn_out=attn_out, hook_resid_mid=mid, mlp__hook_in=y, mlp__hook_pre=mlp_pre)
    values.put(mlp__hook_post=mlp_post, hook_mlp_out=mlp_out, hook_resid_post=mid + mlp_out)
    return values


def neox_block(hf: Any, layer: int, pre: Tensor, pattern: Tensor) -> Values:
    """q, k, v interleaved per head; parallel or sequential as the configuration says."""
    block, values = hf.gpt_neox.layers[layer], Values(layer)
    ln1, ln2, parallel = block.input_layernorm, block.post_attention_layernorm, hf.config.use_parallel_residual
    x = values.norm("ln1", layer_norm(pre, ln1.eps)) * ln1.weight + ln1.bias
    qkv = block.attention.query_key_value(x).unflatten(-1, (4, 3, 8))
    q, k, v = (qkv[..., i, :].flatten(2) for i in range(3))
    z = mix(pattern, v, 4)
    attn_out = functional.linear(z, block.attention.dense.weight, block.attention.dense.bias)
    mid = pre + attn_out
    y = values.norm("ln2", layer_norm(pre if parallel else mid, ln2.eps)) * ln2.weight + ln2.bias
    mlp_pre = functional.linear(y, block.mlp.dense_h_to_4h.weight, block.mlp.dense_h_to_4h.bias)
    mlp_post = functional.gelu(mlp_pre)
    mlp_out = functional.linear(mlp_post, block.mlp.dense_4h_to_h.weight, block.mlp.dense_4h_to_h.bias)
    values.put(attn__hook_q=q, attn__hook_k=k, attn__hook_v=v, attn__hook_z=z, hook_resid_pre=pre)
    values.put(hook_attn_out=attn_out, mlp__hook_in=y, mlp__hook_pre=mlp_pre, mlp__hook_post=mlp_post)
    values.put(hook_mlp_out=mlp_out, hook_resid_post=mid + mlp_out)
    if not parallel:
        values.put(hook_resid_mid=mid)
    return values


def llama_block(hf: Any, layer: int, pre: Tensor, pattern: Tensor) -> Values:
    """Llama, Qwen 3, Gemma 2, OLMo-2 and Granite: RMSNorms before, after, or around the branches; gated MLP."""
    block, values = hf.model.layers[layer], Values(layer)
    norms = {
        "llama": {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"},
        "gemma2": {
            "ln1": "input_layernorm",
            "ln1_post": "post_attention_layernorm",
            "ln2": "pre_feedforward_layernorm",
            "ln2_post": "post_feedforward_layernorm",
        },
        "olmo2": {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"},
    }
    names = norms.get(hf.config.model_type, norms["llama"])
    factor = getattr(hf.config, "residual_multiplier", 1.0)

    def normed(name: str, x: Tensor) -> Tensor:
        if name not in names:
            return x
        module: nn.Module = getattr(block, names[name])
        offset = 1.0 if hf.config.model_type == "gemma2" else 0.0
        return values.norm(name, rms_norm(x, hf.config.rms_norm_eps)) * (module.weight + offset)

    x = normed("ln1", pre)
    attention, mlp = block.self_attn, block.mlp
    q, k, v = (functional.linear(x, getattr(attention, f"{name}_proj").weight) for name in "qkv")
    z = mix(pattern, v, 2)
    attn_out = factor * normed("ln1_post", functional.linear(z, attention.o_proj.weight))
    mid = pre + attn_out
    y = normed("ln2", mid)
    gate, up = functional.linear(y, mlp.gate_proj.weight), functional.linear(y, mlp.up_proj.weight)
    activated = functional.gelu(gate, approximate="tanh") if hf.config.model_type == "gemma2" else functional.silu(gate)
    mlp_out = factor * normed("ln2_post", functional.linear(activated * up, mlp.down_proj.weight))
    values.put(attn__hook_q=q, attn__hook_k=k, attn__hook_v=v, attn__hook_z=z, hook_resid_pre=pre)
    values.put(hook_attn_out=attn_out, hook_resid_mid=mid, mlp__hook_in=y, mlp__hook_pre=gate)
    values.put(mlp__hook_pre_linear=up, mlp__hook_post=activated * up, hook_mlp_out=mlp_out)
    values.put(hook_resid_post=mid + mlp_out)
    return values


def phi_block(hf: Any, layer: int, pre: Tensor, pattern: Tensor) -> Values:
    """Parallel, with one LayerNorm for both branches."""
    block, values = hf.model.layers[layer], Values(layer)
    norm, attention = block.input_layernorm, block.self_attn
    x = values.norm("ln1", layer_norm(pre, norm.eps)) * norm.weight + norm.bias
    values.norm("ln2", layer_norm(pre, norm.eps))
    q, k, v = (functional.linear(x, p.weight, p.bias) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    z = mix(pattern, v, 4)
    attn_out = functional.linear(z, attention.dense.weight, attention.dense.bias)
    mlp_pre = functional.linear(x, block.mlp.fc1.weight, block.mlp.fc1.bias)
    mlp_post = functional.gelu(mlp_pre, approximate="tanh")
    mlp_out = functional.linear(mlp_post, block.mlp.fc2.weight, block.mlp.fc2.bias)
    values.put(attn__hook_q=q, attn__hook_k=k, attn__hook_v=v, attn__hook_z=z, hook_resid_pre=pre, mlp__hook_in=x)
    values.put(hook_attn_out=attn_out, mlp__hook_pre=mlp_pre, mlp__hook_post=mlp_post, hook_mlp_out=mlp_out)
    values.put(hook_resid_post=pre + attn_out + mlp_out)
    return values


def bert_block(hf: Any, layer: int, pre: Tensor, pattern: Tensor) -> Values:
    """Post-norm: both norms are on the stream."""
    block, values = hf.bert.encoder.layer[layer], Values(layer)
    attention, ln1, ln2 = block.attention, block.attention.output.LayerNorm, block.output.LayerNorm
    q, k, v = (
        functional.linear(pre, p.weight, p.bias)
        for p in (attention.self.query, attention.self.key, attention.self.value)
    )
    z = mix(pattern, v, 4)
    attn_out = functional.linear(z, attention.output.dense.weight, attention.output.dense.bias)
    mid = pre + attn_out
    y = values.norm("ln1", layer_norm(mid, ln1.eps)) * ln1.weight + ln1.bias
    mlp_pre = functional.linear(y, block.intermediate.dense.weight, block.intermediate.dense.bias)
    mlp_post = functional.gelu(mlp_pre)
    mlp_out = functional.linear(mlp_post, block.output.dense.weight, block.output.dense.bias)
    post = y + mlp_out
    normed = values.norm("ln2", layer_norm(post, ln2.eps)) * ln2.weight + ln2.bias
    values.put(attn__hook_q=q, attn__hook_k=k, attn__hook_v=v, attn__hook_z=z, hook_resid_pre=pre)
    values.put(hook_attn_out=attn_out, hook_resid_mid=mid, mlp__hook_in=y, mlp__hook_pre=mlp_pre)
    values.put(mlp__hook_post=mlp_post, hook_mlp_out=mlp_out, hook_resid_post=post, hook_normalized_resid_post=normed)
    return values


BLOCKS = {
    "gpt2": gpt2_block,
    "neox_parallel": neox_block,
    "neox_sequential": neox_block,
    "llama": llama_block,
    "qwen3": llama_block,
    "gemma2": llama_block,
    "olmo2": llama_block,
    "granite": llama_block,
    "phi": phi_block,
    "bert": bert_block,
}
