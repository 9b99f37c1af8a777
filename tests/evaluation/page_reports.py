"""Reports with figures of one's choice, without a model."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from monosema.evaluation import AblationLosses, LatentTable, ModelLosses, Report


def losses(score: float, zero_to_mean: float = 0.05) -> dict[str, Any]:
    """What a report says of predictions; zero ablation has ``score``, mean ablation a little less."""
    both = {"zero": score, "mean": score - zero_to_mean}
    intervals = {f"ablations/{name}/ce_loss_score": (each - 0.01, each + 0.01) for name, each in both.items()}
    return {
        "ce_clean": 2.0,
        "ce_spliced": 2.5,
        "ce_ablated": 7.0,
        "ce_loss_score": score,
        "kl": 0.4,
        "kl_ablated": 4.0,
        "kl_score": 0.9,
        "top1_agreement": 0.8,
        "n_predicted_tokens": 900,
        "ablations": {
            name: AblationLosses(ce=7.0, ce_loss_score=each, kl=4.0, kl_score=0.9, top1_agreement=0.1)
            for name, each in both.items()
        },
        "intervals": {"ce_loss_score": intervals["ablations/zero/ce_loss_score"], **intervals},
    }


def model_losses(score: float) -> ModelLosses:
    return ModelLosses(**losses(score))


def report(l0: float = 16.0, fve: float = 0.8, score: float | None = 0.9, **changes: Any) -> Report:
    """A report of 40 latents, 4 of them dead, on 1,000 tokens; without losses where ``score`` is None."""
    of_model = losses(score) if score is not None else {"intervals": {}}
    histogram = [0] * 20
    histogram[0], histogram[14], histogram[16], histogram[17] = 4, 6, 20, 10
    values: dict[str, Any] = {
        "fve": fve,
        "fvu": 1 - fve,
        "mse": 3.25,
        "cosine": 0.95,
        "norm_ratio": 0.97,
        "relative_reconstruction_bias": 1.01,
        "l0": l0,
        "l0_std": 1.0,
        "l1": 30.0,
        "dead_fraction": 0.1,
        "dead_fraction_reliable": False,
        "log10_density_histogram": tuple(histogram),
        "n_alive": 36,
        "d_sae": 40,
        "n_tokens": 1000,
        "max_decoder_cosine": 0.3,
        "max_encoder_cosine": 0.2,
        "encoder_decoder_cosine": 0.6,
        "hook_name": "blocks.1.hook_resid_post",
        "hook_name_out": "blocks.1.hook_resid_post",
        "model_name": None if score is None else "tiny",
        "ablation": None if score is None else "zero",
        "split": "heldout",
        "tokens_fingerprint": "ab" * 32,
        **of_model,
        **changes,
    }
    if "intervals" not in changes:
        values["intervals"] = {**values["intervals"], "fve": (fve - 0.02, fve + 0.02), "l0": (l0 - 1, l0 + 1)}
    return Report(**values)


def latent_table(n: int = 40, n_tokens: int = 1000) -> LatentTable:
    """Values without order; the last four latents never fired, and no latent has an encoder bias."""
    generator = torch.Generator().manual_seed(0)
    columns = {each.name: torch.randn(n, generator=generator, dtype=torch.float64) for each in fields(LatentTable)}
    counts = torch.randint(1, n_tokens, (n,), generator=generator)
    counts[-4:] = 0
    columns["density"] = counts.double() / n_tokens
    columns["mean_activation"][-4:] = math.nan
    columns["encoder_bias"][:] = math.nan
    return LatentTable(**columns)
