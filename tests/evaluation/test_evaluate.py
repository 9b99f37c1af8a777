"""``evaluate`` with a model: against runs made by hand, and against coders whose scores are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from evaluation_tiny import (
    BOS,
    MASK,
    SITE,
    VOCABULARY,
    WIDTH,
    constant_sae,
    identity_sae,
    random_sae,
    random_transcoder,
    tiny_decoder,
    tiny_encoder,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from monosema.coders import SAE, BatchTopK, ReLU
from monosema.core.errors import ConfigError, DataError, ShapeError, UnknownNameError, UserError
from monosema.data import Tokens, TokenSplit
from monosema.evaluation import Report, evaluate
from monosema.metrics import fve
from monosema.models import LanguageModel

LOSSES = ("ce_clean", "ce_spliced", "ce_ablated", "ce_loss_score", "kl", "kl_ablated", "kl_score")
NUMBERS = (*LOSSES, "fve", "mse", "cosine", "norm_ratio", "relative_reconstruction_bias", "l0", "l0_std", "l1")


def numbers(report: Report) -> list[float]:
    return [getattr(report, name) for name in NUMBERS]


def logits_by_hand(model: LanguageModel, contexts: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits where the output of block 0 (``SITE``) is changed outside special positions, with plain hooks."""
    special = contexts == BOS

    def hook(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        new = torch.where(special.unsqueeze(-1), value, change(value))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.hf.model.layers[0].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.hf(input_ids=contexts, use_cache=False).logits
    finally:
        handle.remove()


def counted_predictions(logits: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets where neither the position nor its target is special, with plain loops."""
    pairs = [
        (logits[b, t], contexts[b, t + 1])
        for b in range(contexts.shape[0])
        for t in range(contexts.shape[1] - 1)
        if contexts[b, t] != BOS and contexts[b, t + 1] != BOS
    ]
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def test_losses_equal_those_of_plain_hooks(decoder: LanguageModel, contexts: Tensor):
    coder = random_sae()
    report = evaluate(coder, decoder, contexts)
    runs = {
        "clean": logits_by_hand(decoder, contexts, lambda value: value),
        "spliced": logits_by_hand(decoder, contexts, coder),
        "ablated": logits_by_hand(decoder, contexts, torch.zeros_like),
    }
    predictions = {name: counted_predictions(logits, contexts) for name, logits in runs.items()}
    losses = {name: cross_entropy(logits, targets).item() for name, (logits, targets) in predictions.items()}
    clean = predictions["clean"][0].log_softmax(-1)
    divergences = {
        name: kl_div(predictions[name][0].log_softmax(-1), clean, log_target=True, reduction="batchmean").item()
        for name in ("spliced", "ablated")
    }
    assert report.ce_clean == pytest.approx(losses["clean"], rel=1e-12)
    assert report.ce_spliced == pytest.approx(losses["spliced"], rel=1e-12)
    assert report.ce_ablated == pytest.approx(losses["ablated"], rel=1e-12)
    assert report.kl == pytest.approx(divergences["spliced"], rel=1e-10)
    assert report.kl_ablated == pytest.approx(divergences["ablated"], rel=1e-10)
    score = (losses["ablated"] - losses["spliced"]) / (losses["ablated"] - losses["clean"])
    assert report.ce_loss_score == pytest.approx(score, rel=1e-10)
    assert report.kl_score == pytest.approx(1 - divergences["spliced"] / divergences["ablated"], rel=1e-10)
    assert losses["ablated"] > losses["clean"] + 1  # else the comparison would say little
    assert report.n_predicted_tokens == len(predictions["clean"][1]) == 6 * (3 + 3)
    assert report.n_tokens == 6 * 8
    assert report.n_special_positions == 6 * 2


def test_reconstruction_metrics_leave_special_positions_out(decoder: LanguageModel, contexts: Tensor):
    coder = random_sae()
    report = evaluate(coder, decoder, contexts)
    with torch.no_grad():
        hidden = decoder.hf(input_ids=contexts, output_hidden_states=True, use_cache=False).hidden_states[1]
    x = hidden[contexts != BOS]
    with torch.no_grad():
        x_hat, latents = coder(x), coder.encode(x)
    assert report.fve == pytest.approx(
        1 - ((x - x_hat) ** 2).sum().item() / ((x - x.mean(0)) ** 2).sum().item(), rel=1e-12
    )
    assert report.mse == pytest.approx(((x - x_hat) ** 2).sum(-1).mean().item(), rel=1e-12)
    assert report.l0 == (latents != 0).sum(-1).double().mean().item()
    assert report.l1 == pytest.approx(latents.abs().sum(-1).mean().item(), rel=1e-12)
    assert report.firing_density.tolist() == pytest.approx((latents != 0).double().mean(0).tolist())
    assert report.n_alive == int((latents != 0).any(0).sum())


def test_an_exact_coder_has_ideal_scores(decoder: LanguageModel, contexts: Tensor):
    report = evaluate(identity_sae(), decoder, contexts)
    assert report.fve == report.ce_loss_score == report.kl_score == pytest.approx(1.0, rel=1e-12)
    assert report.ce_spliced == pytest.approx(report.ce_clean, rel=1e-14)
    assert report.kl == pytest.approx(0.0, abs=1e-14)
    assert report.l0 == WIDTH


def test_special_positions_are_treated_alike_in_splicing_and_zero_ablation(decoder: LanguageModel, contexts: Tensor):
    """A coder that writes zero is zero ablation; where ablation also destroyed BOS, its score would not be 0."""
    report = evaluate(constant_sae(0.0), decoder, contexts)
    assert report.ce_spliced == report.ce_ablated
    assert report.kl == report.kl_ablated
    assert report.ce_loss_score == report.kl_score == 0.0
    assert report.ablation == "zero"


def test_mean_ablation_is_the_mean_of_the_tokens_evaluated(decoder: LanguageModel, contexts: Tensor):
    value = decoder.capture(contexts, [SITE])[SITE]
    mean = value[contexts != BOS].mean(0)
    report = evaluate(constant_sae(mean), decoder, contexts, ablation="mean", batch_size=2)
    assert report.ce_ablated == pytest.approx(report.ce_spliced, rel=1e-12)
    assert report.fve == pytest.approx(0.0, abs=1e-12)
    assert report.ce_loss_score == pytest.approx(0.0, abs=1e-10)
    assert report.ablation == "mean"
    assert report.ce_ablated != evaluate(constant_sae(mean), decoder, contexts).ce_ablated


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_any_batch_size_gives_the_same_report(
    kind: str, ablation: str, request: pytest.FixtureRequest, contexts: Tensor
):
    model = request.getfixturevalue(kind)
    coder = random_sae()
    whole = evaluate(coder, model, contexts, batch_size=6, ablation=ablation)
    for batch_size in (1, 4):
        part = evaluate(coder, model, contexts, batch_size=batch_size, ablation=ablation)
        assert numbers(part) == pytest.approx(numbers(whole), rel=1e-10)
        assert torch.equal(part.firing_density, whole.firing_density)


def test_log_probabilities_in_parts_give_the_same(
    decoder: LanguageModel, contexts: Tensor, monkeypatch: pytest.MonkeyPatch
):
    whole = evaluate(random_sae(), decoder, contexts)
    for name, rows in (("COMPARED", 5), ("MULTIPLIED", 11)):
        monkeypatch.setattr(f"monosema.evaluation.predictor._ELEMENTS_{name}", {"cpu": rows * VOCABULARY})
    assert numbers(evaluate(random_sae(), decoder, contexts)) == pytest.approx(numbers(whole), rel=1e-12)


def test_logits_that_are_more_than_the_last_product_are_taken_whole(decoder: LanguageModel, contexts: Tensor):
    """The same model twice: with its logits scaled by one, the product is not recognised."""
    by_rows = evaluate(random_sae(), decoder, contexts)
    with decoder.edits({"lm_head:out": lambda logits: logits}):
        whole = evaluate(random_sae(), decoder, contexts)
    assert numbers(whole) == pytest.approx(numbers(by_rows), rel=1e-12)


def test_a_transcoder_is_compared_with_and_spliced_into_the_site_it_writes(decoder: LanguageModel, contexts: Tensor):
    coder = random_transcoder()
    report = evaluate(coder, decoder, contexts)
    values = decoder.capture(contexts, [coder.hook_name, coder.hook_name_out])
    x, y = (values[name][contexts != BOS] for name in (coder.hook_name, coder.hook_name_out))
    with torch.no_grad():
        assert report.fve == pytest.approx(fve(y, coder(x)), rel=1e-12)

    special = (contexts == BOS).unsqueeze(-1)
    prediction: dict[str, Tensor] = {}

    def before(module, args, kwargs):
        prediction["y"] = coder(args[0] if args else kwargs["x"])

    def after(module, args, output):
        return torch.where(special, output, prediction["y"])

    mlp = decoder.hf.model.layers[1].mlp
    handles = [mlp.register_forward_pre_hook(before, with_kwargs=True), mlp.register_forward_hook(after)]
    with torch.no_grad():
        logits = decoder.hf(input_ids=contexts, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert report.ce_spliced == pytest.approx(cross_entropy(*counted_predictions(logits, contexts)).item(), rel=1e-12)


def test_a_transcoder_may_read_a_site_that_cannot_be_written(decoder: LanguageModel, contexts: Tensor):
    read = "blocks.1.ln2.hook_scale"
    assert not decoder.site(read).writable
    coder = SAE(1, 2, activation=ReLU(), b_dec="output", dtype="float64")
    coder.bind(read, read, {})
    with pytest.raises(UserError, match=r"ln2.hook_scale' .* cannot be|can be read but not written.*losses=False"):
        evaluate(coder, decoder, contexts)
    assert evaluate(coder, decoder, contexts, losses=False).n_tokens == 48


def test_several_sites_lie_side_by_side(decoder: LanguageModel, contexts: Tensor):
    names = ("blocks.0.hook_resid_post", "blocks.2.hook_mlp_out")
    report = evaluate(identity_sae(2 * WIDTH, "+".join(names)), decoder, contexts, ablation="mean")
    assert report.fve == report.ce_loss_score == pytest.approx(1.0, rel=1e-12)
    assert report.l0 == 2 * WIDTH


def test_whole_contexts_that_hold_n_tokens_are_spread_over_the_split(decoder: LanguageModel, contexts: Tensor):
    assert evaluate(random_sae(), decoder, contexts, n_tokens=21).n_tokens == 3 * 8
    assert evaluate(random_sae(), decoder, contexts, n_tokens=20).n_tokens == 2 * 8
    assert evaluate(random_sae(), decoder, contexts, n_tokens=None).n_tokens == 6 * 8
    few = evaluate(random_sae(), decoder, contexts, n_tokens=20)
    assert numbers(few) == numbers(evaluate(random_sae(), decoder, contexts[[0, 3]]))


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_losses_may_be_measured_on_a_part_of_the_tokens(
    decoder: LanguageModel, contexts: Tensor, ablation: str, batch_size: int | None
):
    coder = random_sae()
    mixed = evaluate(coder, decoder, contexts, n_loss_tokens=21, batch_size=batch_size, ablation=ablation)
    rows, losses = evaluate(coder, decoder, contexts), evaluate(coder, decoder, contexts[[0, 2, 4]], ablation=ablation)
    assert (mixed.n_tokens, mixed.n_predicted_tokens) == (48, 18)
    assert mixed.fve == pytest.approx(rows.fve, rel=1e-12)
    for name in LOSSES:
        assert getattr(mixed, name) == pytest.approx(getattr(losses, name), rel=1e-10)


def test_the_held_out_split_is_used_and_overlap_is_named(decoder: LanguageModel, contexts: Tensor):
    train, heldout = (
        TokenSplit(part.int(), frozenset({BOS}), name)
        for part, name in ((contexts[:4], "train"), (contexts[4:], "heldout"))
    )
    tokens = Tokens(train, heldout, {"source": "test"})
    coder = random_sae()
    assert evaluate(coder, decoder, tokens).overlap == "unknown"
    coder.bind(SITE, SITE, {"tokens": {"fingerprint": train.fingerprint}})
    report = evaluate(coder, decoder, tokens)
    assert (report.split, report.overlap, report.n_tokens) == ("heldout", "none", 16)
    assert report.tokens_fingerprint == heldout.fingerprint
    # two passes of float64: MKL's sums may depend on where in memory their terms lie
    assert numbers(report) == pytest.approx(numbers(evaluate(coder, decoder, contexts[4:])), rel=1e-12)
    trained_on = evaluate(coder, decoder, train)
    assert (trained_on.split, trained_on.overlap) == ("train", "same tokens")
    assert any("trained on these very tokens" in note for note in trained_on.notes)
    assert evaluate(coder, decoder, heldout).overlap == "unknown"


def test_the_splits_own_special_tokens_decide(decoder: LanguageModel, contexts: Tensor):
    report = evaluate(constant_sae(0.0), decoder, TokenSplit(contexts.int(), frozenset(), "all"))
    assert (report.n_tokens, report.n_special_positions, report.n_predicted_tokens) == (60, 0, 54)
    assert report.ce_loss_score == 0.0


def test_coder_and_model_may_differ_in_dtype(contexts: Tensor):
    model = tiny_decoder(torch.bfloat16)
    single, double = (evaluate(identity_sae(dtype=dtype), model, contexts) for dtype in ("float32", "float64"))
    assert single.fve == double.fve == 1.0
    assert single.kl == double.kl == 0.0  # what is written is rounded back to the very bits that were read
    assert single.ce_clean == single.ce_spliced


def test_fewer_tokens_than_make_a_latent_dead_are_noted(decoder: LanguageModel, contexts: Tensor):
    report = evaluate(random_sae(), decoder, contexts)
    assert not report.dead_fraction_reliable
    assert any("100,000" in note for note in report.notes)


def test_a_reconstruction_worse_than_the_mean_is_noted(decoder: LanguageModel, contexts: Tensor):
    bad, good = (evaluate(each, decoder, contexts, losses=False) for each in (constant_sae(50.0), identity_sae()))
    assert bad.fve < 0 < good.fve
    assert [any("fve is below 0" in note for note in each.notes) for each in (bad, good)] == [True, False]


def test_ablation_that_changes_nothing_leaves_the_score_undefined(contexts: Tensor):
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight.zero_()
    site = "blocks.1.hook_mlp_out"
    report = evaluate(constant_sae(0.0, site), model, contexts)
    assert math.isnan(report.ce_loss_score)
    assert math.isnan(report.kl_score)
    assert math.isnan(report.fve)
    assert report.to_dict()["ce_loss_score"] is None
    assert any("ce_loss_score means nothing" in note for note in report.notes)


def test_without_losses_the_other_numbers_are_the_same(decoder: LanguageModel, contexts: Tensor):
    full, short = evaluate(random_sae(), decoder, contexts), evaluate(random_sae(), decoder, contexts, losses=False)
    assert all(getattr(short, name) is None for name in (*LOSSES, "n_predicted_tokens", "ablation"))
    assert short.fve == pytest.approx(full.fve, rel=1e-12)
    assert any("losses=False" in note for note in short.notes)


def test_encoder_losses_are_those_of_masked_tokens(encoder: LanguageModel, contexts: Tensor):
    report = evaluate(identity_sae(), encoder, contexts)
    assert report.ce_loss_score == pytest.approx(1.0, rel=1e-12)
    assert report.kl == pytest.approx(0.0, abs=1e-13)
    assert 1 <= report.n_predicted_tokens < 24
    assert report.n_tokens == int(((contexts != BOS) & (contexts != MASK)).sum())
    zero = evaluate(constant_sae(0.0), encoder, contexts)
    assert zero.ce_spliced == zero.ce_ablated
    assert zero.ce_clean == report.ce_clean
    assert zero.ce_ablated != zero.ce_clean
    assert evaluate(constant_sae(0.0), encoder, contexts, seed=1).ce_clean != report.ce_clean


def test_encoder_activations_are_those_of_unmasked_text(encoder: LanguageModel, contexts: Tensor):
    report = evaluate(random_sae(), encoder, contexts)
    x = encoder.capture(contexts, [SITE])[SITE][(contexts != BOS) & (contexts != MASK)]
    with torch.no_grad():
        assert report.fve == pytest.approx(fve(x, random_sae()(x)), rel=1e-12)


def test_an_encoder_without_a_mask_token_says_why_there_is_no_loss(contexts: Tensor):
    report = evaluate(random_sae(), tiny_encoder(), contexts)
    assert report.ce_clean is None
    assert any("no mask token" in note for note in report.notes)


@pytest.mark.parametrize("fails", [False, True])
def test_no_state_is_touched(contexts: Tensor, fails: bool):
    model, coder = tiny_decoder(), random_sae()
    coder.train()
    model.hf.model.layers[1].train()
    if fails:
        with torch.no_grad():
            coder.W_dec[0, 0] = math.nan
    flags = [each.training for module in (coder, model.hf) for each in module.modules()]
    weights = {name: value.clone() for name, value in [*coder.named_parameters(), *model.hf.named_parameters()]}
    before, random_state = contexts.clone(), torch.get_rng_state()
    if fails:
        with pytest.raises(DataError):
            evaluate(coder, model, contexts)
    else:
        evaluate(coder, model, contexts)
    assert [each.training for module in (coder, model.hf) for each in module.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(contexts, before)
    for name, value in [*coder.named_parameters(), *model.hf.named_parameters()]:
        assert value.grad is None
        assert value.requires_grad
        assert torch.equal(value, weights[name]) or fails


def test_a_batch_dependent_coder_is_evaluated_with_its_inference_rule(decoder: LanguageModel, contexts: Tensor):
    coder = SAE(WIDTH, 24, activation=BatchTopK(k=2), dtype="float64")
    coder.bind(SITE, SITE, {})
    coder.train()
    reports = [evaluate(coder, decoder, contexts, batch_size=size) for size in (1, 6)]
    assert reports[0].l0 == reports[1].l0


def test_input_that_cannot_be_evaluated_is_refused(decoder: LanguageModel, contexts: Tensor):
    narrow = SAE(8, 16, activation=ReLU())
    narrow.bind(SITE, SITE, {})
    with pytest.raises(ShapeError, match=r"d_in is 8, but 'blocks.1.hook_resid_pre' of tiny-llama is 16 wide"):
        evaluate(narrow, decoder, contexts)
    unbound = SAE(WIDTH, 16, activation=ReLU())
    with pytest.raises(ConfigError, match="which site it reads"):
        evaluate(unbound, decoder, contexts)
    with pytest.raises(UnknownNameError, match=r"resid_pre"):
        evaluate(random_sae("blocks.1.hook_residpre"), decoder, contexts)
    with pytest.raises(ConfigError, match=r"evaluate\(coder, model, tokens\)"):
        evaluate(random_sae(), decoder)
    with pytest.raises(ConfigError, match="not both"):
        evaluate(random_sae(), decoder, contexts, activations=torch.zeros(3, WIDTH))
    with pytest.raises(ShapeError, match=r"\[n, T\]"):
        evaluate(random_sae(), decoder, contexts[0])
    with pytest.raises(ShapeError, match="activations="):
        evaluate(random_sae(), decoder, torch.zeros(5, WIDTH))
    with pytest.raises(DataError, match=r"token id 50 is outside the vocabulary of tiny-llama \(0 to 49\)"):
        evaluate(random_sae(), decoder, contexts.clamp(max=48) + 2)
    with pytest.raises(ShapeError, match="longer than the 32 positions"):
        evaluate(random_sae(), decoder, contexts.repeat(1, 4))
    with pytest.raises(DataError, match="no context"):
        evaluate(random_sae(), decoder, contexts[:0])
    with pytest.raises(DataError, match="at least 2 tokens that are not special, got 0"):
        evaluate(random_sae(), decoder, torch.zeros(2, 4, dtype=torch.long), losses=False)
    with pytest.raises(ConfigError, match="n_tokens"):
        evaluate(random_sae(), decoder, contexts, n_tokens=0)
    with pytest.raises(ConfigError, match="n_loss_tokens"):
        evaluate(random_sae(), decoder, contexts, n_loss_tokens=0)
    with pytest.raises(ConfigError, match="batch_size"):
        evaluate(random_sae(), decoder, contexts, batch_size=0)


def test_activations_that_are_not_finite_are_named_with_hook_and_batch(contexts: Tensor):
    model = tiny_decoder()
    rare = 49
    contexts = contexts.clone()
    contexts[contexts == rare] = 7
    contexts[4, 3] = rare
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[rare, 0] = math.inf
    with pytest.raises(DataError, match=r"activations read at 'blocks.1.hook_resid_pre', batch 2 must be finite"):
        evaluate(random_sae(), model, contexts, batch_size=2)


def test_a_damaged_coder_and_damaged_logits_are_told_apart(contexts: Tensor):
    coder = random_sae()
    with torch.no_grad():
        coder.W_dec[:, 0] = 1e308
        coder.W_enc_rows.mul_(1e3)
    with pytest.raises(DataError, match=r"the coder's reconstruction for 'blocks.1.hook_resid_pre', batch 0"):
        evaluate(coder, tiny_decoder(), contexts)
    with torch.no_grad():
        coder.W_enc_rows[3, 5] = math.nan  # a latent that would never fire
    with pytest.raises(DataError, match=r"the coder's W_enc_rows must be finite, .*index \[3, 5\]"):
        evaluate(coder, tiny_decoder(), contexts)
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[3, 0] = math.nan
    with pytest.raises(DataError, match="cross-entropy of the clean run"):
        evaluate(random_sae(), model, contexts)
