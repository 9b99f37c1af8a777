"""JumpReLU: hand-computed values and threshold gradients."""

import pytest
import torch

from monosema.coders import SAE, JumpReLU, LatentGradients, SparseCoder
from monosema.core.errors import ConfigError


def one_latent(threshold: float, bandwidth: float) -> SparseCoder:
    """A coder whose only pre-activation is its input."""
    config = JumpReLU(init_threshold=threshold, bandwidth=bandwidth, ste_to_input=False)
    coder = SAE(1, 1, activation=config, b_dec="none", dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.fill_(1.0)
        coder.W_dec.fill_(1.0)
    return coder


def test_forward_of_a_hand_computed_case() -> None:
    # SAELens tests/saes/test_jumprelu_sae.py: every pre-activation is 0.3 + 0.3
    coder = SAE(2, 3, activation=JumpReLU(), dtype="float64")
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.fill_(1.0 if name.startswith("W_") else 0.0)
        coder.activation.threshold.copy_(torch.tensor([1.0, 0.5, 0.25]))
    x = torch.full((1, 2), 0.3, dtype=torch.float64)
    assert coder.pre_activations(x).tolist() == [[0.6, 0.6, 0.6]]
    assert coder.encode(x).tolist() == [[0.0, 0.6, 0.6]]
    assert coder(x).tolist() == [[1.2, 1.2]]


def test_l0_gradient_counts_the_whole_window() -> None:
    # 1024 pre-activations per unit, θ = 1/2, ε = 1/4: 256 fall into the window, so ∂L0/∂θ = -256 / ε = -1024 exactly,
    # the density. A window on post-jump values sees the upper half only (dictionary_learning issue 55: -512).
    coder = one_latent(threshold=0.5, bandwidth=0.25)
    x = ((torch.arange(1024, dtype=torch.float64) + 0.5) / 1024).unsqueeze(1)
    encoding = coder.encode_select(x)
    near = encoding.selection.near
    assert near is not None
    assert near.nnz == 256
    assert encoding.latents.nnz == 512
    gradients = coder.backward(
        encoding, torch.zeros_like(x), LatentGradients(near_step=torch.ones(256, dtype=torch.float64))
    )
    assert gradients["activation.threshold"].tolist() == [-1024.0]
    assert not gradients["W_enc_rows"].any()  # the step passes nothing to the pre-activations


def test_output_gradient_reaches_the_threshold_with_its_own_size() -> None:
    # four pre-activations in the window, two of them inactive: ∂/∂θ Σ f = -(θ/ε) · 4 = -(0.5/0.25) · 4
    coder = one_latent(threshold=0.5, bandwidth=0.25)
    x = torch.tensor([[0.1], [0.4], [0.45], [0.55], [0.6], [0.9]], dtype=torch.float64)
    gradients = coder.backward(coder.encode_select(x), torch.ones_like(x))
    assert gradients["activation.threshold"].tolist() == [-8.0]
    assert gradients["b_enc"].tolist() == [3.0]  # active ones: 0.55, 0.6, 0.9


def test_the_window_is_open_at_both_ends_and_the_threshold_itself_is_inactive() -> None:
    coder = one_latent(threshold=0.5, bandwidth=0.25)
    x = torch.tensor([[0.375], [0.5], [0.625]], dtype=torch.float64)
    encoding = coder.encode_select(x)
    assert encoding.selection.near is not None
    assert encoding.selection.near.rows().tolist() == [1]
    assert encoding.latents.rows().tolist() == [2]


def test_thresholds_are_kept_from_going_negative() -> None:
    coder = one_latent(threshold=0.5, bandwidth=0.25)
    with torch.no_grad():
        coder.activation.threshold.fill_(-0.3)
    coder.activation.project_()
    assert coder.activation.threshold.tolist() == [0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be positive, got 0.0"),
        ({"init_threshold": -0.1}, "must not be negative, got -0.1"),
    ],
)
def test_refused_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JumpReLU(**options)


def test_a_whole_number_is_a_starting_threshold() -> None:
    assert JumpReLU(init_threshold=1).build(2).threshold.tolist() == [1.0, 1.0]
