"""What a training step holds in memory, counted before it begins.

Shape letters: B tokens, I input width, O output width, F latents, E active entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from monosema.coders import SparseCoder, TrainableDictionary
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.parts import Part
from monosema.kernels.bags import DENSE_DENSITY
from monosema.training.config import TrainingConfig
from monosema.training.gradients import tokens_at_a_time
from monosema.training.start import START
from monosema.training.terms import AuxK, HierarchicalTopK, Matryoshka, Sparsity

ENTRY_BYTES = 64
"""Of an active entry in a step: index, token and place in both orders, value, and the gradients of it."""

STATISTICS_BYTES = 3 * 8 + 1
"""Of a latent's firing statistics."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the dictionary's device, but for ``snapshot``."""

    weights: int
    """The parameters."""
    moments: int
    """Adam's two, of every parameter; under ``autocast="bfloat16"`` its copy of the matrices, too."""
    pre_activations: int
    """Of as many tokens as are looked at together, kept from step to step."""
    gradients: int
    """Of every parameter, while a step lasts."""
    step: int
    """Whatever else a step holds at its peak: rows, errors, active entries, and masks where a selection needs them."""
    snapshot: int
    """In the host's memory, for checkpoints: with ``background_checkpoints`` a copy of weights, moments and firing
    statistics; and while one is written, the dictionary as it is saved, three times over."""

    @property
    def kept(self) -> int:
        """Between steps, the weights left out."""
        return self.moments + self.pre_activations

    @property
    def passing(self) -> int:
        """While a step lasts."""
        return self.gradients + self.step


def step_memory(
    dictionary: TrainableDictionary,
    config: TrainingConfig,
    sparsity: Sparsity | None,
    batch_size: int,
    device: torch.device | None = None,
) -> StepMemory:
    """``StepMemory`` of training ``dictionary`` with ``sparsity`` and as ``config`` says, on ``device`` (by default
    where it is).

    Where density is learned, entries are those of ``START`` times the wanted L0, at which such a dictionary begins;
    without one, of half of all latents.
    """
    size = torch.empty((), dtype=dictionary.dtype).element_size()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in dictionary.parameters())
    n_tokens = -(-batch_size // config.gradient_accumulation)
    device = dictionary.device if device is None else device
    parts = [_part(part, config, sparsity, n_tokens, size, device) for part in dictionary.parts]
    rows = 2 * batch_size * (dictionary.d_in + dictionary.d_out) * size
    return StepMemory(
        weights=weights,
        moments=2 * weights + (weights // 2 if config.autocast == "bfloat16" else 0),
        pre_activations=sum(
            _at_once(part.coder, config, n_tokens, device) * part.coder.d_sae * size for part in dictionary.parts
        ),
        gradients=weights,
        snapshot=(3 * weights + STATISTICS_BYTES * dictionary.d_sae) * config.background_checkpoints + 3 * weights,
        step=rows + max(working for working, _ in parts) + sum(entries for _, entries in parts),
    )


def _part(
    part: Part[SparseCoder],
    config: TrainingConfig,
    sparsity: Sparsity | None,
    n_tokens: int,
    size: int,
    device: torch.device,
) -> tuple[int, int]:
    """What is held while one part is worked on, and what is kept of it until all are done."""
    coder = part.coder
    n_levels = 1
    if isinstance(config.levels, Matryoshka):
        n_levels = len(config.levels.widths or config.levels.fractions or ())
    elif isinstance(config.levels, HierarchicalTopK):
        n_levels = len(config.levels.budgets)
    outputs = (2 + 2 * n_levels) * n_tokens * coder.d_out * size
    dense, active = n_tokens * coder.d_sae, most_active(coder, config, sparsity)
    mask = _at_once(coder, config, n_tokens, device) * coder.d_sae
    if active > DENSE_DENSITY * coder.d_sae:  # a dense product of dense activations
        return outputs + dense * (2 * size + 8), round(n_tokens * active) * ENTRY_BYTES
    extra = 0
    if isinstance(config.revive, AuxK):
        extra = coder.d_sae * coder.d_out * size
    return outputs + max(mask, extra), round(n_tokens * active) * ENTRY_BYTES


def _at_once(coder: SparseCoder, config: TrainingConfig, n_tokens: int, device: torch.device) -> int:
    whole = config.autocast is not None or config.compile is not None
    return n_tokens if whole else tokens_at_a_time(coder, n_tokens, device)


def most_active(coder: SparseCoder, config: TrainingConfig, sparsity: Sparsity | None) -> float:
    """Active latents of a token at most."""
    if isinstance(coder.activation, FixedCountActivation):
        return max(coder.activation.k, float(config.k_start or 0))
    target = getattr(sparsity, "target_l0", None)
    return 0.5 * coder.d_sae if target is None else min(START * target, 0.5 * coder.d_sae)
