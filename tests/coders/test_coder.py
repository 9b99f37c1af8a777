"""``SparseCoder``: equivalent forms, dtypes, seeds, state."""

import copy
import math

import pytest
import torch
from coder_cases import ACTIVATIONS, CODERS, D_IN, D_SAE, make, randn

from monosema.coders import SAE, ReLU, SparseCoder, TopK, Transcoder
from monosema.core.errors import ConfigError

all_activations = pytest.mark.parametrize("activation", ACTIVATIONS)
all_coders = pytest.mark.parametrize("coder", CODERS)


def state_of(coder: SparseCoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in coder.state_dict().items()}


def assert_state(coder: SparseCoder, expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name, value in coder.state_dict().items():
        torch.testing.assert_close(value, expected[name], **(tolerance or {"rtol": 0.0, "atol": 0.0}))


class TestFoldingDecoderNorms:
    @pytest.mark.parametrize("activation", [name for name, case in ACTIVATIONS.items() if case.scale_free])
    @all_coders
    def test_function_is_unchanged_and_rows_are_unit(self, activation: str, coder: str) -> None:
        made = make(activation, coder)
        x = randn(17, made.d_in, seed=3)
        y, acts, before = made(x), made.encode(x), state_of(made)
        norms = made.fold_W_dec_norm()
        torch.testing.assert_close(norms, before["W_dec"].norm(dim=1), rtol=1e-14, atol=0)
        assert norms.max() > 1.1 * norms.min()  # the case is not trivial
        torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(D_SAE).double(), rtol=1e-12, atol=0)
        torch.testing.assert_close(made(x), y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made.encode(x), acts * norms, rtol=1e-12, atol=1e-12)
        made.unfold_W_dec_norm(norms)
        assert_state(made, before, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(made(x), y, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        "activation", [name for name, case in ACTIVATIONS.items() if not case.scale_free and name != "tanhrelu"]
    )
    def test_unequal_norms_are_refused_where_they_decide_the_selection(self, activation: str) -> None:
        made = make(activation, "sae")
        before = state_of(made)
        with pytest.raises(ConfigError, match="folding unequal decoder norms would change which latents"):
            made.fold_W_dec_norm()
        assert_state(made, before)

    @pytest.mark.parametrize(
        "activation", [name for name, case in ACTIVATIONS.items() if not case.scale_free and name != "tanhrelu"]
    )
    def test_equal_norms_are_folded(self, activation: str) -> None:
        made = make(activation, "sae")
        with torch.no_grad():
            made.W_dec.copy_(2.5 * made.W_dec / made.W_dec.norm(dim=1, keepdim=True))
        x = randn(17, made.d_in, seed=3)
        y, acts = made(x), made.encode(x)
        norms = made.fold_W_dec_norm()
        torch.testing.assert_close(made(x), y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made.encode(x), 2.5 * acts, rtol=1e-12, atol=1e-12)
        made.unfold_W_dec_norm(norms)
        torch.testing.assert_close(made(x), y, rtol=1e-12, atol=1e-12)

    def test_tanh_relu_saturates_and_refuses(self) -> None:
        made = make("tanhrelu", "sae")
        with pytest.raises(ConfigError, match="saturates at 1"):
            made.fold_W_dec_norm()

    def test_a_zero_row_stays_harmless(self) -> None:
        made = make("relu", "sae")
        with torch.no_grad():
            made.W_dec[3] = 0
        x = randn(17, made.d_in, seed=3)
        y = made(x)
        made.fold_W_dec_norm()
        torch.testing.assert_close(made(x), y, rtol=1e-12, atol=1e-12)


class TestFoldingInputScaling:
    @all_activations
    @all_coders
    def test_folded_coder_of_raw_activations_is_the_scaled_one(self, activation: str, coder: str) -> None:
        made = make(activation, coder)
        s_in = 3.7
        s_out = s_in if made.config.b_dec == "input_and_output" else 0.6
        x = randn(17, made.d_in, seed=3)
        expected, acts, before = made(s_in * x) / s_out, made.encode(s_in * x), state_of(made)
        made.fold_input_scaling(s_in, s_out)
        torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made.encode(x), acts, rtol=1e-12, atol=1e-12)
        made.fold_input_scaling(1 / s_in, 1 / s_out)
        assert_state(made, before, rtol=1e-14, atol=1e-15)

    def test_unequal_scalings_are_refused_with_b_dec_at_the_input(self) -> None:
        made = make("relu", "sae")
        before = state_of(made)
        with pytest.raises(ConfigError, match="needs equal input and output scaling"):
            made.fold_input_scaling(2.0, 3.0)
        assert_state(made, before)

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    def test_impossible_scalings_are_refused(self, bad: float) -> None:
        made = make("relu", "sae_output_bias")
        before = state_of(made)
        for scales in ((bad, 1.0), (1.0, bad)):
            with pytest.raises(ConfigError, match="positive and finite"):
                made.fold_input_scaling(*scales)
        assert_state(made, before)


class TestDtypes:
    @all_activations
    def test_config_follows_the_parameters(self, activation: str) -> None:
        made = make(activation, "sae", dtype="float32")
        for dtype in ("float64", "bfloat16", "float16", "float32"):
            moved = made.to(getattr(torch, dtype))
            assert moved is made
            assert made.config.dtype == dtype
            assert all(p.dtype == getattr(torch, dtype) for p in made.parameters())
        assert made.double().config.dtype == "float64"

    @all_activations
    def test_double_and_back_keeps_the_bits(self, activation: str) -> None:
        made = make(activation, "sae", dtype="float32")
        before = state_of(made)
        made.double().float()
        assert_state(made, before)


class TestConstruction:
    @all_activations
    @all_coders
    def test_same_seed_same_weights_and_another_seed_others(self, activation: str, coder: str) -> None:
        config = ACTIVATIONS[activation].config()
        one, two = (CODERS[coder](config, "float32", D_SAE) for _ in range(2))
        assert_state(one, state_of(two))

    def test_seed_decides(self) -> None:
        weights = [SAE(4, 8, seed=seed).W_dec for seed in (0, 0, 1)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        double = SAE(4, 8, seed=0, dtype="float64").W_dec
        assert torch.equal(double.float(), weights[0])

    def test_torch_defaults_do_not_matter(self) -> None:
        expected = SAE(4, 8, activation=ReLU()).W_dec.detach()
        torch.set_default_dtype(torch.float64)
        try:
            made = SAE(4, 8, activation=ReLU())
        finally:
            torch.set_default_dtype(torch.float32)
        assert made.dtype == torch.float32
        assert torch.equal(made.W_dec, expected)

    def test_an_sae_starts_tied_and_a_transcoder_does_not(self) -> None:
        sae, transcoder = SAE(4, 8), Transcoder(4, 4, 8)
        torch.testing.assert_close(0.1 * sae.W_enc, sae.W_dec.T)
        assert sae.W_enc_rows.data_ptr() != sae.W_dec.data_ptr()
        assert sae.W_dec.norm(dim=1).tolist() == pytest.approx([0.1] * 8)
        rectangular = Transcoder(4, 3, 8)
        assert rectangular.W_enc.shape == (4, 8)
        assert rectangular.W_dec.shape == (8, 3)
        assert rectangular.W_enc_rows.norm(dim=1).tolist() == pytest.approx([1.0] * 8)
        assert transcoder.b_dec is not None
        assert not transcoder.b_dec.any()

    @all_coders
    def test_drawing_weights_and_encoding_leave_the_global_generator_alone(self, coder: str) -> None:
        before = torch.get_rng_state()
        made = make("batchtopk", coder)
        made(randn(3, D_IN, seed=0))
        made.encode_select(randn(3, D_IN, seed=0))
        assert torch.equal(torch.get_rng_state(), before)


class TestState:
    @all_activations
    @all_coders
    def test_state_dict_and_deepcopy_carry_the_whole_function(self, activation: str, coder: str) -> None:
        made = make(activation, coder)
        x = randn(9, D_IN, seed=5)
        other = CODERS[coder](ACTIVATIONS[activation].config(), "float64", D_SAE)
        other.load_state_dict(made.state_dict())
        copied = copy.deepcopy(made)
        assert torch.equal(other(x), made(x))
        assert torch.equal(copied(x), made(x))
        with torch.no_grad():
            copied.W_dec.zero_()
        assert bool(made.W_dec.any())

    def test_bind_records_sites_and_provenance(self) -> None:
        made = SAE(4, 8, activation=TopK(k=2))
        assert made.hook_name is None
        assert made.hook_name_out is None
        made.bind("blocks.0.hook_in", "blocks.0.hook_out", {"model": "tiny"})
        assert made.hook_name == "blocks.0.hook_in"
        assert made.hook_name_out == "blocks.0.hook_out"
        assert made.metadata == {"model": "tiny"}
        assert made.config.activation == TopK(k=2)
        assert "blocks.0.hook_in -> blocks.0.hook_out" in repr(made)

    def test_w_enc_is_a_view_of_latent_major_storage(self) -> None:
        made = SAE(4, 8)
        with torch.no_grad():
            made.W_enc[1, 5] = 42.0
        assert made.W_enc_rows[5, 1].item() == 42.0
        assert made.W_enc_rows.is_contiguous()
