"""Tiny random models of every family the tests use, built from transformers configurations. No network, no files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from monosema.models import LanguageModel, load_model

sys.path.insert(0, str(Path(__file__).parent))  # for model_references, whatever pytest's import mode

VOCAB = 101
D_MODEL = 32
N_LAYERS = 3
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT = {
    "vocab_size": VOCAB,
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "neox_parallel": ("GPTNeoXForCausalLM", "GPTNeoXConfig", COMMON),
    "neox_sequential": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**COMMON, "use_parallel_residual": False}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 12}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 12}),
    "bert": ("BertForMaskedLM", "BertConfig", COMMON),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "state_size": 4,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "residual_in_fp32": False,
        },
    ),
    # Families that the architecture table does not have.
    "phi": ("PhiForCausalLM", "PhiConfig", COMMON),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {**GROUPED, "residual_multiplier": 0.3, "embedding_multiplier": 12.0},
    ),
}
HfFactory = Callable[..., Any]
ModelFactory = Callable[..., LanguageModel]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep the suite to one core, and transformers' remarks about optional kernels out of the output."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


def build_hf(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A transformers model whose every parameter is random, norm gains and biases included."""
    class_name, config_name, options = FAMILIES[family]
    config = getattr(transformers, config_name)(**{**options, "attn_implementation": "eager", **changes})
    hf = getattr(transformers, class_name)(config).to(dtype)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * noise)
    return hf


@pytest.fixture(scope="session")
def make_hf() -> HfFactory:
    """``make_hf(family, dtype=float64, **config changes)``: a fresh transformers model."""
    return build_hf


@pytest.fixture(scope="session")
def model_of() -> ModelFactory:
    """``model_of(family)``: the family's float64 model, loaded once for the whole run."""
    loaded: dict[str, LanguageModel] = {}

    def get(family: str) -> LanguageModel:
        if family not in loaded:
            loaded[family] = load_model(build_hf(family))
        return loaded[family]

    return get


@pytest.fixture
def tokens() -> Tensor:
    """Token ids [2, 9] without special tokens."""
    return torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
