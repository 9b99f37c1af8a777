"""A word tokenizer, a tiny random Llama and token splits that the tests of this room share."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from monosema.data import TokenSplit
from monosema.models import LanguageModel, load_model

WORDS = ["<s>", "</s>", "<pad>", "<unk>", *(f"w{i}" for i in range(27))]
BOS = 0
VOCAB = len(WORDS)
SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")


def word_tokenizer(**roles: str) -> PreTrainedTokenizerFast:
    """Words ``w0 … w26`` are tokens 4 to 30; ``roles`` such as ``cls_token="<s>"`` replace the decoder's."""
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = roles or {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **given)


def words(*ids: int) -> str:
    """The text whose tokens are ``ids``."""
    return " ".join(WORDS[i] for i in ids)


def tiny_llama(dtype: torch.dtype = torch.float32, **changes: Any) -> LanguageModel:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        attn_implementation="eager",
    )
    hf = LlamaForCausalLM(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim > 1 else 1 + 0.3 * noise)
    return load_model(hf, tokenizer=word_tokenizer(), **changes)


def random_split(n_contexts: int = 24, context_size: int = 8, seed: int = 0, special: int = BOS) -> TokenSplit:
    """Contexts that start with BOS and hold more of it here and there."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randint(3, VOCAB, (n_contexts, context_size), generator=generator, dtype=torch.int32)
    contexts[:, 0] = BOS
    contexts[torch.rand(contexts.shape, generator=generator) < 0.1] = BOS
    return TokenSplit(contexts, frozenset({special}), "train")


def hooked_rows(model: LanguageModel, contexts: Tensor) -> dict[str, Tensor]:
    """Both ``SITES`` at every position ``[n, T, d]`` by plain PyTorch hooks."""
    caught: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            caught[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    layers = model.hf.model.layers
    handles = [
        layers[0].register_forward_hook(keep(SITES[0])),
        layers[1].mlp.register_forward_hook(keep(SITES[1])),
    ]
    with torch.no_grad():
        model.hf(contexts.long())
    for handle in handles:
        handle.remove()
    return caught
