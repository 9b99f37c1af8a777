"""k-sparse probing of a tiny model over bytes, with a coder that has one latent for one byte."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from tiny_language import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from monosema.coders import SAE, ReLU, SparseCoder
from monosema.core.errors import ConfigError, DataError, ShapeError, UnknownNameError
from monosema.evaluation.benchmarks import ProbingConfig, ProbingReport, TokenLabels, probe_texts, probe_tokens
from monosema.models import LanguageModel

WIDTH, MARK, LATENT = 32, "!", 5
SMALL = ProbingConfig(ks=(1, 3), n_train=120, n_test=60, context_size=24, min_examples=5)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return LanguageModel(hf, byte_tokenizer(), name="bytes")


@pytest.fixture
def coder(model: LanguageModel) -> SparseCoder:
    """Latent 5 fires on the byte ``!`` alone, at 1; the others fire at random."""
    sae = SAE(WIDTH, 12, activation=ReLU())
    sae.bind("hook_embed", "hook_embed", {})
    mark = model.hf.get_input_embeddings().weight[model.tokenizer(MARK)["input_ids"][0]]
    with torch.no_grad():
        sae.W_enc_rows[LATENT] = 10 * mark / mark.square().sum()
        sae.b_enc[LATENT] = -9
    return sae


def sentences(n: int, share: float = 0.5) -> list[str]:
    """Lines of letters; the first ``share`` of them hold a mark, some of them in the middle."""
    draw = random.Random(0)
    lines = ["".join(draw.choices("abcdefgh ", k=draw.randint(6, 14))) for _ in range(n)]
    marked = int(share * n)
    return [line[: i % 6] + MARK + line[i % 6 :] if i < marked else line for i, line in enumerate(lines)]


def mark_spans(text: str) -> Iterator[tuple[str, int, int]]:
    for at, character in enumerate(text):
        if character == MARK:
            yield "mark", at, at + 1


MARKS = TokenLabels(("mark",), mark_spans)


def test_a_label_that_one_latent_tells_is_told_by_it(model: LanguageModel, coder: SparseCoder) -> None:
    texts = sentences(300)
    report = probe_texts(coder, model, texts, [MARK in text for text in texts], SMALL, progress=False)
    (task,) = report.tasks
    assert task.label == "True"
    assert task.latents[0] == LATENT
    assert [each.k for each in task.sparse] == [1, 3]
    assert task.sparse[0].latents.value == task.sparse[0].latents.low == 1.0
    assert task.sparse[0].activations.value < task.activations.value < 1  # the penalty is strong for such small values
    assert report.sparse[0].latents.value == 1.0
    assert (task.n_train, task.n_test, task.converged) == (120, 60, True)


def test_wrong_labels_cost_as_much_as_there_are(model: LanguageModel, coder: SparseCoder) -> None:
    texts, draw = sentences(1500), random.Random(1)
    labels = [(MARK in text) != (draw.random() < 0.25) for text in texts]
    config = ProbingConfig(ks=(1,), n_train=600, n_test=290, context_size=24)
    accuracy = probe_texts(coder, model, texts, labels, config, progress=False).tasks[0].sparse[0].latents
    assert accuracy.low < 0.75 < accuracy.high
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 290), rel=0.25)


def test_labels_that_mean_nothing_are_told_by_chance(model: LanguageModel, coder: SparseCoder) -> None:
    texts, draw = sentences(1000), random.Random(2)
    labels = [draw.random() < 0.5 for _ in texts]
    config = ProbingConfig(ks=(1,), n_train=600, n_test=180, context_size=24)
    report = probe_texts(coder, model, texts, labels, config, progress=False)
    for accuracy in (report.tasks[0].sparse[0].latents, report.tasks[0].activations):
        assert abs(accuracy.value - 0.5) < 0.12


def test_of_three_labels_each_is_told_from_the_others(model: LanguageModel, coder: SparseCoder) -> None:
    texts = sentences(300, share=1 / 3)
    labels = ["mark" if MARK in text else ("even", "odd")[len(text) % 2] for text in texts]
    report = probe_texts(coder, model, texts, labels, SMALL, progress=False)
    assert [task.label for task in report.tasks] == ["even", "mark", "odd"]
    assert report.tasks[1].sparse[0].latents.value == 1.0
    mean = sum(task.activations.value for task in report.tasks) / 3
    assert report.activations.value == pytest.approx(mean)


def test_tokens_are_read_where_they_stand(model: LanguageModel, coder: SparseCoder) -> None:
    documents = ["".join(sentences(40)[at::10]) for at in range(10)]
    report = probe_tokens(coder, model, documents, SMALL, labels=MARKS, progress=False)
    (task,) = report.tasks
    assert (report.unit, task.label, task.latents[0]) == ("token", "mark", LATENT)
    assert task.sparse[0].latents.value == 1.0
    assert task.activations.value == 1.0
    assert "held-out texts" in report.notes[-1]
    assert probe_tokens(coder, model, documents, SMALL, labels=MARKS, progress=False) == report


def test_python_is_the_default(model: LanguageModel, coder: SparseCoder) -> None:
    documents = [f'"""Module {i}."""\nvalue_{i} = {i} + 2  # two\nprint(value_{i})\n' for i in range(12)]
    report = probe_tokens(coder, model, documents, SMALL, progress=False)
    labels = [task.label for task in report.tasks]
    assert {"docstring", "comment", "call", "operator"} <= set(labels)
    assert any("class_name is left out: 0 and" in note for note in report.notes)


def test_copies_of_a_text_or_document_are_on_one_side(model: LanguageModel, coder: SparseCoder) -> None:
    texts = sentences(30)
    labels = [random.Random(text).random() < 0.5 for text in texts]  # nothing to be told but by heart
    config = ProbingConfig(ks=(1,), n_train=400, n_test=100, context_size=24, min_examples=5)
    report = probe_texts(coder, model, texts * 20, labels * 20, config, progress=False)
    assert report.activations.value < 0.9
    with pytest.raises(DataError, match="at least two texts"):
        probe_tokens(coder, model, ["a!" * 100] * 3, SMALL, labels=MARKS, progress=False)
    with pytest.raises(DataError, match="a single string"):
        probe_tokens(coder, model, "a!" * 100, SMALL, labels=MARKS, progress=False)


def test_only_so_many_tokens_are_labelled(model: LanguageModel, coder: SparseCoder) -> None:
    def documents() -> Iterator[str]:
        yield from (f"!{letter}" * 50 for letter in "abcd")
        raise AssertionError("a document too many was read")

    config = ProbingConfig(ks=(1,), n_train=80, n_test=20, context_size=24, min_examples=5, n_tokens=350)
    report = probe_tokens(coder, model, documents(), config, labels=MARKS, progress=False)
    assert report.tasks[0].n_train == 80


def test_the_report_is_json_and_text(model: LanguageModel, coder: SparseCoder) -> None:
    texts = sentences(300)
    report = probe_texts(coder, model, texts, [MARK in text for text in texts], SMALL, progress=False)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["sparse"][0]["latents"] == {"value": 1.0, "low": None, "high": None}, "one task"
    assert plain["tasks"][0]["sparse"][0]["latents"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert "there are no intervals over tasks, of which there is one" in report.notes
    assert plain["config"]["ks"] == [1, 3]
    assert "12 latents at hook_embed of bytes" in str(report)
    assert "1.0000 [1.0000, 1.0000]" in str(report)


def test_bad_input_is_refused(model: LanguageModel, coder: SparseCoder) -> None:
    texts = sentences(300)
    labels = [MARK in text for text in texts]

    def probe(
        coder: SparseCoder = coder,
        model: LanguageModel = model,
        texts: list[str] = texts,
        labels: list[bool] = labels,
        config: ProbingConfig = SMALL,
    ) -> ProbingReport:
        return probe_texts(coder, model, texts, labels, config, progress=False)

    with pytest.raises(DataError, match="got 300 texts and 299 labels"):
        probe(labels=labels[1:])
    with pytest.raises(DataError, match="at least two labels, got 1 in 300"):
        probe(labels=[True] * 300)
    with pytest.raises(DataError, match="at least two labels, got 0 in 0"):
        probe(texts=[], labels=[])
    with pytest.raises(DataError, match="no label has enough examples"):
        probe(texts=texts[148:152], labels=labels[148:152])
    with pytest.raises(DataError, match="no token that is not special"):
        probe(texts=["\0" * at if has else text for at, (text, has) in enumerate(zip(texts, labels, strict=True))])
    with pytest.raises(ConfigError, match="k=13 is more than the 12 latents"):
        probe(config=ProbingConfig(ks=(1, 13)))
    with pytest.raises(ConfigError, match="has no tokenizer"):
        probe(model=LanguageModel(model.hf, None, name="mute"))
    wide = SAE(WIDTH + 1, 12, activation=ReLU())
    wide.bind("hook_embed", "hook_embed", {})
    with pytest.raises(ShapeError, match="d_in is 33"):
        probe(wide)
    unbound = SAE(WIDTH, 12, activation=ReLU())
    with pytest.raises(ConfigError, match="does not say which site"):
        probe(unbound)
    unbound.bind("hook_embedding", "hook_embedding", {})
    with pytest.raises(UnknownNameError, match="hook_embed"):
        probe(unbound)
    with torch.no_grad():
        coder.W_enc_rows[3, 3] = math.nan
    with pytest.raises(DataError, match="W_enc_rows must be finite"):
        probe()


def test_documents_without_tokens_and_slow_tokenizers_are_refused(model: LanguageModel, coder: SparseCoder) -> None:
    with pytest.raises(DataError, match="no token to probe"):
        probe_tokens(coder, model, ["", ""], SMALL, labels=MARKS, progress=False)
    with pytest.raises(DataError, match="is not Python source"):
        probe_tokens(coder, model, ["def def"], SMALL, progress=False)
    with pytest.raises(DataError, match="at least two texts"):
        probe_tokens(coder, model, ["a!" * 100], SMALL, labels=MARKS, progress=False)
    words = SimpleNamespace(
        **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id")),
        bos_token_id=0,
        eos_token_id=0,
        all_special_ids=[0],
        is_fast=False,
    )
    with pytest.raises(ConfigError, match="fast tokenizer"):
        probe_tokens(coder, LanguageModel(model.hf, words, name="slow"), ["a!"], SMALL, labels=MARKS, progress=False)
