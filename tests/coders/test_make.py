"""``SAE`` and ``Transcoder``, and the checks of ``CoderConfig``."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from monosema.coders import SAE, BatchTopK, CoderConfig, Crosscoder, Gated, JumpReLU, ReLU, TopK, Transcoder
from monosema.core.config import from_plain, from_yaml, to_plain, to_yaml
from monosema.core.errors import ConfigError


def test_widths() -> None:
    assert SAE(6, 20).config == CoderConfig(d_in=6, d_sae=20, d_out=6, activation=BatchTopK(k=20))
    assert SAE(6, expansion_factor=8).d_sae == 48
    assert SAE(6, expansion_factor=2.5).d_sae == 15
    assert SAE(64, 128).config.activation == BatchTopK(k=32)
    made = Transcoder(6, 5, 20, skip=True)
    assert (made.d_in, made.d_out, made.d_sae) == (6, 5, 20)
    assert made.config.b_dec == "output"
    assert made.W_skip is not None
    assert made.W_skip.shape == (6, 5)
    assert Transcoder(6, 5, expansion_factor=2).W_skip is None


MAKERS = {
    "sae": lambda **options: SAE(4, 8, activation=ReLU(), **options),
    "crosscoder": lambda **options: Crosscoder([2, 2], 8, activation=ReLU(), **options),
    "transcoder": lambda **options: Transcoder(4, 4, 8, activation=ReLU(), **options),
    "skip transcoder": lambda **options: Transcoder(4, 4, 8, activation=ReLU(), skip=True, **options),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("encoder_init", ["auto", "transpose", "independent"])
def test_the_encoder_starts_as_the_decoder_where_input_is_output_unless_told(name: str, encoder_init: Any) -> None:
    coder = MAKERS[name](encoder_init=encoder_init, decoder_init_norm=0.3).requires_grad_(False)
    cosine = cosine_similarity(coder.W_enc_rows, coder.W_dec, dim=1)
    transposed = bool((cosine > 1 - 1e-5).all())
    assert transposed == (encoder_init == "transpose" or (encoder_init == "auto" and name in ("sae", "crosscoder")))
    assert float(cosine.abs().mean()) < 0.8 or transposed
    for rows, norm in ((coder.W_enc_rows, 1.0), (coder.W_dec, 0.3)):
        torch.testing.assert_close(rows.norm(dim=1), torch.full((8,), norm))
    zeros = MAKERS[name](decoder_init="zeros").requires_grad_(False)
    assert float(zeros.W_dec.abs().sum()) == 0
    assert float(zeros.W_enc_rows.abs().sum()) > 0


def test_an_encoder_cannot_start_as_a_decoder_of_another_width_or_of_zeros() -> None:
    with pytest.raises(ConfigError, match="encoder_init='transpose' needs d_in == d_out, got 4 and 5"):
        Transcoder(4, 5, 8, activation=ReLU(), encoder_init="transpose")
    with pytest.raises(ConfigError, match="use encoder_init='independent'"):
        Transcoder(4, 4, 8, activation=ReLU(), encoder_init="transpose", decoder_init="zeros")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give d_sae"),
        ({"d_sae": 8, "expansion_factor": 2.0}, "not both"),
        ({"expansion_factor": -1.0}, "expansion_factor must be positive, got -1.0"),
        ({"expansion_factor": 0.01}, "d_sae must be at least 1, got 0"),
        ({"d_sae": 0}, "d_sae must be at least 1"),
        ({"d_sae": 8, "activation": TopK(k=9)}, "k=9 exceeds d_sae=8"),
        ({"d_sae": 8, "activation": BatchTopK(k=8.5)}, "k=8.5 exceeds d_sae=8"),
        ({"d_sae": 8, "dtype": "float31"}, "did you mean 'float32'"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAE(4, **options)


def test_subtracting_b_dec_needs_equal_widths() -> None:
    with pytest.raises(ConfigError, match="needs d_in == d_out, got 4 and 5; use b_dec='output'"):
        CoderConfig(d_in=4, d_sae=8, d_out=5, activation=ReLU())


@pytest.mark.parametrize(
    "activation", [ReLU(), TopK(k=3), BatchTopK(k=2.5, threshold_rate=0.1), JumpReLU(bandwidth=1e-3), Gated()]
)
def test_every_activation_survives_plain_values_and_yaml(activation: Any) -> None:
    config = CoderConfig(d_in=4, d_sae=8, d_out=4, activation=activation, b_dec="none", skip=True, seed=3)
    assert to_plain(config)["activation"]["kind"] == type(activation).__name__
    assert from_plain(CoderConfig, to_plain(config)) == config
    assert from_yaml(CoderConfig, to_yaml(config)) == config
