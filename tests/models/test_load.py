"""Every door of ``load_model``, offline."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from monosema.core.errors import ConfigError, FileError, UserError
from monosema.models import load, load_model


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", "<unk>", "def", "return", "x"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture
def folder(tmp_path, make_hf):
    """A local checkpoint of a tiny Llama with its tokenizer."""
    make_hf("llama", torch.float32).save_pretrained(tmp_path / "llama")
    make_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_folder_loads_with_its_tokenizer_and_its_record_says_everything(folder, tokens):
    model = load_model(
        folder,
        dtype="bfloat16",
        device="cpu",
        token="secret-token",
        model_kwargs={"attn_implementation": "eager"},
        forward_kwargs={"output_attentions": False},
    )
    assert (model.dtype, model.name) == (torch.bfloat16, str(folder))
    assert model.tokenizer("def x")["input_ids"] == [4, 6]
    assert model.special_token_ids == {0, 1, 2}, "the unknown token stands for text"
    record = model.record()
    assert json.loads(json.dumps(record)) == record
    assert "secret-token" not in json.dumps(record)
    assert record["source"] == str(folder)
    assert record["model_kwargs"] == {"attn_implementation": "eager"}
    assert record["forward_kwargs"] == {"output_attentions": False}
    assert (record["requested_dtype"], record["device"]) == ("bfloat16", "cpu")
    assert record["attention_implementation"] == "eager"
    assert model(tokens).shape == (2, 9, 101)


def test_tokenizer_can_be_refused_replaced_and_missing(folder, make_hf, tmp_path):
    assert load_model(folder, device="cpu", tokenizer=False).tokenizer is None
    mine = make_tokenizer()
    assert load_model(folder, device="cpu", tokenizer=mine).tokenizer is mine
    make_hf("gpt2", torch.float32).save_pretrained(tmp_path / "bare")
    model = load_model(tmp_path / "bare", device="cpu", tokenizer=str(folder))
    assert model.tokenizer("return")["input_ids"] == [5]
    assert load_model(make_hf("gpt2"), tokenizer=mine).tokenizer is mine


def test_encoders_load_as_masked_models_and_bare_configs_fall_back(tmp_path, make_hf):
    make_hf("bert", torch.float32).save_pretrained(tmp_path / "bert")
    model = load_model(tmp_path / "bert", device="cpu", tokenizer=False)
    assert type(model.hf).__name__ == "BertForMaskedLM"
    assert model.is_encoder


def test_special_tokens_of_gpt2_like_tokenizers_survive_sharing_the_unknown_token(make_hf):
    tokenizer = make_tokenizer()
    tokenizer.unk_token = "<s>"
    assert load_model(make_hf("llama"), tokenizer=tokenizer).special_token_ids == {0, 1, 2}


def test_special_tokens_come_from_the_configuration_without_a_tokenizer(make_hf):
    assert load_model(make_hf("llama")).special_token_ids == {0, 1, 2}


def test_models_in_memory_are_never_reconfigured(make_hf, tokens):
    hf = make_hf("llama", attn_implementation="sdpa").train()
    model = load_model(hf)
    assert model.hf is hf
    assert hf.config._attn_implementation == "sdpa"
    assert not hf.training
    for option, value in (
        ("dtype", "float32"),
        ("device", "cpu"),
        ("device_map", "auto"),
        ("revision", "main"),
        ("trust_remote_code", True),
        ("model_kwargs", {"attn_implementation": "eager"}),
    ):
        with pytest.raises(ConfigError, match=f"{option} cannot be applied to a model in memory"):
            load_model(hf, **{option: value})


def test_unusable_sources_are_refused_clearly(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), "no-such-organisation/no-such-model"):
        with pytest.raises(
            UserError, match=r"cannot load .*Expected a folder with config.json and weights, or a hub id .*or 'builtin'"
        ):
            load_model(source)
    with pytest.raises(FileError, match=r"there is no model at .*put it back"):
        load_model(str(tmp_path / "nowhere"))
    for misspelt in ("bultin", "Builtin", "built-in"):
        with pytest.raises(UserError, match=f"unknown model '{misspelt}'; did you mean 'builtin'"):
            load_model(misspelt)
    with pytest.raises(UserError, match="expected a hub id, a folder, 'builtin' or a transformers model, got int"):
        load_model(3)


def test_contradicting_options_are_refused(folder):
    with pytest.raises(ConfigError, match="device and device_map are both given"):
        load_model(folder, device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match="never recorded"):
        load_model(folder, model_kwargs={"token": "secret"})
    with pytest.raises(UserError, match="float46"):
        load_model(folder, dtype="float46")


def test_builtin_is_the_packages_folder_in_float32_on_the_cpu(folder, monkeypatch):
    monkeypatch.setattr(load, "BUILTIN_FOLDER", folder)
    model = load_model("builtin")
    assert (model.name, model.dtype, model.device.type) == ("builtin", torch.float32, "cpu")
    assert model.tokenizer is not None
    assert model.record()["source"] == "builtin"
    assert load_model("builtin", dtype="float64").dtype == torch.float64


def test_the_packaged_model_predicts_python_better_than_chance():
    model = load_model("builtin")
    ids = torch.tensor(
        [model.tokenizer("import os\n\n\ndef main(path):\n    return os.path.join(path, 'x')\n")["input_ids"]]
    )
    loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    assert float(loss.detach()) < 0.7 * torch.log(torch.tensor(float(model.vocab_size)))
    assert model.context_size == 256


def test_builtin_without_its_files_names_the_script(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "BUILTIN_FOLDER", tmp_path)
    with pytest.raises(FileError, match=r"no config.json, model.safetensors.*scripts/builtin_train.py"):
        load_model("builtin")


def test_importing_the_room_does_not_import_transformers():
    code = "import sys, monosema.models; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
