"""``evaluate`` of coders over several models: each model is run by itself, with its own sites replaced."""

from __future__ import annotations

import json
import math

import pytest
import torch
from evaluation_tiny import (
    BOS,
    SITE,
    TOKENIZER,
    VOCABULARY,
    WIDTH,
    constant_sae,
    identity_sae,
    random_sae,
    tiny_decoder,
    tiny_encoder,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosema.coders import Crosscoder, ReLU, SparseCoder, Transcoder
from monosema.core.errors import ConfigError, DataError, ShapeError, UnknownNameError
from monosema.evaluation import Report, evaluate
from monosema.metrics import fve
from monosema.models import LanguageModel

NAMES = (f"base:{SITE}", f"chat:{SITE}")
LOSSES = ("ce_clean", "ce_spliced", "ce_ablated", "ce_loss_score", "kl", "kl_ablated", "kl_score")


@pytest.fixture(scope="module")
def chat() -> LanguageModel:
    """The decoder with other weights in its first block."""
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight.mul_(-1.5)
    return model


@pytest.fixture
def models(decoder: LanguageModel, chat: LanguageModel) -> dict[str, LanguageModel]:
    return {"base": decoder, "chat": chat}


def crosscoder(names: tuple[str, ...] = NAMES) -> SparseCoder:
    coder = Crosscoder([WIDTH] * len(names), 24, activation=ReLU(), dtype="float64")
    coder.bind("+".join(names), "+".join(names), {})
    return coder


def spliced_by_hand(model: LanguageModel, contexts: Tensor, new: Tensor) -> float:
    """Cross-entropy with ``new [n, d]`` in the place of what block 0 gives outside special positions."""
    special = contexts == BOS

    def hook(module, args, output):
        value = (output[0] if isinstance(output, tuple) else output).clone()
        value[~special] = new
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = model.hf.model.layers[0].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.hf(input_ids=contexts, use_cache=False).logits
    handle.remove()
    counted = ~special[:, :-1] & ~special[:, 1:]
    return cross_entropy(logits[:, :-1][counted], contexts[:, 1:][counted]).item()


def test_each_model_is_spliced_with_its_own_part(models: dict[str, LanguageModel], contexts: Tensor):
    coder = crosscoder()
    report = evaluate(coder, models, contexts)
    values = [models[key].capture(contexts, [SITE])[SITE][contexts != BOS] for key in ("base", "chat")]
    assert not torch.equal(*values)
    x = torch.cat(values, 1)
    with torch.no_grad():
        x_hat, latents = coder(x), coder.encode(x)
    assert report.fve == pytest.approx(fve(x, x_hat), rel=1e-12)
    assert report.l0 == (latents != 0).sum(-1).double().mean().item()
    assert report.fve_per_site == pytest.approx(
        {name: fve(own, hat) for name, own, hat in zip(NAMES, values, x_hat.split(WIDTH, 1), strict=True)}, rel=1e-12
    )
    assert list(report.models) == ["base", "chat"]
    for key, hat in zip(report.models, x_hat.split(WIDTH, 1), strict=True):
        losses = report.models[key]
        assert losses.ce_spliced == pytest.approx(spliced_by_hand(models[key], contexts, hat), rel=1e-12)
        assert losses.ce_ablated == pytest.approx(
            spliced_by_hand(models[key], contexts, torch.zeros_like(hat)), rel=1e-12
        )
        score = (losses.ce_ablated - losses.ce_spliced) / (losses.ce_ablated - losses.ce_clean)
        assert losses.ce_loss_score == pytest.approx(score, rel=1e-12)
        assert losses.n_predicted_tokens == 36
    assert report.models["base"].ce_spliced != report.models["chat"].ce_spliced
    assert all(getattr(report, name) is None for name in (*LOSSES, "n_predicted_tokens"))
    assert report.model_name == "base: tiny-llama, chat: tiny-llama"


def test_a_model_by_name_has_the_scores_it_has_alone(models: dict[str, LanguageModel], contexts: Tensor):
    for key, model in models.items():
        alone = evaluate(random_sae(), model, contexts)
        coder = random_sae()
        coder.bind(f"{key}:{SITE}", f"{key}:{SITE}", {})
        named = evaluate(coder, models, contexts)
        assert named.fve == pytest.approx(alone.fve, rel=1e-12)
        assert list(named.models) == [key]
        for name in LOSSES:
            assert getattr(named.models[key], name) == pytest.approx(getattr(alone, name), rel=1e-10)


def test_a_coder_from_one_model_to_the_other_is_put_into_the_second(models: dict[str, LanguageModel], contexts: Tensor):
    coder = Transcoder(WIDTH, WIDTH, 24, activation=ReLU(), dtype="float64")
    coder.bind(*NAMES, {})
    report = evaluate(coder, models, contexts)
    x, y = (models[key].capture(contexts, [SITE])[SITE][contexts != BOS] for key in ("base", "chat"))
    with torch.no_grad():
        assert report.fve == pytest.approx(fve(y, coder(x)), rel=1e-12)
        by_hand = spliced_by_hand(models["chat"], contexts, coder(x))
    assert report.models["chat"].ce_spliced == pytest.approx(by_hand, rel=1e-12)
    assert list(report.models) == ["chat"]


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_batches_and_parts_do_not_matter(models: dict[str, LanguageModel], contexts: Tensor, ablation: str):
    whole = evaluate(crosscoder(), models, contexts, ablation=ablation)
    parts = evaluate(crosscoder(), models, contexts, ablation=ablation, batch_size=4)
    assert parts.fve_per_site == pytest.approx(whole.fve_per_site, rel=1e-12)
    few = evaluate(crosscoder(), models, contexts, ablation=ablation, n_loss_tokens=21, batch_size=2)
    same = evaluate(crosscoder(), models, contexts[[0, 2, 4]], ablation=ablation)
    for key in models:
        for name in LOSSES:
            assert getattr(parts.models[key], name) == pytest.approx(getattr(whole.models[key], name), rel=1e-10)
            assert getattr(few.models[key], name) == pytest.approx(getattr(same.models[key], name), rel=1e-10)


def test_perfect_and_empty_coders(models: dict[str, LanguageModel], contexts: Tensor):
    perfect = evaluate(identity_sae(2 * WIDTH, "+".join(NAMES)), models, contexts)
    zero = crosscoder()
    with torch.no_grad():
        zero.W_dec.zero_()
    empty = evaluate(zero, models, contexts)
    for key in models:
        assert perfect.models[key].ce_loss_score == perfect.models[key].kl_score == pytest.approx(1.0, rel=1e-12)
        assert empty.models[key].ce_loss_score == empty.models[key].kl_score == 0.0


def test_encoders_predict_masked_tokens_and_mixed_pairs_have_no_task(
    encoder: LanguageModel, decoder: LanguageModel, contexts: Tensor
):
    pair = {"base": encoder, "chat": encoder}
    report = evaluate(identity_sae(2 * WIDTH, "+".join(NAMES)), pair, contexts)
    alone = evaluate(identity_sae(), encoder, contexts)
    assert report.models["base"].ce_clean == pytest.approx(alone.ce_clean, rel=1e-12)
    assert report.models["chat"].ce_loss_score == pytest.approx(1.0, rel=1e-12)
    mixed = {"base": encoder, "chat": LanguageModel(decoder.hf, TOKENIZER, name="tiny-llama")}
    report = evaluate(crosscoder(), mixed, contexts)
    assert report.models is None
    assert any("an encoder and a decoder have no task in common" in note for note in report.notes)
    assert report.fve_per_site.keys() == set(NAMES)


def test_text_table_and_json_show_every_model(models: dict[str, LanguageModel], contexts: Tensor):
    report = evaluate(crosscoder(), models, contexts)
    text = str(report)
    for part in ("model base", "model chat", *NAMES, f"{report.models['chat'].ce_spliced:.4f}"):
        assert part in text
        assert part in report._repr_html_()
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    undefined = report.to_dict()
    undefined["models"]["base"]["kl"] = None
    assert math.isnan(Report.from_dict(undefined).models["base"].kl)


def test_sites_of_one_model_have_their_own_fve_too(decoder: LanguageModel, contexts: Tensor):
    names = ("blocks.0.hook_resid_post", "blocks.2.hook_mlp_out")
    coder = crosscoder(names)
    report = evaluate(coder, decoder, contexts)
    values = decoder.capture(contexts, names)
    rows = [values[name][contexts != BOS] for name in names]
    with torch.no_grad():
        hats = coder(torch.cat(rows, 1)).split(WIDTH, 1)
    expected = {name: fve(own, hat) for name, own, hat in zip(names, rows, hats, strict=True)}
    assert report.fve_per_site == pytest.approx(expected, rel=1e-12)
    assert evaluate(coder, activations=torch.cat(rows, 1)).fve_per_site == pytest.approx(expected, rel=1e-12)
    assert report.models is None
    assert evaluate(constant_sae(0.0), decoder, contexts).fve_per_site is None


def test_what_does_not_fit_is_refused(models: dict[str, LanguageModel], decoder: LanguageModel, contexts: Tensor):
    coder = crosscoder()
    coder.metadata.update({"models": {"base": {}, "chat": {}}, "hook_names": list(NAMES)})
    with pytest.raises(
        ConfigError, match=r"reads several models; give them by name, as in \{'base': ..., 'chat': ...\}"
    ):
        evaluate(coder, decoder, contexts)
    with pytest.raises(ConfigError, match="does not say which model it is of; write 'base:"):
        evaluate(random_sae(), models, contexts)
    with pytest.raises(UnknownNameError, match="chta"):
        evaluate(crosscoder((NAMES[0], f"chta:{SITE}")), models, contexts)
    with pytest.raises(ShapeError, match=r"d_in is 16, but 'base:.*\+chat:.*' of tiny-llama is 32 wide"):
        evaluate(constant_sae(0.0, "+".join(NAMES)), models, contexts)
    with pytest.raises(DataError, match=rf"token id {VOCABULARY} is outside the vocabulary"):
        evaluate(coder, models, contexts.clamp(max=VOCABULARY - 2) + 2)
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        evaluate(coder, {"base": decoder, "chat": tiny_encoder(TOKENIZER)}, contexts)
