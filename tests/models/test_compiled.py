"""Compiled blocks: what is compiled around which hooks, the same activations, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from monosema.core.errors import ConfigError
from monosema.models import LanguageModel, load_model
from monosema.models.compiled import CompiledBlocks, compilable

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model(LlamaForCausalLM(config).eval(), tokenizer=False)


def compiled_in_block(model: LanguageModel, *names: str) -> list[str]:
    """Class names of what is compiled of the first block."""
    return [type(module).__name__ for module in compilable(model.blocks[0], model.hooked_modules(names))]


def test_a_block_is_compiled_whole_where_no_hook_is_inside(llama: LanguageModel) -> None:
    whole = ["LlamaDecoderLayer"]
    assert compiled_in_block(llama, "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post") == whole
    assert compiled_in_block(llama, "blocks.1.mlp.hook_post") == whole  # in another block
    assert compiled_in_block(llama, "blocks.0.hook_mlp_out") == ["LlamaAttention", "LlamaMLP"]
    assert compiled_in_block(llama, "blocks.0.hook_resid_mid") == ["LlamaAttention", "LlamaMLP"]
    assert compiled_in_block(llama, "blocks.0.attn.hook_z") == ["LlamaMLP"]
    assert "LlamaMLP" not in compiled_in_block(llama, "blocks.0.mlp.hook_post")


def test_an_edit_that_is_active_counts_as_a_hook(llama: LanguageModel) -> None:
    with llama.edits({"blocks.0.attn.hook_z": lambda z: z}):
        assert compiled_in_block(llama, "blocks.1.hook_resid_post") == ["LlamaMLP"]
    assert compiled_in_block(llama, "blocks.1.hook_resid_post") == ["LlamaDecoderLayer"]


def test_lists_of_modules_are_looked_into() -> None:
    experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))
    assert compilable(nn.Sequential(experts, nn.Linear(2, 2)), {experts[0][0]}) == [experts[1]]
    assert compilable(nn.Linear(2, 2), set()) == []


@pytest.mark.usefixtures("compiler")
def test_activations_agree_with_eager_and_the_model_is_left_as_it_was(llama: LanguageModel) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_mid"]
    tokens = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(1))
    blocks = CompiledBlocks(llama, "default")
    before = {name: dict(module.__dict__) for name, module in llama.hf.named_modules()}
    for ids in (tokens, tokens[:3]):  # the last pass of a chunk is smaller
        expected = llama.capture(ids, names)
        with blocks.active(names):
            found = llama.capture(ids, names)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # a block, and the parts of the other
    after = {name: dict(module.__dict__) for name, module in llama.hf.named_modules()}
    assert {name: value.keys() for name, value in after.items()} == {name: v.keys() for name, v in before.items()}


def test_a_forward_of_the_models_own_is_put_back(llama: LanguageModel) -> None:
    block = llama.blocks[0]
    own = block.forward
    block.forward = own  # as accelerate does
    try:
        with CompiledBlocks(llama, "default").active(["blocks.1.hook_resid_post"]):
            assert block.__dict__["forward"] is not own
        assert block.__dict__["forward"] is own
    finally:
        del block.forward


def test_cuda_graphs_are_refused(llama: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"a CUDA graph's next run overwrites its result; use compile='default'"):
        CompiledBlocks(llama, "reduce-overhead")


def test_what_cannot_be_compiled_says_so(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    with (
        CompiledBlocks(llama, "default").active(["blocks.0.hook_resid_post"]),
        pytest.raises(ConfigError, match=r"torch.compile failed here \(no compiler\); leave compile out"),
    ):
        llama.capture(torch.ones(1, 4, dtype=torch.long), ["blocks.0.hook_resid_post"])
