"""``decoder_structure``: trains small dictionaries of a dictionary's decoder directions and says what they explain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import SAE, BatchTopK, Dictionary, SparseCoder
from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.core.progress import Progress
from monosema.core.seeds import random_stream
from monosema.evaluation.benchmarks.meta import MetaReport, decoder_directions, measure_meta
from monosema.training import Trainer
from monosema.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class MetaOptions:
    """How meta-dictionaries are trained; width, k, steps and learning rate are SAEBench's."""

    width_fraction: float = 0.25
    """Meta-latents for each latent."""
    k: float = 4.0
    """Mean number of meta-latents of a decoder direction (BatchTopK)."""
    n_steps: int = 1500
    """Training steps."""
    lr: float = 5e-4
    """Learning rate."""
    batch_size: int = 4096
    """Directions in a step; all of them where there are fewer."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One meta-dictionary for each: initial weights and order of the directions."""
    n_resamples: int = 1000
    """Bootstrap resamples of the directions."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"MetaOptions: seeds must be different numbers, at least one, got {self.seeds}")
        for name in ("n_steps", "batch_size", "n_resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"MetaOptions: {name} must be at least 1, got {getattr(self, name)}")
        if not self.width_fraction > 0:
            raise ConfigError(f"MetaOptions: width_fraction must be positive, got {self.width_fraction}")


def decoder_structure(coder: Dictionary, options: MetaOptions | None = None, *, progress: bool = True) -> MetaReport:
    """Train a meta-dictionary for each seed on ``coder``'s unit decoder rows, and ``measure_meta`` of them.

    Everything else about the training is the library's default. ``coder`` is not changed. Raises as ``measure_meta``
    does, and ``ConfigError`` where k exceeds the meta-latents.
    """
    options = options or MetaOptions()
    rows, _ = decoder_directions(coder)
    rows = rows.float()
    with Progress("decoder structure", len(options.seeds) * options.n_steps, enabled=progress) as bar:
        metas = {seed: _train(rows, coder.d_sae, options, seed, bar) for seed in options.seeds}
    return measure_meta(coder, metas, n_resamples=options.n_resamples)


def _train(rows: Tensor, d_sae: int, options: MetaOptions, seed: int, bar: Progress) -> SparseCoder:
    width, n = max(1, round(options.width_fraction * d_sae)), min(options.batch_size, len(rows))
    meta = SAE(rows.shape[1], width, activation=BatchTopK(k=options.k), seed=seed).to(rows.device)
    trainer = Trainer(meta, TrainingConfig(tokens=n * options.n_steps, lr=options.lr, seed=seed), n)
    trainer.initialise(rows)
    generator = random_stream(seed, "decoder structure", "order")
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(options.n_steps):
        if len(order) < n:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        trainer.step(rows[order[:n].to(rows.device)])
        order = order[n:]
        bar.advance(1)
    trainer.check_finite()
    trained = trainer.inference_coder()
    assert isinstance(trained, SparseCoder)
    return trained
