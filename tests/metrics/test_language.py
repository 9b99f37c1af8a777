"""Cross-entropy, KL and the scores made of them."""

from __future__ import annotations

import math

import pytest
import torch

from monosema.core.errors import ShapeError
from monosema.metrics import (
    ce_loss_score,
    kl_score,
    log_probs,
    negative_entropy,
    token_cross_entropy,
    token_kl,
    token_kl_from,
    top_token,
)


def _log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def _logits(n: int = 50, vocabulary: int = 150, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_by_hand():
    log_p = torch.cat([_log(0.5, 0.25, 0.25), _log(0.1, 0.1, 0.8)])
    expected = [-math.log(0.25), -math.log(0.8)]
    assert token_cross_entropy(log_p, torch.tensor([1, 2])).tolist() == pytest.approx(expected, rel=1e-15)


def test_cross_entropy_is_that_of_torch():
    logits, targets = _logits(), torch.arange(50)
    ours = token_cross_entropy(log_probs(logits), targets).mean().item()
    assert ours == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), targets).item(), rel=1e-6)


def test_a_uniform_prediction_costs_the_log_of_the_vocabulary():
    assert token_cross_entropy(log_probs(torch.zeros(1, 512)), torch.tensor([3])).item() == pytest.approx(math.log(512))


def test_kl_by_hand():
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert token_kl(_log(0.5, 0.25, 0.25), _log(0.25, 0.5, 0.25)).item() == pytest.approx(expected, rel=1e-15)


def test_kl_is_directed():
    p, q = _log(0.9, 0.1), _log(0.5, 0.5)
    assert token_kl(p, q).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert token_kl(q, p).item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))


@pytest.mark.parametrize("vocabulary", [3, 64, 150, 1000])
def test_kl_in_float32_is_that_of_torch_in_float64(vocabulary: int):
    p, q = _logits(vocabulary=vocabulary), _logits(vocabulary=vocabulary, seed=1)
    wide_p, wide_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    expected = torch.nn.functional.kl_div(wide_q, wide_p, log_target=True, reduction="none").sum(-1)
    assert token_kl(log_probs(p), log_probs(q)).tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


def test_kl_of_a_run_with_itself_is_exactly_zero():
    log_p = log_probs(_logits())
    assert token_kl(log_p, log_p.clone()).tolist() == [0.0] * 50


def test_entries_without_probability_contribute_nothing():
    p = log_probs(torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]]))
    q = log_probs(torch.tensor([[0.0, 1.0, -math.inf], [0.0, 0.0, -math.inf]]))
    divergence = token_kl(p, q)
    expected = 0.5 * math.log(0.5 / (1 / (1 + math.e))) + 0.5 * math.log(0.5 / (math.e / (1 + math.e)))
    assert divergence[0].item() == pytest.approx(expected, rel=1e-6)
    assert divergence[1].item() == math.inf


@pytest.mark.parametrize("size", [1, 7, 49])
def test_each_token_is_independent_of_its_batch(size: int):
    p, q, targets = _logits(), _logits(seed=1), torch.arange(50)
    log_p, log_q = log_probs(p), log_probs(q)
    loss, divergence = token_cross_entropy(log_p, targets), token_kl(log_p, log_q)
    for start in range(0, 50, size):
        part = slice(start, start + size)
        assert torch.equal(token_cross_entropy(log_probs(p[part]), targets[part]), loss[part])
        assert torch.equal(token_kl(log_probs(p[part]), log_probs(q[part])), divergence[part])


def test_negative_entropy_by_hand():
    log_p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64).log()
    assert negative_entropy(log_p, log_p.exp()).item() == pytest.approx(-1.5 * math.log(2), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_from_probabilities_is_the_plain_one(dtype: torch.dtype):
    log_p, log_q = log_probs(_logits(vocabulary=1000).to(dtype)), log_probs(_logits(vocabulary=1000, seed=1).to(dtype))
    p = log_p.exp()
    found = token_kl_from(p, negative_entropy(log_p, p), log_q)
    tolerance = 3e-6 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(found, token_kl(log_p, log_q), rtol=0, atol=tolerance)
    assert token_kl_from(p, negative_entropy(log_p, p), log_p).abs().max() == 0


def test_kl_from_probabilities_where_neither_gives_a_token_any():
    log_p = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]]).log_softmax(-1)
    log_q = torch.tensor([[0.0, 1.0, -math.inf], [-math.inf, 0.0, 0.0]]).log_softmax(-1)
    p = log_p.exp()
    found = token_kl_from(p, negative_entropy(log_p, p), log_q)
    assert found[0].item() == pytest.approx(token_kl(log_p, log_q)[0].item(), abs=1e-6)
    assert found[1] == math.inf


def test_low_precision_logits_are_widened():
    assert log_probs(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert log_probs(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_scores_by_hand():
    assert ce_loss_score(3.0, 3.5, 13.0) == pytest.approx(0.95)
    assert ce_loss_score(3.0, 3.0, 13.0) == 1.0
    assert ce_loss_score(3.0, 13.0, 13.0) == 0.0
    assert ce_loss_score(3.0, 23.0, 13.0) == -1.0
    assert kl_score(0.5, 10.0) == pytest.approx(0.95)
    assert kl_score(0.0, 10.0) == 1.0


def test_scores_are_undefined_where_ablation_changes_nothing():
    assert math.isnan(ce_loss_score(3.0, 3.5, 3.0))
    assert math.isnan(kl_score(0.5, 0.0))


def test_shapes_must_agree():
    with pytest.raises(ShapeError, match=r"log_p \[2, 3\] and targets \[3\]"):
        token_cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match="one shape"):
        token_kl(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 128, 150])
def test_the_top_token_is_that_of_argmax(vocabulary: int):
    logits = torch.cat([_logits(vocabulary=vocabulary), torch.full((1, vocabulary), -math.inf)])
    logits[-1, -1] = 0.0
    assert torch.equal(top_token(logits), logits.argmax(-1))
    assert torch.equal(top_token(logits[3]), logits[3].argmax(-1))
