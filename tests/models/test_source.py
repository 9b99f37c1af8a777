"""Local paths are recorded absolutely and never looked up on the hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from monosema.core.errors import FileError
from monosema.models import load_model
from monosema.models.load import load_outline, load_tokenizer
from monosema.models.source import resolve_source


def test_what_exists_is_a_path_and_anything_else_may_be_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    for name in ("owner/model", "./owner/model", "owner/../owner/model/", Path("owner/model")):
        assert resolve_source(name) == str(tmp_path / "owner" / "model")
    assert resolve_source("owner/other") == "owner/other"
    assert resolve_source("gpt2") == "gpt2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_source("~/owner/model") == str(tmp_path / "owner" / "model")


@pytest.mark.parametrize("gone", ["./m", "../m", "~/m", "/nowhere/m", "m/", "a/b/c", Path("m"), "~nobody-here/m"])
def test_a_path_to_nothing_is_named_and_not_looked_up(gone, tmp_path, monkeypatch):
    def looked_up(*arguments, **options):
        raise AssertionError(f"the hub was asked for {arguments}")

    for cls in (transformers.AutoConfig, transformers.AutoTokenizer):
        monkeypatch.setattr(cls, "from_pretrained", looked_up)
    monkeypatch.chdir(tmp_path)
    named = os.path.abspath(os.path.expanduser(gone))
    for load in (load_model, load_outline):
        with pytest.raises(FileError, match=r"there is no model at .*never looked up on the hub") as caught:
            load(gone)
        assert named in str(caught.value)
    with pytest.raises(FileError, match="there is no tokenizer at"):
        load_tokenizer(gone)


def test_a_record_has_absolute_paths(make_hf, tmp_path, monkeypatch):
    from test_load import make_tokenizer

    make_hf("llama", torch.float32).save_pretrained(tmp_path / "llama")
    make_tokenizer().save_pretrained(tmp_path / "words")
    monkeypatch.chdir(tmp_path)
    model = load_model("llama", tokenizer="words")
    assert model.name == str(tmp_path / "llama")
    record = model.record()
    assert (record["source"], record["tokenizer"]) == (str(tmp_path / "llama"), str(tmp_path / "words"))
    assert record["name"] == str(tmp_path / "llama")
    with pytest.raises(FileError, match="there is no tokenizer at"):
        load_model("llama", tokenizer="./elsewhere")
