"""Interchange at the last position of the last layer, where the logits are the site's alone: answers by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from evaluation_tiny import identity_sae
from tiny_language import save_tiny_model

from monosema.core.errors import ConfigError, DataError
from monosema.evaluation.benchmarks.ravel import AttributeData, RavelOptions, cause_and_isolation
from monosema.models import LanguageModel, load_model

SITE = "blocks.1.hook_resid_post"
TEMPLATES = {"first": "a {word}", "second": "it is the {word}"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_model(str(save_tiny_model(folder)))


@pytest.fixture(scope="module")
def data(model: LanguageModel) -> AttributeData:
    found = asked(model, TEMPLATES)
    assert len(found.answers) >= 4
    return found


def asked(model: LanguageModel, templates: dict[str, str]) -> AttributeData:
    """Entities of one letter, with what the model says itself as their answers."""
    answers: dict[str, dict[str, str]] = {}
    for entity in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        texts = {}
        for attribute, template in templates.items():
            ids = [0, *model.tokenizer(template.replace("{word}", entity))["input_ids"]]
            with torch.no_grad():
                given = int(model(torch.tensor([ids]))[0, -1].argmax())
            texts[attribute] = model.tokenizer.decode([given])
        if all(text.isascii() and len(text) == 1 for text in texts.values()):
            answers[entity] = texts
    return AttributeData(templates=templates, answers=answers)


def sae():
    return identity_sae(16, SITE, "float32")


def test_all_latents_of_a_perfect_dictionary_move_every_attribute(model: LanguageModel, data: AttributeData):
    """The site becomes the source's, so the answer does: cause 1; and that of every other attribute: isolation 0."""
    report = cause_and_isolation(sae(), model, data, RavelOptions(n_latents=(32,), n_resamples=20))
    assert report.answered == {"first": 1.0, "second": 1.0}
    assert [each.attribute for each in report.scores] == ["first", "second"]
    for score in report.scores:
        assert score.n_cause > 0
        assert score.n_isolation > 0
        assert (score.cause, score.isolation, score.disentangle) == (1.0, 0.0, 0.5)
        assert (score.cause_interval.low, score.isolation_interval.high) == pytest.approx((1.0, 0.0))
    assert report.disentangle == {32: 0.5}


def test_only_the_entity_is_edited(model: LanguageModel):
    """After the last layer no position reaches another: an entity that is not the last token moves no answer."""
    tried = (asked(model, {name: template + end for name, template in TEMPLATES.items()}) for end in "_982?!")
    data = next(each for each in tried if len({texts["first"] for texts in each.answers.values()}) > 1)
    report = cause_and_isolation(sae(), model, data, RavelOptions(n_latents=(32,), n_resamples=20))
    assert all(score.cause == 0 for score in report.scores)
    assert all(score.isolation == 1 or score.n_isolation == 0 for score in report.scores)


def test_latents_that_write_nothing_move_nothing(model: LanguageModel, data: AttributeData):
    coder = sae()
    coder.W_dec.data.zero_()
    report = cause_and_isolation(coder, model, data, RavelOptions(n_latents=(4,), n_resamples=20))
    for score in report.scores:
        assert (score.cause, score.isolation) == (0.0, 1.0)


def test_the_error_of_a_bad_dictionary_is_kept(model: LanguageModel, data: AttributeData):
    """Without the error term the site would become nearly nothing, and every answer another."""
    coder = sae()
    coder.W_dec.data.mul_(1e-4)
    report = cause_and_isolation(coder, model, data, RavelOptions(n_latents=(32,), n_resamples=20))
    assert all(score.cause == 0 and score.isolation == 1 for score in report.scores)


def test_an_answer_that_the_model_does_not_know_is_not_used(model: LanguageModel, data: AttributeData):
    first = next(iter(data.answers))
    wrong = {
        **data.answers,
        first: {**data.answers[first], "first": "~" if data.answers[first]["first"] != "~" else "!"},
    }
    changed = AttributeData(templates=TEMPLATES, answers=wrong)
    whole, less = (
        cause_and_isolation(sae(), model, each, RavelOptions(n_latents=(1,), n_resamples=5, most_pairs=10_000))
        for each in (data, changed)
    )
    assert less.answered["first"] == pytest.approx(1 - 1 / len(data.answers))
    assert less.scores[0].n_cause < whole.scores[0].n_cause
    assert less.scores[1].n_cause == whole.scores[1].n_cause


def test_pairs_are_drawn_by_the_seed_and_the_report_can_be_written(model: LanguageModel, data: AttributeData):
    options = RavelOptions(n_latents=(2, 8), most_pairs=7, n_resamples=20, seed=4)
    first, again = (cause_and_isolation(sae(), model, data, options) for _ in range(2))
    assert first == again
    assert all(score.n_cause == 7 for score in first.scores)
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert set(plain["disentangle"]) == {"2", "8"}
    assert f"cause and isolation at {SITE} of {model.name}" in str(first)
    assert not math.isnan(first.disentangle[2])


def test_bad_input_is_refused(model: LanguageModel, data: AttributeData):
    one = AttributeData(templates={"first": "a {word}"}, answers=data.answers)
    with pytest.raises(ConfigError, match="at least two attributes"):
        cause_and_isolation(sae(), model, one)
    with pytest.raises(ConfigError, match="at least two attributes"):
        cause_and_isolation(sae(), model, AttributeData(templates=TEMPLATES, answers={}))
    with pytest.raises(DataError, match="no answer for 'second'"):
        cause_and_isolation(sae(), model, AttributeData(templates=TEMPLATES, answers={"a": {"first": "b"}}))
    unknown = {entity: {"first": "~", "second": "~"} for entity in data.answers}
    with pytest.raises(DataError, match="knows no two entities"):
        cause_and_isolation(sae(), model, AttributeData(templates=TEMPLATES, answers=unknown))
    nowhere = sae()
    nowhere.W_enc_rows.data.fill_(math.nan)
    with pytest.raises(DataError, match="finite"):
        cause_and_isolation(nowhere, model, data)
    with pytest.raises(ConfigError, match="n_latents"):
        RavelOptions(n_latents=(3, 1))
    with pytest.raises(ConfigError, match="most_pairs"):
        RavelOptions(most_pairs=0)
