"""The fingerprint of weights: what changes it and what does not."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from monosema.models import fingerprint, load_model
from monosema.models.fingerprint import comparable_dtypes, weights_fingerprint


def small(*, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5, bias=bias), nn.LayerNorm(5))


def test_it_is_the_sha256_of_names_shapes_and_values_in_bfloat16():
    model = nn.Module()
    model.b = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    model.a = nn.Parameter(torch.tensor(0.5))
    # bfloat16 is the upper half of a float32: 0.5 is 0x3F00, 1 is 0x3F80, -2 is 0xC000, little-endian in memory.
    told = b"a []\n" + bytes.fromhex("003f") + b"b [1, 2]\n" + bytes.fromhex("803f 00c0")
    assert weights_fingerprint(model) == hashlib.sha256(told).hexdigest()[:16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_type_weights_are_loaded_in_does_not_change_it(dtype):
    known = weights_fingerprint(small())
    assert weights_fingerprint(small().to(dtype)) == known
    assert weights_fingerprint(small().requires_grad_(False)) == known
    assert comparable_dtypes("float32", str(dtype).removeprefix("torch."))


def test_float16_is_compared_with_itself_only():
    assert comparable_dtypes("float16", "float16")
    assert not comparable_dtypes("float16", "float32")
    assert not comparable_dtypes("bfloat16", "float16")


@pytest.mark.parametrize("whole", [2**23, 1])
def test_any_parameter_that_changes_changes_it(whole, monkeypatch):
    monkeypatch.setattr(fingerprint, "_MOST_WHOLE", whole)
    found = {weights_fingerprint(small()), weights_fingerprint(small(bias=False))}
    for name, _ in small().named_parameters():
        model = small()
        with torch.no_grad():
            model.get_parameter(name).view(-1)[-1] += 1
        found.add(weights_fingerprint(model))
    assert len(found) == 2 + len(list(small().named_parameters()))


def test_a_large_parameter_is_sampled_in_every_column(monkeypatch):
    monkeypatch.setattr(fingerprint, "_MOST_WHOLE", 1)
    monkeypatch.setattr(fingerprint, "_SAMPLED", 64)
    model = nn.Linear(64, 64, bias=False)
    known = weights_fingerprint(model)
    for column in range(64):  # 4096 values, every (64 | 1) = 65th: one in each of the first 63 columns and the last
        with torch.no_grad():
            model.weight[:, column] += 1
        assert weights_fingerprint(model) != known
        with torch.no_grad():
            model.weight[:, column] -= 1


def test_weights_that_are_not_there_have_none():
    assert weights_fingerprint(small().to("meta")) is None


def test_a_record_tells_the_weights_as_they_are(make_hf):
    model = load_model(make_hf("llama", torch.float32))
    before = model.record()["fingerprint"]
    assert before == weights_fingerprint(model.hf)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight += 1
    assert model.record()["fingerprint"] not in (None, before)
