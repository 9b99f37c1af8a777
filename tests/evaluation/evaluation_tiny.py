"""Tiny models and coders whose numbers are known."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from monosema.coders import SAE, ReLU, SparseCoder, Transcoder
from monosema.models import LanguageModel

BOS = 0
MASK = 3
TOKENIZER = SimpleNamespace(mask_token_id=MASK, bos_token_id=BOS, all_special_ids=[BOS, MASK], unk_token_id=None)
"""As much of a tokenizer as a model asks for."""
VOCABULARY, WIDTH = 50, 16
SITE = "blocks.1.hook_resid_pre"


def tiny_decoder(dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A random Llama of three layers whose only special token is ``BOS``; sharp enough that ablation hurts."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        bos_token_id=BOS,
        eos_token_id=BOS,
        tie_word_embeddings=False,
    )
    return LanguageModel(_sharpened(LlamaForCausalLM(config), 0).to(dtype), None, name="tiny-llama")


def tiny_encoder(tokenizer: SimpleNamespace | None = None) -> LanguageModel:
    """A random BERT; without a tokenizer there is no mask token."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    return LanguageModel(_sharpened(BertForMaskedLM(config), 1).double(), tokenizer, name="tiny-bert")


def tiny_contexts(model: LanguageModel, n: int = 6, length: int = 10) -> Tensor:
    """Contexts that start with ``BOS``, have a second one inside, and go on as the model would (ablation hurts)."""
    contexts = torch.randint(1, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(0))
    contexts[:, 0] = BOS
    contexts[:, length // 2] = BOS
    for position in range(2, length):
        if position != length // 2 and not model.is_encoder:
            with torch.no_grad():
                contexts[:, position] = model(contexts[:, :position])[:, -1, 1:].argmax(-1) + 1
    return contexts


def runs_of_blocks(model: LanguageModel) -> list[int]:
    """Counts, from now on, of the runs of each block and, last, of the unembedding."""
    counts = [0] * (model.n_layers + 1)

    def count(index: int):
        def before(*_) -> None:
            counts[index] += 1

        return before

    for index, block in enumerate(model.blocks):
        next(iter(block.children())).register_forward_pre_hook(count(index))
    model.hf.get_output_embeddings().register_forward_pre_hook(count(model.n_layers))
    return counts


def identity_sae(width: int = WIDTH, site: str = SITE, dtype: str = "float64") -> SparseCoder:
    """Reconstructs exactly: a latent for each direction of each axis."""
    coder = SAE(width, 2 * width, activation=ReLU(), dtype=dtype)
    with torch.no_grad():
        both = torch.cat([torch.eye(width), -torch.eye(width)])
        coder.W_enc_rows.copy_(both)
        coder.W_dec.copy_(both)
    coder.bind(site, site, {})
    return coder


def constant_sae(value: Tensor | float, site: str = SITE) -> SparseCoder:
    """Writes ``value`` whatever it reads."""
    coder = SAE(WIDTH, 8, activation=ReLU(), b_dec="output", dtype="float64")
    with torch.no_grad():
        coder.W_dec.zero_()
        assert coder.b_dec is not None
        coder.b_dec.copy_(torch.as_tensor(value).expand(WIDTH))
    coder.bind(site, site, {})
    return coder


def random_sae(site: str = SITE, dtype: str = "float64") -> SparseCoder:
    """Reconstructs something, not well."""
    coder = SAE(WIDTH, 24, activation=ReLU(), dtype=dtype)
    coder.bind(site, site, {})
    return coder


def random_transcoder(read: str = "blocks.1.mlp.hook_in", written: str = "blocks.1.hook_mlp_out") -> SparseCoder:
    """Predicts an MLP's output, badly, with a skip connection."""
    coder = Transcoder(WIDTH, WIDTH, 24, activation=ReLU(), skip=True, dtype="float64")
    with torch.no_grad():
        assert coder.W_skip is not None
        coder.W_skip.copy_(0.3 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)))
    coder.bind(read, written, {})
    return coder


def _sharpened(hf: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return hf
