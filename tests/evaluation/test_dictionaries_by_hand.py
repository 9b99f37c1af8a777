"""Every figure of a report for dictionaries whose figures follow from moments of the activations.

All dictionaries read alike: latent ``i`` is ``relu(x_i)`` and latent ``16 + i`` is ``relu(-x_i)``. What they write is
``x_hat = x A + b`` with decoder rows ``A`` and ``-A``, so that ``x_hat`` needs no dictionary to be worked out. Below,
``m`` is the mean of the n rows, ``V = sum ||x - m||^2`` and ``S = sum ||x||^2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pytest
import torch
from evaluation_tiny import BOS, SITE, WIDTH, tiny_contexts
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosema.coders import SAE, ReLU, SparseCoder
from monosema.evaluation import Report, evaluate, evaluate_many
from monosema.models import LanguageModel

HALF = 0.5
OFFSET = torch.linspace(-0.6, 0.9, WIDTH, dtype=torch.float64)
SHIFTED = torch.arange(WIDTH).roll(1)
"""Output i is input i - 1: no dimension stays where it is."""
EYE = torch.eye(WIDTH, dtype=torch.float64)
ZERO = torch.zeros(WIDTH, dtype=torch.float64)
close = pytest.approx


@dataclass(frozen=True)
class Moments:
    """What figures follow from, of rows ``x [n, 16]``."""

    x: Tensor

    def __post_init__(self) -> None:
        deviations = self.x - self.x.mean(0)
        values = {
            "n": len(self.x),
            "m": self.x.mean(0),
            "V_i": deviations.square().sum(0),
            "V": float(deviations.square().sum()),
            "S_i": self.x.square().sum(0),
            "S": float(self.x.square().sum()),
            "norms": self.x.norm(dim=1),
            "distances": deviations.square().sum(1),  # of each token from the mean, squared
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def mean(values: Tensor) -> float:
    return sum(values.tolist()) / len(values)


def zero(x: Moments) -> dict[str, object]:
    """x_hat = 0: the error is x itself; no direction and no length."""
    return {
        "fve": 1 - x.S / x.V,
        "fve_centred": 0.0,
        "fve_per_token_mean": mean(1 - x.norms**2 / x.distances),
        "mse": x.S / x.n,
        "cosine": 0.0,
        "norm_out": 0.0,
        "norm_ratio": 0.0,
        "relative_reconstruction_bias": math.nan,
        "fve_per_dimension": 1 - x.S_i / x.V_i,
        "encoder_decoder_cosine": 0.0,
        "decoder_norm": 0.0,
    }


def predict_the_mean(x: Moments) -> dict[str, object]:
    """x_hat = m: explains nothing, and is unbiased as sum <x, m> = n ||m||^2."""
    length = float(x.m.norm())
    return zero(x) | {
        "fve": 0.0,
        "fve_per_token_mean": 0.0,
        "mse": x.V / x.n,
        "cosine": mean(x.x @ x.m / (x.norms * length)),
        "norm_out": length,
        "norm_ratio": mean(length / x.norms),
        "relative_reconstruction_bias": 1.0,
        "fve_per_dimension": torch.zeros(WIDTH),
    }


def identity(x: Moments) -> dict[str, object]:
    """x_hat = x."""
    return {
        "fve": 1.0,
        "fve_centred": 1.0,
        "fve_per_token_mean": 1.0,
        "mse": 0.0,
        "cosine": 1.0,
        "norm_out": mean(x.norms),
        "norm_ratio": 1.0,
        "relative_reconstruction_bias": 1.0,
        "fve_per_dimension": torch.ones(WIDTH),
        "encoder_decoder_cosine": 1.0,
        "decoder_norm": 1.0,
    }


def scaled(x: Moments) -> dict[str, object]:
    """x_hat = x / 2: the error is x / 2; everything is half as long, ``||x_hat||^2 / <x, x_hat> = (1/4) / (1/2)``."""
    return identity(x) | {
        "fve": 1 - x.S / 4 / x.V,
        "fve_centred": 0.75,
        "fve_per_token_mean": mean(1 - x.norms**2 / 4 / x.distances),
        "mse": x.S / 4 / x.n,
        "norm_out": mean(x.norms) / 2,
        "norm_ratio": 0.5,
        "relative_reconstruction_bias": 0.5,
        "fve_per_dimension": 1 - x.S_i / 4 / x.V_i,
        "decoder_norm": 0.5,
    }


def constant_offset(x: Moments) -> dict[str, object]:
    """x_hat = x + c: the error is c everywhere, which centring takes away."""
    moved, c = x.x + OFFSET, float(OFFSET @ OFFSET)
    inner = (x.x * moved).sum(1)
    return identity(x) | {
        "fve": 1 - x.n * c / x.V,
        "fve_per_token_mean": mean(1 - c / x.distances),
        "mse": c,
        "cosine": mean(inner / (x.norms * moved.norm(dim=1))),
        "norm_out": mean(moved.norm(dim=1)),
        "norm_ratio": mean(moved.norm(dim=1) / x.norms),
        "relative_reconstruction_bias": float(moved.square().sum() / inner.sum()),
        "fve_per_dimension": 1 - x.n * OFFSET**2 / x.V_i,
    }


def permuted_outputs(x: Moments) -> dict[str, object]:
    """x_hat_i = x_(i-1): lengths stay, directions do not; no latent writes where it reads."""
    other = x.x[:, SHIFTED]
    error, inner = x.x - other, (x.x * other).sum(1)
    return identity(x) | {
        "fve": 1 - float(error.square().sum()) / x.V,
        "fve_centred": 1 - float((error - error.mean(0)).square().sum()) / x.V,
        "fve_per_token_mean": mean(1 - error.square().sum(1) / x.distances),
        "mse": mean(error.square().sum(1)),
        "cosine": mean(inner / x.norms**2),
        "relative_reconstruction_bias": x.S / float(inner.sum()),
        "fve_per_dimension": 1 - error.square().sum(0) / x.V_i,
        "encoder_decoder_cosine": 0.0,
    }


CASES: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Moments], dict[str, object]]]] = {
    "zero": (0 * EYE, lambda m: ZERO, zero),
    "mean": (0 * EYE, lambda m: m, predict_the_mean),
    "identity": (EYE, lambda m: ZERO, identity),
    "scaled": (HALF * EYE, lambda m: ZERO, scaled),
    "offset": (EYE, lambda m: OFFSET, constant_offset),
    "permuted": (EYE[:, SHIFTED], lambda m: ZERO, permuted_outputs),
}
"""By name: A, b given the mean, and the figures."""


def dictionary(A: Tensor, b: Tensor) -> SparseCoder:
    coder = SAE(WIDTH, 2 * WIDTH, activation=ReLU(), b_dec="output", dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.cat([EYE, -EYE]))
        coder.W_dec.copy_(torch.cat([A, -A]))
        assert coder.b_dec is not None
        coder.b_dec.copy_(b)
    coder.bind(SITE, SITE, {})
    return coder


def run(model: LanguageModel, contexts: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits where the first block's output becomes ``change`` of it, but at ``BOS``; transformers' own hooks."""

    def hook(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        new = torch.where((contexts == BOS).unsqueeze(-1), value, change(value))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.hf.model.layers[0].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.hf(input_ids=contexts, use_cache=False).logits
    handle.remove()
    return logits


def predictions(logits: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[36, V]`` and targets where neither the position nor its target is ``BOS``."""
    counted = (contexts[:, :-1] != BOS) & (contexts[:, 1:] != BOS)
    return logits[:, :-1][counted], contexts[:, 1:][counted]


def losses(clean: Tensor, logits: Tensor, contexts: Tensor) -> dict[str, float]:
    """Of a run beside the clean one: cross-entropy, ``sum_v p (log p - log q)`` and equal argmaxes, token by token."""
    p, targets = predictions(clean, contexts)
    q, _ = predictions(logits, contexts)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return {
        "ce": float(cross_entropy(q, targets)),
        "kl": mean((log_p.exp() * (log_p - log_q)).sum(1)),
        "top1_agreement": mean((p.argmax(1) == q.argmax(1)).double()),
    }


@pytest.fixture(scope="module")
def moments(decoder: LanguageModel, module_contexts: Tensor) -> Moments:
    with torch.no_grad():
        hidden = decoder.hf(input_ids=module_contexts, output_hidden_states=True, use_cache=False).hidden_states[1]
    return Moments(hidden[module_contexts != BOS])


@pytest.fixture(scope="module")
def module_contexts(decoder: LanguageModel) -> Tensor:
    """As the model would go on but for the eighth token, so that targets are not always the most probable ones."""
    contexts = tiny_contexts(decoder)
    contexts[:, 8] = contexts[:, 8] * 7 % 49 + 1
    return contexts


@pytest.fixture(scope="module")
def reports(decoder: LanguageModel, module_contexts: Tensor, moments: Moments) -> dict[str, Report]:
    coders = {name: dictionary(A, b(moments.m)) for name, (A, b, _) in CASES.items()}
    return evaluate_many(coders, decoder, module_contexts, progress=False)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written(name: str, reports: dict[str, Report], moments: Moments):
    report, expected = reports[name], CASES[name][2](moments)
    for figure, value in expected.items():
        found = getattr(report, figure)
        found, value = (each.tolist() if isinstance(each, Tensor) else each for each in (found, value))
        assert found == close(value, rel=1e-9, abs=1e-9, nan_ok=True), figure
    assert report.fvu == close(1 - float(expected["fve"]), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_the_same_for_all(name: str, reports: dict[str, Report], moments: Moments):
    """Of ``x_i`` and ``-x_i`` one is positive: 16 latents fire on every token, with ``sum |x_i|`` in all."""
    report, x = reports[name], moments.x
    assert (report.l0, report.l0_std) == (WIDTH, 0)
    assert set(report.l0_quantiles.values()) == {WIDTH}
    assert report.l1 == close(float(x.abs().sum()) / len(x))
    counts = [*(x > 0).sum(0).tolist(), *(x < 0).sum(0).tolist()]
    density = [count / len(x) for count in counts]
    assert report.firing_density.tolist() == density
    assert report.n_alive == sum(count > 0 for count in counts) and report.d_sae == 32
    assert report.dead_fraction == counts.count(0) / 32 and not report.dead_fraction_reliable
    # one token in 48 is 2 %: all that live are above 1 %
    assert report.share_over_1_percent == report.n_alive / 32
    assert report.share_over_10_percent == sum(share > 0.1 for share in density) / 32
    # bins are half a decade: the dead at -10 in the first, .01 to .032 in the 17th, then .1, .32, 1
    bins = [0] * 20
    for share in density:
        bins[0 if share == 0 else min(19, math.floor((math.log10(share) + 10) * 2))] += 1
    assert list(report.log10_density_histogram) == bins
    assert (report.n_tokens, report.n_special_positions, report.n_predicted_tokens) == (48, 12, 36)
    assert report.norm_in == close(mean(moments.norms))
    assert report.encoder_norm == 1
    # a row has one opposite and 30 at right angles; a zero row has no direction, which counts as 0
    assert report.max_encoder_cosine == report.max_decoder_cosine == 0


@pytest.mark.parametrize("name", CASES)
def test_each_latent(name: str, reports: dict[str, Report], moments: Moments, module_contexts: Tensor):
    x, A = moments.x, CASES[name][0]
    table = reports[name].latents.columns()
    signed = torch.cat([x, -x], 1)
    context_of = (module_contexts != BOS).nonzero()[:, 0]
    for latent in range(2 * WIDTH):
        values = [value for value in signed[:, latent].tolist() if value > 0]
        contexts = {int(c) for c, value in zip(context_of, signed[:, latent], strict=True) if value > 0}
        length = float(A[latent % WIDTH].norm())
        assert table["density"][latent] == len(values) / len(x)
        assert table["max_activation"][latent] == close(max(values, default=0.0))
        assert table["mean_activation"][latent] == (close(sum(values) / len(values)) if values else None)
        assert table["consistent_activation"][latent] == (len(values) / len(contexts) if values else None)
        assert (table["encoder_norm"][latent], table["encoder_bias"][latent]) == (1, 0)
        assert table["decoder_norm"][latent] == length
        own = float(A[latent % WIDTH, latent % WIDTH]) / length if length else 0.0
        assert table["encoder_decoder_cosine"][latent] == own
        assert table["max_decoder_cosine"][latent] == table["max_encoder_cosine"][latent] == 0


@pytest.mark.parametrize("name", CASES)
def test_what_the_model_loses(
    name: str, reports: dict[str, Report], moments: Moments, module_contexts: Tensor, decoder: LanguageModel
):
    report, (A, b, _) = reports[name], CASES[name]
    clean = run(decoder, module_contexts, lambda value: value)
    of = {
        "clean": losses(clean, clean, module_contexts),
        "spliced": losses(
            clean, run(decoder, module_contexts, lambda value: value @ A + b(moments.m)), module_contexts
        ),
        "zero": losses(clean, run(decoder, module_contexts, torch.zeros_like), module_contexts),
        "mean": losses(clean, run(decoder, module_contexts, lambda value: moments.m.expand_as(value)), module_contexts),
    }
    near = {"rel": 1e-9, "abs": 1e-12}
    assert report.ce_clean == close(of["clean"]["ce"], **near)
    assert report.ce_spliced == close(of["spliced"]["ce"], **near)
    assert report.kl == close(of["spliced"]["kl"], **near)
    assert report.top1_agreement == close(of["spliced"]["top1_agreement"])
    for ablation in ("zero", "mean"):
        found, run_alone = asdict(report.ablations[ablation]), of[ablation]
        assert found.pop("pattern_kl") is found.pop("pattern_kl_score") is None, "the site is no query or key"
        gap = run_alone["ce"] - of["clean"]["ce"]
        assert gap > 1, "else a score would say little"
        assert found == close(
            {
                **run_alone,
                "ce_loss_score": (run_alone["ce"] - of["spliced"]["ce"]) / gap,
                "kl_score": 1 - of["spliced"]["kl"] / run_alone["kl"],
            },
            **near,
        )
    flat = {name: getattr(report, name) for name in ("ce_ablated", "ce_loss_score", "kl_ablated", "kl_score")}
    of_zero = report.ablations["zero"]
    assert [*flat.values()] == [of_zero.ce, of_zero.ce_loss_score, of_zero.kl, of_zero.kl_score]


def test_ideal_figures_are_met_to_the_last_bit(reports: dict[str, Report]):
    exact, nothing, average = reports["identity"], reports["zero"], reports["mean"]
    assert (exact.fve, exact.mse, exact.fvu) == (1, 0, 0)
    assert (exact.ce_spliced, exact.kl, exact.top1_agreement) == (exact.ce_clean, 0, 1)
    for losses in exact.ablations.values():
        assert (losses.ce_loss_score, losses.kl_score) == (1, 1)
    of_zero = nothing.ablations["zero"]
    assert (nothing.ce_spliced, nothing.kl, nothing.top1_agreement) == (of_zero.ce, of_zero.kl, of_zero.top1_agreement)
    assert (of_zero.ce_loss_score, of_zero.kl_score) == (0, 0)
    of_mean = average.ablations["mean"]
    assert (of_mean.ce_loss_score, of_mean.kl_score) == (close(0, abs=1e-12), close(0, abs=1e-12))


def test_latents_in_another_order_change_the_order_of_latents_alone(decoder: LanguageModel, contexts: Tensor):
    plain, mixed = (
        SAE(WIDTH, 24, activation=ReLU(), dtype="float64"),
        SAE(WIDTH, 24, activation=ReLU(), dtype="float64"),
    )
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in ("W_enc_rows", "b_enc", "W_dec"):
            getattr(mixed, name).copy_(getattr(plain, name)[order])
        mixed.b_dec.copy_(plain.b_dec)
    for coder in (plain, mixed):
        coder.bind(SITE, SITE, {})
    a, b = (evaluate(coder, decoder, contexts, progress=False) for coder in (plain, mixed))
    assert flat_numbers(b.to_dict()) == close(flat_numbers(a.to_dict()), rel=1e-9, abs=1e-12, nan_ok=True)
    assert torch.equal(b.firing_density, a.firing_density[order])
    for name, column in a.latents.columns().items():
        found = b.latents.columns()[name]
        assert [-1.0 if value is None else value for value in found] == close(
            [-1.0 if column[index] is None else column[index] for index in order.tolist()], rel=1e-6
        ), name


def flat_numbers(plain: object, name: str = "") -> dict[str, float]:
    """Every number in a report's JSON, by its path."""
    if isinstance(plain, dict):
        return {key: value for each, own in plain.items() for key, value in flat_numbers(own, f"{name}/{each}").items()}
    if isinstance(plain, list | tuple):
        return flat_numbers(dict(enumerate(plain)), name)
    return {name: float(plain)} if isinstance(plain, int | float) else {}
