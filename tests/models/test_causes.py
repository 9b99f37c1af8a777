"""Every cause that keeps a model from being loaded is told as itself, and never as a wrong path."""

from __future__ import annotations

import errno
import importlib.util
import json

import pytest
import torch
import transformers

from monosema.core.errors import ConfigError, FileError, MissingExtraError, UserError
from monosema.models import load_model
from monosema.models.load import load_tokenizer

PLACE = "Expected a folder with config.json"


@pytest.fixture
def folder(tmp_path, make_hf):
    make_hf("llama", torch.float32).save_pretrained(tmp_path)
    return tmp_path


def load(folder, **options):
    return load_model(folder, tokenizer=False, **options)


def change(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")


@pytest.fixture
def raised_by(folder, monkeypatch):
    """What ``load_model`` raises where transformers raises ``error``."""

    def raised(error: Exception) -> BaseException:
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", fail)
        with pytest.raises((UserError, MemoryError, RuntimeError)) as caught:
            load(folder, device="cpu")
        return caught.value

    return raised


def without(monkeypatch, *packages):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in packages else found(name))


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is not None, reason="accelerate is installed")
def test_device_map_without_accelerate(folder):
    with pytest.raises(MissingExtraError, match=r"needs accelerate, not installed.*Run: pip install accelerate$") as at:
        load(folder, device_map="auto")
    assert PLACE not in str(at.value)


def test_packages_that_transformers_asks_for(raised_by, monkeypatch):
    without(monkeypatch, "accelerate", "optimum", "sentencepiece")
    for text, package in (
        ("Using a `device_map` requires `accelerate`. You can install it with `pip install accelerate`", "accelerate"),
        ("Loading a GPTQ quantized model requires optimum (`pip install optimum`)", "optimum"),
        ("\nXTokenizer requires the SentencePiece library but it was not found", "sentencepiece"),
    ):
        error = raised_by(ImportError(text))
        assert isinstance(error, MissingExtraError)
        assert str(error).endswith(f"Run: pip install {package}")


def test_out_of_memory_stays_what_it_is(raised_by):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert raised_by(error) is error
    assert isinstance(raised_by(OSError(errno.ENOMEM, "Cannot allocate memory")), MemoryError)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("You are trying to access a gated repo.\nMake sure"), "gated repo. Accept its terms .*token="),
        (OSError("We couldn't connect to 'the hub' to load the files"), f"couldn't connect.*{PLACE}"),
        (ValueError("Specified `attn_implementation=x` is not supported"), "is not supported$"),
    ],
)
def test_what_is_about_the_place_and_what_is_not(error, told, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match=told):
        load(folder)


def test_a_newer_architecture(folder):
    change(folder, model_type="llama9")
    with pytest.raises(UserError, match=r"llama9.*pip install --upgrade transformers") as at:
        load(folder)
    assert PLACE not in str(at.value)


def test_damaged_missing_and_foreign_weights(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=r"the weights of .* are damaged"):
        load(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"no file named.*as model.safetensors .* or pytorch_model.bin"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk" * 100)
    with pytest.raises(FileError, match="its weights cannot be read"):
        load(folder)


def test_weights_of_another_size(folder):
    change(folder, hidden_size=64)
    with pytest.raises(UserError, match=r"other shapes than its config.json says"):
        load(folder)


def test_code_that_came_with_a_model(folder):
    change(folder, model_type="mine", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"})
    with pytest.raises(UserError, match=r"comes with code of its own.*trust_remote_code=True") as at:
        load(folder)
    assert PLACE not in str(at.value)


def test_unknown_arguments(folder):
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'foo'.*model_kwargs"):
        load(folder, model_kwargs={"foo": 3})


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_tokenizer_that_needs_sentencepiece(folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}', encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(b"\n\x05junk")
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_tokenizer(str(folder))


def test_models_that_read_no_tokens():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32
    )
    with pytest.raises(UserError, match="ViTModel has no token embedding"):
        load_model(transformers.ViTModel(config))
