"""Tiny models, coders and tokenizers whose features are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from monosema.coders import CLT, SAE, CrossLayerTranscoder, ReLU, SparseCoder, TopK
from monosema.data import TokenSplit, pack
from monosema.data.packing import PackingRule
from monosema.features import FeatureStore, collect_features
from monosema.models import LanguageModel

BOS = 0
WIDTH = 16
SITE = "blocks.0.hook_resid_post"
READS = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in")
WRITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")

Tied = Literal["none", "per_source", "per_target"]

# What each token's embedding holds for latents 0, 1, 2 and 3 of ``known_coder``.
KNOWN_ACTIVATIONS = {
    0: (100.0, 100.0, 0.0, 100.0),  # the special token: none of this may ever be seen
    1: (1.0, 0.0, 0.0, 0.0),
    2: (2.0, 0.5, 0.0, 0.0),
    3: (4.0, 0.0, -3.0, 0.0),
    4: (0.0, 0.0, 3.0, 0.0),
}
KNOWN_CONTEXTS = [[0, 1, 2, 3, 1, 0], [0, 3, 3, 2, 2, 1], [0, 4, 4, 4, 4, 4]]

ZWJ_EMOJI = "👩\u200d💻"
HOSTILE = [
    "<script>alert(1)</script> and </script> then <!-- <script> & &amp; \"quoted\" 'single' `back` {{css}} {{arrays}}",
    "<img src=x onerror=\"document.title='hacked'\"> <svg/onload=alert(2)> javascript:alert(3) http://example.org/x.js",
    "line\u2028separator\u2029paragraph\x00null\x1bescape\x7fdelete\x85next \ufeffbom \ufffe \ufffd",
    "right to left: שלום עולם، مرحبا بالعالم \u202eoverride\u202c \u2066isolate\u2069 \u200fmark",
    f"é e\u0301 漢字 한국어 नमस्ते ภาษาไทย {ZWJ_EMOJI} 👍🏽 🇩🇪 1\ufe0f\u20e3",
    "tabs\tand\r\nnewlines\n\n    indented\n        more\u00a0nbsp\u3000wide " + "z" + "\u0301" * 40,
    ']]> */ --> \\u003c \\" %3Cscript%3E ${alert(4)} </style><script>alert(5)</script>',
]


def byte_level_tokenizer(texts: Sequence[str], n_tokens: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, so that most characters beyond ASCII are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def tiny_llama(vocabulary: int, width: int = WIDTH, tokenizer: PreTrainedTokenizerFast | None = None) -> LanguageModel:
    """A random float64 Llama of two layers with a final norm whose gain is not one."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=BOS,
        tie_word_embeddings=False,
    )
    hf = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        hf.model.norm.weight.copy_(0.5 + torch.rand(width, generator=generator))
    return LanguageModel(hf.double(), tokenizer, name="tiny-llama")


def known_model() -> LanguageModel:
    """Embeds each token as its row of ``KNOWN_ACTIVATIONS``, zeros beyond."""
    model = tiny_llama(50, width=8)
    with torch.no_grad():
        weight = model.hf.get_input_embeddings().weight
        weight.zero_()
        for token, row in KNOWN_ACTIVATIONS.items():
            weight[token, :4] = torch.tensor(row, dtype=weight.dtype)
    return model


def known_coder(site: str = "hook_embed") -> SparseCoder:
    """Latent f is coordinate f where that is positive."""
    coder = SAE(8, 4, activation=ReLU(), dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.eye(8)[:4])
        coder.W_dec.copy_(torch.eye(8)[:4] - 0.5 * torch.eye(8)[1:5])
    coder.bind(site, site, {})
    return coder


def known_tokens() -> TokenSplit:
    return TokenSplit(torch.tensor(KNOWN_CONTEXTS, dtype=torch.int32), frozenset({BOS}), "heldout")


def random_coder(site: str = SITE, d_sae: int = 48, k: int = 6) -> SparseCoder:
    coder = SAE(WIDTH, d_sae, activation=TopK(k=k), dtype="float64")
    coder.bind(site, site, {})
    return coder


def random_tokens(n: int = 40, length: int = 12, vocabulary: int = 50) -> TokenSplit:
    """Contexts that start with ``BOS`` and have a second one inside."""
    contexts = torch.randint(1, vocabulary, (n, length), generator=torch.Generator().manual_seed(1))
    contexts[:, 0] = BOS
    contexts[:, length // 2] = BOS
    return TokenSplit(contexts.int(), frozenset({BOS}), "heldout")


def text_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, context_size: int = 32) -> TokenSplit:
    rows = [np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32) for text in texts]
    packed = pack(rows, PackingRule(context_size=context_size, begin_context=BOS, separator=BOS))
    return TokenSplit(torch.from_numpy(packed), frozenset({BOS}), "heldout")


def text_store(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, d_sae: int = 48, context_size: int = 32
) -> FeatureStore:
    """Features of a random model and a random coder on these texts."""
    model = tiny_llama(len(tokenizer), tokenizer=tokenizer)
    tokens = text_tokens(texts, tokenizer, context_size)
    return collect_features(random_coder(d_sae=d_sae), model, tokens, contexts_per_latent=4, progress=False)


def stack_store(tied: Tied = "none", writes: Sequence[str] = WRITES) -> tuple[CrossLayerTranscoder, FeatureStore]:
    """A random cross-layer transcoder of two layers with six latents each, and its features."""
    coder = CLT((WIDTH, WIDTH), (WIDTH, WIDTH), 6, activation=ReLU(), tied=tied, dtype="float64")
    coder.bind("+".join(READS), "+".join(writes), {})
    return coder, collect_features(coder, tiny_llama(50), random_tokens(), n_logits=4, progress=False)


def dense_activations(coder: SparseCoder, model: LanguageModel, tokens: TokenSplit) -> Tensor:
    """[N, T, F] by the dense path, zero at special positions."""
    contexts = tokens.contexts.long()
    with torch.no_grad():
        dense = coder.encode(model.capture(contexts, [coder.hook_name])[coder.hook_name])
    return dense.masked_fill(tokens.special_mask(contexts).unsqueeze(-1), 0.0)
