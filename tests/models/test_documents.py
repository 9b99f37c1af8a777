"""Documents that share a context: each is computed as if it stood alone, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from monosema.core.errors import DataError, UserError
from monosema.models import LanguageModel, documents, load_model
from monosema.models.documents import positions_in_documents

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 1, 2, 2]])
PADDED = torch.tensor([[0, 0, 0, 0, -1, -1, -1, -1, -1], [0, 0, 0, 0, 0, 0, 0, 0, 0]])
HfFactory = Callable[..., Any]
ModelFactory = Callable[..., LanguageModel]
SITES = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")


def each_alone(model: LanguageModel, tokens: Tensor, numbers: Tensor, name: str | None) -> Tensor:
    """A site (the logits for None) of every document in a context of its own; NaN at padding."""
    rows = []
    for tokens_T, numbers_T in zip(tokens, numbers, strict=True):
        parts = []
        for number in [n for n in numbers_T.unique().tolist() if n >= 0]:
            own = tokens_T[numbers_T == number][None]
            with torch.no_grad():
                parts.append(model(own)[0] if name is None else model.capture(own, [name])[name][0])
        row = torch.cat(parts)
        rows.append(torch.cat([row, row.new_full((len(tokens_T) - len(row), row.shape[1]), torch.nan)]))
    return torch.stack(rows)


def difference(found: Tensor, alone: Tensor) -> float:
    return float((found - alone).nan_to_num().abs().max())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox_parallel", "qwen3"])
def test_documents_of_a_context_equal_each_alone(
    make_hf: HfFactory, tokens: Tensor, family: str, attention: str
) -> None:
    model = load_model(make_hf(family, attn_implementation=attention))
    tolerance = 1e-9 if family == "gpt2" else 1e-6  # the others' norms and softmax pass through float32
    found = model.capture(tokens, SITES, documents_BT=DOCUMENTS)
    for name in SITES:
        assert difference(found[name], each_alone(model, tokens, DOCUMENTS, name)) < tolerance
        assert difference(model.capture(tokens, [name])[name], each_alone(model, tokens, DOCUMENTS, name)) > 1e-3
    with torch.no_grad():
        assert difference(model(tokens, documents_BT=DOCUMENTS), each_alone(model, tokens, DOCUMENTS, None)) < tolerance
    assert model.hf.config._attn_implementation == attention, "never changed"


def test_sliding_windows_slide_within_each_document(make_hf: HfFactory, tokens: Tensor) -> None:
    """Gemma 2: every second layer sees a window."""
    model = load_model(make_hf("gemma2", sliding_window=3))
    name = SITES[1]
    found = model.capture(tokens, [name], documents_BT=DOCUMENTS)[name]
    assert difference(found, each_alone(model, tokens, DOCUMENTS, name)) < 1e-6
    wide = load_model(make_hf("gemma2", sliding_window=99)).capture(tokens, [name], documents_BT=DOCUMENTS)[name]
    assert difference(found, wide) > 1e-3, "the window is in force"


def test_an_explicit_mask_where_transformers_makes_none_of_the_positions(
    make_hf: HfFactory, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in older versions of transformers, which number positions anew and let documents attend to each other."""
    monkeypatch.setattr(documents, "_by_positions", lambda documents_BT, dtype: {})
    by_mask = documents._by_mask
    monkeypatch.setattr(
        documents,
        "_by_mask",
        lambda numbers, dtype: {**by_mask(numbers, dtype), "position_ids": positions_in_documents(numbers)},
    )
    for attention in ("eager", "sdpa"):
        model = load_model(make_hf("llama", attn_implementation=attention))
        found = model.capture(tokens, [SITES[1]], documents_BT=DOCUMENTS)[SITES[1]]
        assert difference(found, each_alone(model, tokens, DOCUMENTS, SITES[1])) < 1e-6
    with pytest.raises(UserError, match="cannot keep the documents"):  # a mask would undo the window
        load_model(make_hf("gemma2", sliding_window=3)).check_separates_documents()


@pytest.mark.parametrize(("family", "reason"), [("bert", "it is an encoder"), ("mamba", "its logits are not")])
def test_models_that_cannot_keep_documents_apart_are_refused(
    make_hf: HfFactory, tokens: Tensor, family: str, reason: str
) -> None:
    model = load_model(make_hf(family, torch.float32))
    with pytest.raises(UserError, match=f"cannot keep the documents of a context apart: .*{reason}.*'windows'"):
        model.capture(tokens, SITES[:1], documents_BT=DOCUMENTS)
    with pytest.raises(UserError, match=reason):
        model.check_separates_documents()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "mamba"])
def test_padding_changes_nothing_of_the_document(make_hf: HfFactory, tokens: Tensor, family: str) -> None:
    model = load_model(make_hf(family, torch.float32))
    padded = tokens.masked_fill(PADDED == -1, 1)  # EOS
    found = model.capture(padded, SITES, documents_BT=PADDED)
    for name in SITES:
        alone = each_alone(model, tokens, PADDED, name)
        assert difference(found[name], alone) < 1e-5 * float(alone.nan_to_num().abs().max())
    if model.is_encoder:
        unmasked = model.capture(padded, SITES)[SITES[1]]
        assert difference(unmasked, each_alone(model, tokens, PADDED, SITES[1])) > 1e-3


def test_plain_text_is_computed_as_without_documents(model_of: ModelFactory, tokens: Tensor) -> None:
    model = model_of("llama")
    plain = model.capture(tokens, SITES)
    one = model.capture(tokens, SITES, documents_BT=torch.zeros_like(tokens))
    assert all(torch.equal(plain[name], one[name]) for name in SITES)


def test_documents_that_are_not_numbered_along_the_context_are_refused(model_of: ModelFactory, tokens: Tensor) -> None:
    model = model_of("llama")
    for row in ([1] * 9, [0, 0, 2] + [2] * 6, [0, 1, 0] + [0] * 6, [0, -1, 0] + [0] * 6, [-1] * 9):
        with pytest.raises(DataError, match="numbered from 0 on"):
            model(tokens[:1], documents_BT=torch.tensor([row]))
    with pytest.raises(DataError, match="in the tokens' shape"):
        model(tokens, documents_BT=DOCUMENTS[:1])
    with pytest.raises(UserError, match="not both"):
        model(tokens, documents_BT=DOCUMENTS, attention_mask=torch.ones_like(tokens))


def test_positions_start_again_with_each_document() -> None:
    assert positions_in_documents(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 5, 0, 0, 1]]
