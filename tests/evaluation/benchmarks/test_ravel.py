"""Interchange at the last position of the last layer, where the logits are the site's alone: answers by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_tiny import TOKENIZER, identity_sae, tiny_encoder
from tiny_language import save_tiny_model

from monosema.coders import SparseCoder
from monosema.core.errors import ConfigError, DataError
from monosema.core.progress import Progress
from monosema.evaluation.benchmarks import AttributeData, RavelConfig, RavelReport, cause_and_isolation
from monosema.evaluation.benchmarks.ravel_prompts import Prompts
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
        if all(text.isascii() and len(text) == 1 for text in texts.values()) and len(answers) < 16:
            answers[entity] = texts
    return AttributeData(templates=templates, answers=answers)


def sae():
    return identity_sae(16, SITE, "float32")


def measure(coder: SparseCoder, model: LanguageModel, data: AttributeData, **options: Any) -> RavelReport:
    """With the latents that vary most, and no mask."""
    config = RavelConfig(**{"n_epochs": 0, "n_latents": (32,), "test_fraction": 0.5, **options})
    return cause_and_isolation(coder, model, data, config, progress=False)


def test_all_latents_of_a_perfect_dictionary_move_every_attribute(model: LanguageModel, data: AttributeData):
    """The site becomes the source's, so the answer does: cause 1; and that of every other attribute: isolation 0."""
    prompts = Prompts(sae(), model, data, RavelConfig(), False)
    for attribute in TEMPLATES:
        pairs = prompts.pairs(attribute, "train")
        cause, isolation = prompts.cause(attribute, pairs), prompts.isolation(attribute, pairs)
        assert min(len(cause.bases), len(isolation.bases)) > 0
        every, none = torch.arange(len(prompts.active_K)), torch.arange(0)
        assert prompts.hits(cause, every).all() and not prompts.hits(cause, none).any()
        assert not prompts.hits(isolation, every).any() and prompts.hits(isolation, none).all()


def test_an_answer_is_what_the_model_would_generate(model: LanguageModel):
    """Two tokens: right where ``generate`` says them, wrong where the second is another, which one token misses."""
    answers: dict[str, str] = {}
    for entity in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        ids = torch.tensor([[0, *model.tokenizer(f"a {entity}")["input_ids"]]])
        made = model.hf.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        text = model.tokenizer.decode(made)
        if text.isascii() and len(text) == 2:
            answers[entity] = text
    assert len(answers) >= 2
    wrong = next(iter(answers))
    told = {entity: {"it": text} for entity, text in answers.items()}
    told[wrong] = {"it": answers[wrong][0] + ("!" if answers[wrong][1] != "!" else "?")}
    data = AttributeData(templates={"it": "a {word}"}, answers=told)
    known = Prompts(sae(), model, data, RavelConfig(), False).known
    assert known == {(entity, "it"): entity != wrong for entity in answers}
    assert all(Prompts(sae(), model, data, RavelConfig(n_answer_tokens=1), False).known.values())


def test_the_score_is_the_mean_of_both(model: LanguageModel, data: AttributeData):
    report = measure(sae(), model, data)
    assert report.answered == {"first": 1.0, "second": 1.0}
    assert [(each.attribute, each.choice) for each in report.scores] == [("first", "top 32"), ("second", "top 32")]
    for score in report.scores:
        assert score.cause.value > 0.3
        assert score.disentangle.value == pytest.approx((score.cause.value + score.isolation.value) / 2)
        assert score.disentangle.low < score.disentangle.value < score.disentangle.high
    assert report.disentangle["top 32"] == pytest.approx(sum(s.disentangle.value for s in report.scores) / 2)


def test_only_the_entity_is_edited(model: LanguageModel):
    """After the last layer no position reaches another: an entity that is not the last token moves no answer."""
    tried = (asked(model, {name: template + end for name, template in TEMPLATES.items()}) for end in "_982?!")
    data = next(each for each in tried if len({texts["first"] for texts in each.answers.values()}) > 1)
    report = measure(sae(), model, data)
    assert all(score.cause.value == 0 for score in report.scores)
    assert all(score.isolation.value == 1 or score.n_isolation == 0 for score in report.scores)


def test_latents_that_write_nothing_move_nothing(model: LanguageModel, data: AttributeData):
    coder = sae()
    coder.W_dec.data.zero_()
    for score in measure(coder, model, data, keep_error=True).scores:
        assert (score.cause.value, score.isolation.value) == (0.0, 1.0)


def test_the_error_is_dropped_unless_it_is_kept(model: LanguageModel, data: AttributeData):
    """A dictionary that writes nearly nothing leaves one site, and so one answer, for all prompts without its error."""
    coder = sae()
    coder.W_dec.data.mul_(1e-4)
    kept, dropped = (measure(coder, model, data, keep_error=keep) for keep in (True, False))
    assert all(score.cause.value == 0 and score.isolation.value == 1 for score in kept.scores)
    assert any(score.isolation.value < 1 for score in dropped.scores)
    assert kept != dropped


def test_latents_are_chosen_on_other_entities_than_they_are_measured_on(model: LanguageModel, data: AttributeData):
    config = RavelConfig(n_epochs=0, n_latents=(2,), test_fraction=0.4)
    prompts = Prompts(sae(), model, data, config, False)
    train, test = prompts.sides["train"], prompts.sides["test"]
    assert sorted([*train, *test]) == sorted(data.answers)
    assert len(test) == round(0.4 * len(data.answers))
    assert {entity for pair in prompts.pairs("first", "train") for entity in pair} <= set(train)
    assert {entity for pair in prompts.pairs("first", "test") for entity in pair} <= set(test)
    few = AttributeData(templates=data.templates, answers={entity: data.answers[entity] for entity in train})
    own = Prompts(sae(), model, few, replace(config, test_fraction=0.01), False)
    own.sides["train"] = train
    chosen, again = (each.active_K[each.vary_most("first", 2)] for each in (prompts, own))
    assert torch.equal(chosen, again)


def test_a_mask_learns_what_it_is_asked_for(model: LanguageModel, data: AttributeData):
    """Asked to change answers it takes latents that do so; asked to keep them, none that would change one."""
    prompts = Prompts(sae(), model, data, RavelConfig(lr=0.1, n_epochs=10, most_pairs=30), False)
    pairs, bar = prompts.pairs("first", "train"), Progress("", None, enabled=False)
    cause, isolation = prompts.cause("first", pairs), prompts.isolation("first", pairs)
    changing, keeping = (prompts.train_mask("first", wanted, bar) for wanted in (cause, isolation))
    assert float(prompts.hits(cause, changing).double().mean()) > 0.7
    assert float(prompts.hits(isolation, keeping).double().mean()) > 0.7
    assert float(prompts.hits(cause, keeping).double().mean()) < 0.4
    assert torch.equal(prompts.train_mask("first", cause, bar), changing)


def test_an_answer_that_the_model_does_not_know_is_not_used(model: LanguageModel, data: AttributeData):
    first = next(iter(data.answers))
    own = data.answers[first]["first"]
    wrong = {**data.answers, first: {**data.answers[first], "first": "~" if own != "~" else "!"}}
    prompts = [
        Prompts(sae(), model, AttributeData(templates=TEMPLATES, answers=answers), RavelConfig(), False)
        for answers in (data.answers, wrong)
    ]
    assert [each.known[first, "first"] for each in prompts] == [True, False]
    whole, less = (sum(len(each.pairs("first", side)) for side in each.sides) for each in prompts)
    assert less < whole
    assert prompts[0].pairs("second", "train") == prompts[1].pairs("second", "train")
    report = measure(sae(), model, AttributeData(templates=TEMPLATES, answers=wrong))
    assert report.answered["first"] == pytest.approx(1 - 1 / len(data.answers))


def test_pairs_are_drawn_by_the_seed_and_the_report_can_be_written(model: LanguageModel, data: AttributeData):
    options = {"n_epochs": 1, "n_latents": (2, 8), "most_pairs": 3, "seed": 4}
    first, again = (measure(sae(), model, data, **options) for _ in range(2))
    assert first == again
    assert all(score.n_cause <= 3 for score in first.scores)
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert set(plain["disentangle"]) == {"mask", "top 2", "top 8"}
    assert f"cause and isolation at {SITE} of {model.name}" in str(first)


def test_bad_input_is_refused(model: LanguageModel, data: AttributeData):
    one = AttributeData(templates={"first": "a {word}"}, answers=data.answers)
    with pytest.raises(ConfigError, match="two attributes of each"):
        cause_and_isolation(sae(), model, one)
    with pytest.raises(ConfigError, match="at least two entities"):
        cause_and_isolation(sae(), model, AttributeData(templates=TEMPLATES, answers={}))
    lacking = AttributeData(templates=TEMPLATES, answers={entity: {"first": "b"} for entity in "ab"})
    with pytest.raises(DataError, match="no answer for 'second'"):
        cause_and_isolation(sae(), model, lacking)
    unknown = {entity: {"first": "~", "second": "~"} for entity in data.answers}
    with pytest.raises(DataError, match="knows no two entities"):
        cause_and_isolation(sae(), model, AttributeData(templates=TEMPLATES, answers=unknown), progress=False)
    nowhere = sae()
    nowhere.W_enc_rows.data.fill_(math.nan)
    with pytest.raises(DataError, match="finite"):
        cause_and_isolation(nowhere, model, data)
    two = identity_sae(32, f"{SITE}+blocks.0.hook_resid_post", "float32")
    with pytest.raises(ConfigError, match="edits one site"):
        cause_and_isolation(two, model, data)
    with pytest.raises(ConfigError, match="n_latents"):
        RavelConfig(n_latents=(3, 1))
    with pytest.raises(ConfigError, match="n_latents"):
        RavelConfig(n_epochs=0)
    with pytest.raises(ConfigError, match="most_pairs"):
        RavelConfig(most_pairs=0)


def test_an_encoder_answers_no_prompt(data: AttributeData):
    encoder = tiny_encoder(TOKENIZER)
    coder = identity_sae(16, "blocks.1.hook_resid_post")
    with pytest.raises(ConfigError, match="is an encoder"):
        cause_and_isolation(coder, encoder, data)
