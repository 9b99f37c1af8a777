"""Streams over several models: rows side by side against each model's own stream, resumption, record, rebuilding."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from data_tiny import BOS, SITES, VOCAB, random_split, tiny_llama, word_tokenizer
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from monosema.core.errors import ConfigError, DataError, FileError, UnknownNameError
from monosema.data import ActivationStream, Tokens
from monosema.data.rebuild import models_again, recorded_options
from monosema.models import LanguageModel, load_model

NAMES = [f"base:{SITES[0]}", f"chat:{SITES[0]}", "chat:model.layers.1.mlp:in"]


@pytest.fixture(scope="module")
def chat() -> LanguageModel:
    """Another model of another width, with a tokenizer of its own over the same words."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=20,
            max_position_embeddings=32,
        )
        hf = LlamaForCausalLM(config)
    return load_model(hf, tokenizer=word_tokenizer())


def make_stream(models, names=NAMES, split=None, **options):
    options = {"batch_size": 10, "chunk_contexts": 5, "model_batch_size": 2, "seed": 3, **options}
    return ActivationStream(models, split if split is not None else random_split(), names, **options)


def through_a_file(state):
    tensors = load_tensors(save_tensors({k: v for k, v in state.items() if isinstance(v, Tensor)}))
    return {**json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)})), **tensors}


def test_rows_are_those_of_each_models_own_stream_side_by_side(model, chat):
    stream = make_stream({"base": model, "chat": chat})
    assert (stream.d_in, stream.layout.width) == (16 + 24 + 24, 64)
    assert stream.layout.read_name == "+".join(NAMES)
    assert stream.models == {"base": model, "chat": chat}
    assert stream.model is model
    served = torch.cat(list(stream))
    base = torch.cat(list(make_stream(model, SITES[0])))
    other = torch.cat(list(make_stream(chat, [SITES[0], "model.layers.1.mlp:in"])))
    assert torch.equal(served, torch.cat([base, other], dim=1))
    assert len(served) == stream.n_rows_served()


def test_columns_follow_the_names_and_not_the_mapping(model, chat):
    mixed = [NAMES[1], NAMES[0], NAMES[2]]
    served = next(make_stream({"base": model, "chat": chat}, mixed))
    straight = next(make_stream({"base": model, "chat": chat}))
    assert torch.equal(served, torch.cat([straight[:, 16:40], straight[:, :16], straight[:, 40:]], dim=1))


def test_one_model_may_be_read_and_another_written(model, chat):
    stream = make_stream({"base": model, "chat": chat}, NAMES[0], targets=NAMES[1])
    both = make_stream({"base": model, "chat": chat}, NAMES[:2])
    assert (stream.d_in, stream.d_out) == (16, 24)
    assert (stream.layout.read_name, stream.layout.write_name) == (NAMES[0], NAMES[1])
    assert all(torch.equal(a, b) for a, b in zip(stream, both, strict=True))


def test_heads_of_two_models_are_sites(model):
    names = ["a:blocks.0.attn.hook_z[1]", "b:blocks.1.attn.hook_k[0]"]
    stream = make_stream({"a": model, "b": model}, names)
    whole = make_stream(model, ["blocks.0.attn.hook_z", "blocks.1.attn.hook_k"])
    assert stream.d_in == 16
    assert torch.equal(next(stream), next(whole)[:, 8:24])


def test_resuming_is_bit_exact_at_every_offset(model, chat):
    models = {"base": model, "chat": chat}
    whole = list(make_stream(models, epochs=2))
    stream = make_stream(models, epochs=2)
    for done in range(len(whole) + 1):
        resumed = make_stream(models, epochs=2, chunk_contexts=None)
        resumed.load_state_dict(through_a_file(stream.state_dict()))
        for batch in whole[done : done + 2]:
            assert torch.equal(next(resumed), batch)
        next(stream, None)


def test_a_state_of_other_models_is_refused(model, chat):
    state = through_a_file(make_stream({"base": model, "chat": chat}, NAMES[:2]).state_dict())
    make_stream({"base": model, "chat": chat}, NAMES[:2]).load_state_dict(state)
    renamed = load_model(chat.hf, tokenizer=word_tokenizer())
    renamed.name = "another"
    with pytest.raises(DataError, match=r"models.chat: .* -> 'another'"):
        make_stream({"base": model, "chat": renamed}, NAMES[:2]).load_state_dict(state)
    with pytest.raises(DataError, match="sites: "):
        make_stream({"base": model, "chat": chat}, NAMES[1::-1]).load_state_dict(state)
    with pytest.raises(DataError, match=r"models.*sites: "):
        make_stream({"left": model, "right": chat}, ["left:hook_embed", "right:hook_embed"]).load_state_dict(state)
    single = make_stream(model, SITES[0])
    assert "models" not in single.state_dict()["identity"]
    with pytest.raises(DataError, match="sites: "):
        single.load_state_dict(state)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (SITES[0], ConfigError, "does not say which model it is of; write 'base:"),
        ("model.layers.0.mlp:out", ConfigError, "write 'base:model.layers.0.mlp:out' or 'chat:"),
        (f"cat:{SITES[0]}", UnknownNameError, "did you mean 'chat'"),
        ("chat:blocks.7.hook_resid_post", UnknownNameError, "model 'chat': .*layers 0 to 1"),
    ],
)
def test_sites_of_no_model_are_refused(model, chat, names, error, message):
    with pytest.raises(error, match=message):
        make_stream({"base": model, "chat": chat}, names)
    with pytest.raises(error, match=message):
        make_stream({"base": model, "chat": chat}, NAMES[0], targets=names)


def test_rows_come_in_the_dtype_that_holds_both(chat):
    low = tiny_llama(torch.bfloat16)
    rows = next(make_stream({"base": low, "chat": chat}))
    assert rows.dtype == torch.float32
    alone = next(make_stream(low, SITES[0]))
    assert torch.equal(rows[:, :16], alone.float())


def test_a_chunk_that_is_not_finite_names_the_sites(chat):
    broken = tiny_llama()
    with torch.no_grad():
        broken.hf.model.embed_tokens.weight[5:] = float("inf")
    with pytest.raises(DataError, match=f"at {NAMES[0]}, {NAMES[1]} are not finite in chunk 0"):
        next(make_stream({"base": broken, "chat": chat}, NAMES[:2]))


def test_the_record_has_every_model_and_rebuilds_the_stream(model, chat):
    split = random_split()
    tokens = Tokens(split, split, {"source": "words.txt", "context_size": 8})
    stream = make_stream({"base": model, "chat": chat}, split=tokens, targets=NAMES[:1])
    record = json.loads(json.dumps(stream.record()))
    assert record == stream.record()
    assert record["models"] == {"base": model.record(), "chat": chat.record()}
    assert "model" not in record
    recorded = recorded_options(record)
    assert set(recorded) == {"models", "tokens", "stream"}
    assert recorded["stream"]["hook_names"] == NAMES
    with pytest.raises(ConfigError, match="model object in memory"):
        models_again(recorded)
    coder = SimpleNamespace(metadata=record)
    again = ActivationStream.from_coder(coder, model={"base": model, "chat": chat}, tokens=tokens)
    assert again.layout == stream.layout
    assert all(torch.equal(a, b) for a, b in zip(stream, again, strict=True))
    with pytest.raises(UnknownNameError, match="unknown model"):
        ActivationStream.from_coder(coder, model={"base": model, "other": chat}, tokens=tokens)


def test_a_dictionary_trained_on_one_and_then_on_several_is_rebuilt_for_the_last(model, chat):
    split = random_split()
    tokens = Tokens(split, split, {"source": "words.txt", "context_size": 8})
    several = make_stream({"base": model, "chat": chat}, split=tokens).record()
    one = make_stream(model, SITES[0], split=tokens).record()
    assert "models" in recorded_options({**one, **several})
    last = recorded_options({**several, **one})
    assert "models" not in last
    assert last["model"]["source"] == "model in memory"
    with pytest.raises(FileError, match="does not record the model"):
        recorded_options({**several, "models": {}})


def test_special_tokens_are_left_out_of_every_models_rows(model, chat):
    split = random_split()
    stream = make_stream({"base": model, "chat": chat}, split=split, batch_size=1)
    assert len(list(stream)) == int((split.contexts != BOS).sum())
