"""Which model a site belongs to, and which models may read the same tokens."""

from __future__ import annotations

import pytest
import torch
from data_tiny import SITES, WORDS, tiny_llama, word_tokenizer
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from monosema.core.errors import ConfigError, UnknownNameError, UserError
from monosema.data.named_models import NamedModels, _check_mapping, split_site_name
from monosema.models import load_model


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    inner = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def with_tokenizer(tokenizer):
    return load_model(tiny_llama().hf, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat:blocks.2.hook_resid_post", ("chat", "blocks.2.hook_resid_post")),
        ("base:model.layers.5.mlp:in", ("base", "model.layers.5.mlp:in")),
        ("base:blocks.0.attn.hook_z[3]", ("base", "blocks.0.attn.hook_z[3]")),
    ],
)
def test_the_first_colon_ends_the_models_name(name, expected):
    assert split_site_name(name, ["base", "chat"]) == expected


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_post", "model.layers.0.mlp:in", "model.layers.0.mlp:out"])
def test_a_site_without_a_model_is_refused_with_both_ways_to_write_it(name):
    with pytest.raises(ConfigError, match=rf"{name}' does not say which.* write 'base:{name}' or 'chat:{name}'"):
        split_site_name(name, ["base", "chat"])


def test_an_unknown_model_offers_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown model .*'chta'; did you mean 'chat'\?"):
        split_site_name("chta:blocks.0.hook_resid_post", ["base", "chat"])


def test_one_model_keeps_module_paths_and_its_own_messages(model):
    single = NamedModels(model)
    assert single.by_name == {}
    assert single.first is model
    path = "model.layers.1.mlp:in"
    assert single.sites(path) == ((path, 16),)
    tokens = torch.tensor([[4, 5, 6]], dtype=torch.int32)
    assert torch.equal(single.capture(tokens, [path])[path], model.capture(tokens, [path])[path])
    with pytest.raises(UserError, match="must end in ':in' or ':out'"):
        single.sites("base:blocks.0.hook_resid_post")
    with pytest.raises(UnknownNameError, match=r"^unknown hook name 'blocks.0.hook_resid_pots'"):
        single.sites("blocks.0.hook_resid_pots")
    assert single.record() == {"model": model.record()}


def test_each_model_is_run_once_and_only_where_a_site_is_read(model):
    other = tiny_llama()
    with torch.no_grad():
        other.hf.model.embed_tokens.weight.mul_(2.0)
    named = NamedModels({"a": model, "b": other, "idle": tiny_llama()})
    names = [f"b:{SITES[1]}", f"a:{SITES[0]}", "b:model.layers.0.mlp:in", f"b:{SITES[0]}"]
    assert named.sites(names) == tuple((name, 16) for name in names)  # a module path's width takes a pass of its own
    runs = []
    watched = [each.hf for each in named.by_name.values()]
    handles = [hf.register_forward_pre_hook(lambda module, args: runs.append(module)) for hf in watched]
    tokens = torch.tensor([[4, 5, 6], [7, 8, 9]], dtype=torch.int32)
    captured = named.capture(tokens, names)
    for handle in handles:
        handle.remove()
    assert runs == [model.hf, other.hf]
    assert set(captured) == set(names)
    assert torch.equal(captured[f"a:{SITES[0]}"], model.capture(tokens, [SITES[0]])[SITES[0]])
    assert torch.equal(captured[f"b:{SITES[0]}"], other.capture(tokens, [SITES[0]])[SITES[0]])
    assert not torch.equal(captured[f"a:{SITES[0]}"], captured[f"b:{SITES[0]}"])


def test_a_wrong_site_says_of_which_model(model):
    named = NamedModels({"base": model, "chat": model})
    with pytest.raises(UnknownNameError, match=r"^model 'chat': unknown hook name 'blocks.0.hook_resid_pots'"):
        named.sites("chat:blocks.0.hook_resid_pots")
    with pytest.raises(ConfigError, match="at least one site"):
        named.sites([])


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda model: {}, "mapping of models is empty"),
        (lambda model: {"a:b": model}, "'a:b' cannot name a model"),
        (lambda model: {"a+b": model}, "cannot name a model"),
        (lambda model: {"": model}, "cannot name a model"),
    ],
)
def test_mappings_that_name_no_models_are_refused(model, models, message):
    with pytest.raises(ConfigError, match=message):
        NamedModels(models(model))


def test_values_that_are_no_models_are_refused():
    with pytest.raises(ConfigError, match="model 'a' is a str; expected what load_model returns"):
        _check_mapping({"a": "gpt2"})


def test_other_vocabularies_are_refused_naming_what_differs(model):
    same = with_tokenizer(word_tokenizer())
    assert same.tokenizer is not model.tokenizer
    NamedModels({"base": model, "chat": same})
    longer = with_tokenizer(tokenizer_of([*WORDS, "<turn>"]))
    with pytest.raises(
        ConfigError, match=r"'base' and 'chat' do not share a tokenizer: '<turn>' is in 'chat' alone\. "
    ):
        NamedModels({"base": model, "chat": longer})
    with pytest.raises(ConfigError, match=r"'<turn>' is in 'base' alone"):
        NamedModels({"base": longer, "chat": model})
    swapped = with_tokenizer(tokenizer_of([*WORDS[:4], WORDS[5], WORDS[4], *WORDS[6:]]))
    with pytest.raises(ConfigError, match=r"'w0' is 4 in 'base' and 5 in 'chat'; 'w1' is 5 in 'base' and 4 in 'chat'"):
        NamedModels({"base": model, "third": same, "chat": swapped})
    reversed_words = with_tokenizer(tokenizer_of([*WORDS[:4], *WORDS[:3:-1]]))
    with pytest.raises(ConfigError, match=r"\(and 23 more\)"):  # 27 words, of which the middle one stays
        NamedModels({"base": model, "chat": reversed_words})


def test_models_without_a_tokenizer_need_vocabularies_of_one_size(model):
    none = with_tokenizer(None)
    NamedModels({"base": none, "chat": with_tokenizer(None)})
    with pytest.raises(ConfigError, match=r"'chat' has no tokenizer to compare.*load_model\(..., tokenizer="):
        NamedModels({"base": model, "chat": none})
    wider_hf = tiny_llama().hf
    wider_hf.resize_token_embeddings(40)
    with pytest.raises(ConfigError, match="vocabularies have 31 and 40 tokens"):
        NamedModels({"base": none, "chat": load_model(wider_hf)})


class _Unlisted:
    """A tokenizer that does not list its tokens: one id per word, by its length."""

    def __init__(self, size: int, step: int) -> None:
        self._size, self._step = size, step

    def __len__(self) -> int:
        return self._size

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [self._step * len(word) for word in text.split()]}


def test_tokenizers_that_list_no_tokens_are_compared_by_size_and_a_sample():
    def models(size: int, step: int) -> NamedModels:
        first, second = tiny_llama(), tiny_llama()
        first.tokenizer, second.tokenizer = _Unlisted(31, 1), _Unlisted(size, step)
        return NamedModels({"a": first, "b": second})

    models(31, 1)
    with pytest.raises(ConfigError, match="they have 31 and 32 tokens"):
        models(32, 1)
    with pytest.raises(ConfigError, match=r"encode .* differently"):
        models(31, 2)


def test_the_dtype_holds_every_models_activations(model):
    low = tiny_llama(torch.bfloat16)
    assert NamedModels({"a": low, "b": model}).dtype == torch.float32
    assert NamedModels({"a": low}).dtype == torch.bfloat16
    assert NamedModels({"a": low, "b": tiny_llama(torch.float16)}).dtype == torch.float32
