"""Resampling as published recipes do it, without torch: named values that ``Resample`` starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ResampleBy = Literal["error", "model_loss"]
ResamplePreset = Literal["anthropic", "transcoder_circuits", "drrik", "dictionary_learning"]


@dataclass(frozen=True, kw_only=True)
class ResampleRule:
    """When and how dead latents are replaced, with nothing left open but what depends on the run's length."""

    every_tokens: int | None = None
    """Tokens between resamplings; an eighth of the run where None."""
    n_times: int | None = None
    """Resamplings at most; as many as fit where None."""
    by: ResampleBy = "error"
    """The loss that candidates are drawn by."""
    power: float = 2.0
    """Candidates are drawn with probability ∝ loss to this power."""
    dead_after_tokens: int | None = None
    """Dead by silence: so many tokens without firing; half of ``every_tokens`` where None."""
    dead_below_density: float | None = None
    """Dead by rate, instead."""
    n_candidates: int = 16_384
    """Inputs drawn from, for ``by="error"``."""
    n_contexts: int = 64
    """Contexts whose tokens are drawn from, for ``by="model_loss"``."""
    one_per_context: bool = False
    """Whether each context offers one token, itself drawn ∝ its loss increase, rather than all of them."""
    scale: float = 0.2
    """Norm of a new encoder row, relative to the mean of the living ones."""
    rewarm_tokens: int | None = None
    """Tokens over which the learning rate rises again; ``rewarm_fraction`` of the run where None."""
    rewarm_fraction: float = 0.02
    """The same as a share of the run."""
    rewarm_floor: float = 0.0
    """Share of the learning rate that it rises from."""


RESAMPLE_PRESETS: Mapping[ResamplePreset, ResampleRule] = MappingProxyType(
    {
        # Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron Resampling": batches of 8,192; at steps
        # 25,000, 50,000, 75,000 and 100,000; dead when silent for 12,500 steps; 819,200 inputs, by squared loss.
        "anthropic": ResampleRule(
            every_tokens=25_000 * 8192,
            n_times=4,
            dead_after_tokens=12_500 * 8192,
            n_candidates=819_200,
            rewarm_tokens=0,
        ),
        # Dunefsky et al. 2024 (arXiv 2406.11944), sae_training of transcoder_circuits, defaults of its runner config:
        # batches of 4,096; every 1,000 steps those silent as long; one token of each of 32 · 1,024 contexts, by the
        # model's increase in loss; 10,000 steps from a ten-thousandth of the learning rate.
        "transcoder_circuits": ResampleRule(
            every_tokens=1000 * 4096,
            by="model_loss",
            power=1.0,
            dead_after_tokens=1000 * 4096,
            n_contexts=32 * 1024,
            one_per_context=True,
            rewarm_tokens=10_000 * 4096,
            rewarm_floor=1e-4,
        ),
        # drrik, SparseAutoencoder.fit, defaults: batches of 256; every 10,000 steps those silent for 100 batches; the
        # newest batch alone, by squared loss; the learning rate stays.
        "drrik": ResampleRule(
            every_tokens=10_000 * 256,
            dead_after_tokens=100 * 256,
            n_candidates=256,
            rewarm_tokens=0,
        ),
        # dictionary_learning, StandardTrainer with resample_steps=25000 and warmup_steps=1000 as in its guide, batches
        # of 8,192 as its buffer gives by default: those silent for half the interval; the newest batch alone, by the
        # norm of the error; the learning rate warms up again from zero.
        "dictionary_learning": ResampleRule(
            every_tokens=25_000 * 8192,
            power=0.5,
            dead_after_tokens=12_500 * 8192,
            n_candidates=8192,
            rewarm_tokens=1000 * 8192,
        ),
    }
)
