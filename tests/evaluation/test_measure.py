"""``evaluate`` on activations alone: whatever holds the rows, the numbers are the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_tiny import BOS, SITE, WIDTH, constant_sae, identity_sae, random_sae, random_transcoder
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from monosema.coders import SAE, ReLU
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.data import ActivationStream, TokenSplit
from monosema.evaluation import Report, evaluate
from monosema.evaluation.evaluate import ablations_of
from monosema.metrics import fve
from monosema.models import LanguageModel

NUMBERS = ("fve", "mse", "cosine", "norm_ratio", "relative_reconstruction_bias", "l0", "l0_std", "l1", "dead_fraction")


def rows(n: int = 90, width: int = WIDTH) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5


def numbers(report: Report) -> list[float]:
    return [getattr(report, name) for name in NUMBERS]


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.reshape(9, 10, WIDTH),
        lambda x: list(x.split(7)),
        lambda x: iter(x.split([1, 80, 9])),
        lambda x: (part for part in x.split(90)),
        lambda x: x.numpy(),
        lambda x: [part.numpy() for part in x.split(40)],
        lambda x: DataLoader(TensorDataset(x), batch_size=32),
    ],
    ids=["contexts", "list", "iterator", "generator", "array", "arrays", "loader"],
)
def test_every_form_of_activations_gives_the_same_numbers(form: Any):
    whole = evaluate(random_sae(), activations=rows())
    report = evaluate(random_sae(), activations=form(rows()))
    assert numbers(report) == pytest.approx(numbers(whole), rel=1e-12)
    assert report.n_tokens == 90


@pytest.mark.parametrize("batch_size", [1, 13, 90])
def test_rows_in_a_step_do_not_matter(batch_size: int):
    whole = evaluate(random_sae(), activations=rows())
    report = evaluate(random_sae(), activations=rows(), batch_size=batch_size)
    assert numbers(report) == pytest.approx(numbers(whole), rel=1e-12)


def test_a_memory_mapped_file_is_read_in_parts(tmp_path: Path):
    np.save(tmp_path / "rows.npy", rows().float().numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    report = evaluate(random_sae(), activations=mapped, batch_size=20)
    assert numbers(report) == pytest.approx(numbers(evaluate(random_sae(), activations=rows().float())), rel=1e-6)


def test_known_coders():
    exact = evaluate(identity_sae(), activations=rows())
    assert (exact.fve, exact.l0, exact.cosine) == (1.0, WIDTH, pytest.approx(1.0))
    mean = evaluate(constant_sae(rows().mean(0)), activations=rows())
    assert mean.fve == pytest.approx(0.0, abs=1e-12)
    assert exact.ce_loss_score is None
    assert exact.split == "activations"
    assert any("need model and tokens" in note for note in exact.notes)


def test_at_most_n_tokens_rows_are_read():
    drawn = []

    def endless() -> Iterator[Tensor]:
        while True:
            drawn.append(1)
            yield rows()

    report = evaluate(random_sae(), activations=endless(), n_tokens=100)
    assert report.n_tokens == 100
    assert len(drawn) == 2
    assert numbers(evaluate(random_sae(), activations=rows(), n_tokens=40)) == pytest.approx(
        numbers(evaluate(random_sae(), activations=rows()[:40])), rel=1e-12
    )


def test_activations_and_model_give_the_same_numbers(decoder: LanguageModel, contexts: Tensor):
    captured = decoder.capture(contexts, [SITE])[SITE][contexts != BOS]
    with_model, without = evaluate(random_sae(), decoder, contexts), evaluate(random_sae(), activations=captured)
    assert numbers(with_model) == pytest.approx(numbers(without), rel=1e-12)


def test_a_transcoder_takes_both_sites_side_by_side():
    coder, both = random_transcoder(), rows(width=2 * WIDTH)
    with torch.no_grad():
        expected = fve(both[:, WIDTH:], coder(both[:, :WIDTH]))
    assert evaluate(coder, activations=both).fve == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ShapeError, match=r"\[rows, 32\] \(d_in \+ d_out.*got \[rows, 16\]"):
        evaluate(coder, activations=rows())


def test_a_stream_is_left_where_it_was(decoder: LanguageModel, contexts: Tensor):
    split = TokenSplit(contexts.repeat(4, 1).int(), frozenset({BOS}), "train")
    stream, twin = (ActivationStream(decoder, split, SITE, batch_size=16, seed=3) for _ in range(2))
    assert torch.equal(next(stream), next(twin))
    assert evaluate(random_sae(), activations=stream, n_tokens=48).n_tokens == 48
    assert evaluate(random_sae(), activations=stream, n_tokens=None).n_tokens > 48
    assert [part.sum().item() for part in stream] == [part.sum().item() for part in twin]


def test_input_that_cannot_be_evaluated_is_refused():
    with pytest.raises(ShapeError, match=r"needs activations \[rows, 16\] \(d_in\), got \[rows, 15\]"):
        evaluate(random_sae(), activations=rows()[:, 1:])
    with pytest.raises(ShapeError, match=r"got one of \[16\]"):
        evaluate(random_sae(), activations=[rows()[0]])
    with pytest.raises(DataError, match="at least 2 tokens"):
        evaluate(random_sae(), activations=[])
    with pytest.raises(DataError, match="at least 2 tokens"):
        evaluate(random_sae(), activations=rows()[:1])
    with pytest.raises(ConfigError, match="'zero', 'mean' or 'both', got 'median'"):
        ablations_of("median")
    with pytest.raises(ConfigError, match="n_batches must be at least 1"):
        evaluate(random_sae(), activations=rows(), n_batches=0)
    broken = rows()
    broken[70, 3] = math.nan
    with pytest.raises(DataError, match=rf"read at {SITE}, batch 3 .*\[10, 3\]"):
        evaluate(random_sae(), activations=broken, batch_size=20)


def test_a_coder_that_names_no_site_can_be_evaluated_on_activations():
    coder = SAE(WIDTH, 24, activation=ReLU(), dtype="float64")
    assert numbers(evaluate(coder, activations=rows())) == pytest.approx(
        numbers(evaluate(random_sae(), activations=rows())), rel=1e-12
    )
