"""A tiny random Llama with a byte-level tokenizer, saved as a folder: a real model for tests, in a blink."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TEXT = "".join(
    f"Line {i}: the quick brown fox, number {i * i % 97}, jumps over {i % 13} lazy dogs.\n" for i in range(1500)
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and one that ends text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END_OF_TEXT: 0, **{character: i + 1 for i, character in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def save_tiny_model(folder: Path) -> Path:
    """A two-layer Llama of width 16 over bytes, with its tokenizer, in ``folder``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=257,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_text(path: Path) -> Path:
    """Enough text for a few thousand tokens, in documents parted by ``<|endoftext|>``."""
    lines = TEXT.splitlines(keepends=True)
    path.write_text(END_OF_TEXT.join("".join(lines[i : i + 20]) for i in range(0, len(lines), 20)), encoding="utf-8")
    return path
