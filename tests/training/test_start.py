"""Training that starts from a trained dictionary: its function stays, its size is that of scaled activations."""

from __future__ import annotations

import copy

import pytest
import torch
from training_tiny import ACTIVATIONS, BATCH, SPARSITY, D, batches

from monosema.coders import CLT, SAE, BatchTopK, Crosscoder, Dictionary, TopK, Transcoder
from monosema.core.errors import ConfigError
from monosema.training import FineTuning, Trainer, TrainingConfig

SMALL = 0.01


def trained(coder: Dictionary) -> Dictionary:
    """As if its weights were those of activations as small as ``rows``."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in coder.parts:
            own = part.coder
            own.W_dec.mul_(torch.rand(own.d_sae, 1, generator=generator) + 0.5)
            own.W_enc_rows.mul_(torch.rand(own.d_sae, 1, generator=generator) + 0.5)
            own.fold_input_scaling(1 / SMALL, 1 / SMALL)
            if hasattr(own.activation, "set_threshold"):
                own.activation.set_threshold(0.2)
    coder.is_trained = True
    return coder


def rows(n: int = 4, width: int = D) -> torch.Tensor:
    return SMALL * torch.cat(batches(n, width))


CODERS = {
    **{
        name: lambda a=activation: SAE(D, 24, activation=a, dtype="float64") for name, activation in ACTIVATIONS.items()
    },
    "unweighted": lambda: SAE(D, 24, activation=TopK(k=3, weight_by_decoder_norm=False), dtype="float64"),
    "unweighted batch": lambda: SAE(D, 24, activation=BatchTopK(k=3, weight_by_decoder_norm=False), dtype="float64"),
    "crosscoder": lambda: Crosscoder(
        [4, 4], 24, activation=BatchTopK(k=3, weight_by_decoder_norm=False), dtype="float64"
    ),
    "stack": lambda: CLT([4, 4], [4, 4], 24, activation=TopK(k=3, weight_by_decoder_norm=False), dtype="float64"),
}


@pytest.mark.parametrize("name", CODERS)
def test_a_trained_dictionary_keeps_its_function_and_takes_the_size_of_scaled_activations(name: str) -> None:
    coder = trained(CODERS[name]())
    before = copy.deepcopy(coder)
    config = TrainingConfig(tokens=BATCH, sparsity=SPARSITY.get(name), decoder="auto")
    trainer = Trainer(coder, config, BATCH)
    x = rows()
    trainer.initialise(torch.cat([x, x], 1) if name == "stack" else x)
    with torch.no_grad():
        torch.testing.assert_close(trainer.inference_coder()(x), before(x), rtol=1e-8, atol=1e-12)
    for part in trainer.coder.parts:
        norms = part.coder.W_dec.norm(dim=1)
        if name != "TanhReLU":  # it saturates at one: its rows are as long as what they write
            assert norms.mean().item() == pytest.approx(1, rel=1e-9)
        if name in ("ReLU", "JumpReLU", "Gated", "TopK", "BatchTopK", "AbsTopK"):
            torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("weights", ["scale", "decoder", "unrotated_decoder", "all"])
def test_fine_tuning_alone_trains_what_it_says(weights: str) -> None:
    coder = trained(CODERS["TopK"]())
    before = copy.deepcopy(coder)
    config = TrainingConfig(tokens=0, finetuning=FineTuning(tokens=6 * BATCH, weights=weights))
    trainer = Trainer(coder, config, BATCH)
    assert (trainer.n_main_steps, trainer.n_steps, trainer.is_finetuning) == (0, 6, True)
    assert trainer.dead_after == 6 * BATCH // 10
    trainer.initialise(rows())
    rates = []
    for batch in batches(6):
        rates.append(trainer._lr())
        trainer.step(SMALL * batch)
    assert rates == pytest.approx([0.1 * trainer.lr * (6 - step) / 6 for step in range(6)])
    after = trainer.inference_coder()
    cosine = torch.nn.functional.cosine_similarity(after.W_dec, before.W_dec, dim=1)
    turned = not torch.allclose(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)
    assert turned == (weights in ("decoder", "all"))
    cosine = torch.nn.functional.cosine_similarity(after.W_enc_rows, before.W_enc_rows, dim=1)
    assert torch.allclose(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9) == (weights != "all")
    assert not torch.allclose(after(rows()), before(rows()))


def test_nothing_but_fine_tuning_needs_a_phase_and_a_trained_dictionary() -> None:
    with pytest.raises(ConfigError, match="tokens must be at least 1, got 0"):
        TrainingConfig(tokens=0)
    with pytest.raises(ConfigError, match=r"tokens=0 leaves nothing but fine-tuning, .*coder\.start_from"):
        Trainer(CODERS["TopK"](), TrainingConfig(tokens=0, finetuning=FineTuning(tokens=64)), BATCH)


def test_tied_decoders_take_one_factor_for_all_sites() -> None:
    coder = CLT([4, 4], [4, 4], 24, activation=TopK(k=3), tied="per_source", dtype="float64")
    trainer = Trainer(coder, TrainingConfig(tokens=BATCH), BATCH)
    x = torch.cat(batches(2, 8))
    x = torch.cat([x, x * torch.tensor([1.0] * 4 + [5.0] * 4)], 1)
    trainer.initialise(x)
    trainer.step(x[:BATCH])
    norms = [float(x[:, start : start + 4].norm(dim=1).mean()) for start in (8, 12)]
    assert [site.factor for site in trainer.scaling.output.sites] == pytest.approx([4 / sum(norms)] * 2)
    inputs, scaled = x[:, :8], trainer.scaling.input.apply(x[:, :8])
    with torch.no_grad():
        expected = trainer.coder(scaled) * sum(norms) / 4
        torch.testing.assert_close(trainer.inference_coder()(inputs), expected)


def test_whitening_is_refused_before_training_where_it_cannot_be_folded() -> None:
    config = TrainingConfig(tokens=BATCH, input_scaling="whitening")
    for coder, message in (
        (SAE(D, 24, b_dec="none"), "leaves no bias to hold the mean"),
        (Transcoder(D, D, 24, skip=True, b_dec="input_and_output"), "skip connection and one shared bias"),
        (CLT([4, 4], [4, 4], 24, tied="per_source"), "tied decoders cannot take"),
    ):
        with pytest.raises(ConfigError, match=message):
            Trainer(coder, config, BATCH)
