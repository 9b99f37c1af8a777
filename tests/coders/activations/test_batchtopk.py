"""BatchTopK: selection of hand-written batches and the running mean of its threshold."""

import math

import pytest
import torch
from torch import Tensor

from monosema.coders import SAE, BatchTopK, JumpReLU, SparseCoder
from monosema.coders.activations.base import Selection
from monosema.coders.activations.batchtopk import BatchTopKActivation
from monosema.core.errors import ConfigError

GO, SKIPPED = torch.tensor(True), torch.tensor(False)


def activation(k: float = 2.0, rate: float = 0.25, d_sae: int = 4) -> BatchTopKActivation:
    return BatchTopKActivation(BatchTopK(k=k, threshold_rate=rate, weight_by_decoder_norm=False), d_sae)


def batch(least: float) -> Tensor:
    """[2, 4] pre-activations of which the four largest end at ``least``."""
    return torch.tensor([[least, least + 1, -1.0, 0.0], [least + 2, least / 2, least + 3, -5.0]], dtype=torch.float64)


def identity_coder(k: float, d: int = 4) -> SparseCoder:
    """A coder whose pre-activations are its input."""
    coder = SAE(d, d, activation=BatchTopK(k=k), b_dec="none", dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.eye(d))
        coder.W_dec.copy_(torch.eye(d))
    return coder


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1.0, [[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]),
        (1.5, [[3.0, 5.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]),
        (2.0, [[3.0, 5.0, 0.0, 0.0], [0.0, 2.0, 4.0, 0.0]]),
        (3.0, [[3.0, 5.0, 1.0, 0.0], [0.0, 2.0, 4.0, 0.0]]),  # only five are positive
    ],
)
def test_budget_is_shared_by_the_batch(k: float, expected: list[list[float]]) -> None:
    pre = torch.tensor([[3.0, 5.0, 1.0, -1.0], [-2.0, 2.0, 4.0, 0.0]])
    assert activation(k).select(pre).latents.to_dense().tolist() == expected


def test_a_fractional_k_that_rounds_to_nothing_selects_nothing() -> None:
    chosen = activation(k=0.3)
    chosen.select(torch.full((4, 4), 2.0))  # leaves a guess behind
    selection = chosen.select(torch.full((1, 4), 7.0))
    assert selection.latents.nnz == 0
    assert selection.least is not None
    assert float(selection.least) == 0.0


def test_threshold_is_the_bias_corrected_running_mean() -> None:
    # m: 1/4, 3/4·1/4 + 1/2 = 11/16, 3/4·11/16 + 1 = 97/64; weights 1/4, 7/16, 37/64
    tracked = activation()
    assert tracked.threshold is None
    found = []
    for least, ok in ((1.0, GO), (2.0, GO), (50.0, SKIPPED), (4.0, GO)):
        selection = tracked.select(batch(least))
        assert float(selection.least) == least
        tracked.update_(selection, ok)
        found.append(tracked.threshold)
    assert found == pytest.approx([1.0, 11 / 7, 11 / 7, 97 / 37], rel=1e-15)


def test_the_rate_is_not_rounded_to_single_precision() -> None:
    tracked = activation(rate=0.01)
    tracked.update_(tracked.select(batch(1.0)), GO)
    assert float(tracked.running.weight) == 0.01


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_skipped_step_changes_nothing_whatever_it_held(broken: float) -> None:
    tracked = activation()
    tracked.update_(tracked.select(batch(3.0)), GO)
    before = {name: value.clone() for name, value in tracked.state_dict().items()}
    selection = tracked.select(batch(2.0))
    tracked.update_(Selection(selection.latents, least=torch.tensor(broken)), SKIPPED)
    assert all(torch.equal(before[name], value) for name, value in tracked.state_dict().items())


def test_threshold_before_the_first_step_that_was_not_skipped_is_none() -> None:
    tracked = activation()
    tracked.update_(tracked.select(batch(3.0)), SKIPPED)
    assert tracked.threshold is None


def test_inference_is_jumprelu_with_a_constant_threshold() -> None:
    pre = torch.tensor([[0.5, 1.5, 1.0, -2.0], [1.01, 0.99, 3.0, 0.0]], dtype=torch.float64)
    trained = activation()
    trained.set_threshold(1.0)
    jump = JumpReLU(init_threshold=1.0).build(4).double()
    assert torch.equal(trained.infer(pre).to_dense(), jump.infer(pre).to_dense())
    assert torch.equal(trained.infer_dense(pre), jump.infer_dense(pre))
    assert trained.infer(pre).to_dense().tolist() == [[0.0, 1.5, 0.0, 0.0], [1.01, 0.0, 3.0, 0.0]]


def test_inference_does_not_depend_on_the_rest_of_the_batch() -> None:
    coder = identity_coder(k=1)
    coder.activation.set_threshold(0.5)
    x = torch.tensor([[0.6, 0.7, 0.8, 0.9], [5.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    assert torch.equal(coder.encode(x)[:1], coder.encode(x[:1]))
    assert coder.encode_sparse(x).nnz == 8


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="must be finite and not negative"):
        activation().set_threshold(threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_mean_stays_in_double_precision_in_a_coder_of_any_dtype(dtype: torch.dtype) -> None:
    coder = SAE(4, 8, activation=BatchTopK(k=2, threshold_rate=0.01, weight_by_decoder_norm=False)).to(dtype)
    tracked = coder.activation
    last = tracked.select(batch(1.0)).latents
    for _ in range(1000):  # in bfloat16, 1 - 0.01 rounds so that the mean would never arrive
        tracked.update_(Selection(last, least=torch.tensor(2.5, dtype=dtype)), GO)
    assert tracked.threshold == pytest.approx(2.5, rel=1e-12)
    assert tracked.running.total.dtype == torch.float64
    assert float(tracked.running.weight) == pytest.approx(1 - 0.99**1000, rel=1e-12)


def test_threshold_survives_saving_bit_for_bit() -> None:
    coder, other = identity_coder(k=2), identity_coder(k=2)
    coder.activation.set_threshold(1 / 3)
    other.load_state_dict(coder.state_dict())
    assert other.activation.threshold == 1 / 3


def test_the_last_batch_never_changes_a_result() -> None:
    fresh, used = activation(), activation()
    for least in (1e-6, 1e6, 3.0, -1.0, math.inf):
        used.select(batch(least))
        expected, got = fresh.select(batch(0.5)), used.select(batch(0.5))
        fresh = activation()
        assert torch.equal(got.latents.to_dense(), expected.latents.to_dense())
        assert torch.equal(got.least, expected.least)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0.0}, "k must be positive"),
        ({"k": 1.0, "threshold_rate": 0.0}, "threshold_rate must be in"),
        ({"k": 1.0, "threshold_rate": 1.5}, "threshold_rate must be in"),
    ],
)
def test_refused_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchTopK(**options)
