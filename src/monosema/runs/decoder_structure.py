"""``decoder_structure``: trains small dictionaries of a dictionary's decoder directions and says what they explain."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monosema.coders import SAE, BatchTopK, Dictionary
from monosema.core.progress import Progress
from monosema.core.seeds import random_stream
from monosema.evaluation.benchmarks.config import MetaConfig
from monosema.evaluation.benchmarks.meta import MetaReport, decoder_directions, measure_meta
from monosema.training import Trainer
from monosema.training.config import TrainingConfig


def decoder_structure(coder: Dictionary, config: MetaConfig | None = None, *, progress: bool = True) -> MetaReport:
    """Train a meta-dictionary for each seed on ``coder``'s unit decoder rows, and ``measure_meta`` of them.

    Everything else about the training is the library's default. ``coder`` is not changed. Raises as ``measure_meta``
    does, and ``ConfigError`` where k exceeds the meta-latents.
    """
    config = config or MetaConfig()
    rows, _ = decoder_directions(coder)
    rows = rows.float()
    with Progress("decoder structure", len(config.seeds) * config.n_steps, enabled=progress) as bar:
        metas = {seed: _train(rows, coder.d_sae, config, seed, bar) for seed in config.seeds}
    return replace(measure_meta(coder, metas), config=config)


def _train(rows: Tensor, d_sae: int, config: MetaConfig, seed: int, bar: Progress) -> Dictionary:
    width, n = max(1, round(config.width_fraction * d_sae)), min(config.batch_size, len(rows))
    meta = SAE(rows.shape[1], width, activation=BatchTopK(k=config.k), seed=seed).to(rows.device)
    trainer = Trainer(meta, TrainingConfig(tokens=n * config.n_steps, lr=config.lr, seed=seed), n)
    trainer.initialise(rows)
    generator = random_stream(seed, "decoder structure", "order")
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(config.n_steps):
        if len(order) < n:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        trainer.step(rows[order[:n].to(rows.device)])
        order = order[n:]
        bar.advance(1)
    trainer.check_finite()
    return trainer.inference_coder()
