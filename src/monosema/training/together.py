"""Several coders on the same rows: one batched encoder product in place of one for each.

A product of a small coder does not fill a GPU; those of several side by side do. On a CPU one product fills it already,
and batched ones are as fast as one after the other, so they stay separate there.

Shape letters: C coders, B tokens, I input width, F latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monosema.kernels.precision import product
from monosema.training.gradients import WORKSPACE_BYTES
from monosema.training.trainer import Rows, Trainer


def prepare_together(trainers: Sequence[Trainer], batches: Sequence[Tensor]) -> list[Rows]:
    """``trainer.prepare(batch)`` of each, with the pre-activations of coders that can share a product."""
    rows = [trainer.prepare(batch) for trainer, batch in zip(trainers, batches, strict=True)]
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, trainer in enumerate(trainers):
        if (shape := _shared_shape(trainer, rows[number])) is not None:
            groups.setdefault(shape, []).append(number)
    for members in groups.values():
        coder = trainers[members[0]].coder
        n_bytes = len(rows[members[0]].x) * coder.d_sae * coder.dtype.itemsize
        at_once = max(1, WORKSPACE_BYTES["gpu"] // max(1, n_bytes))
        for start in range(0, len(members), at_once):
            group = members[start : start + at_once]
            if len(group) > 1:
                made = _pre_activations([trainers[number] for number in group], [rows[number].x for number in group])
                for number, pre_BF in zip(group, made, strict=True):
                    rows[number] = replace(rows[number], pre_BF=pre_BF)
    return rows


def _shared_shape(trainer: Trainer, rows: Rows) -> tuple[object, ...] | None:
    """What coders must have in common; None for one that needs a product of its own."""
    coder, config = trainer.coder, trainer.config
    own = coder.parts[0].coder
    if coder.is_layered or config.gradient_accumulation > 1 or config.compile is not None:
        return None
    if not _is_worthwhile(coder.device):
        return None
    return coder.d_in, coder.d_sae, coder.dtype, coder.device, len(rows.x), config.autocast, own.b_enc is None


def _is_worthwhile(device: torch.device) -> bool:
    return device.type == "cuda"


@torch.no_grad()
def _pre_activations(trainers: Sequence[Trainer], inputs: Sequence[Tensor]) -> Tensor:
    """``(x - b) W_encᵀ + b_enc`` of each: ``[C, B, F]``."""
    coders = [trainer.coder.parts[0].coder for trainer in trainers]
    with trainers[0].autocast():
        inner = torch.stack([coder.inner(x) for coder, x in zip(coders, inputs, strict=True)])
        rows: list[Tensor] = [coder.W_enc_rows for coder in coders]
        weights = torch.stack(rows)
        pre = product(inner, weights.mT)
    biases: list[Tensor] = [coder.b_enc for coder in coders if coder.b_enc is not None]
    return pre.add_(torch.stack(biases).unsqueeze(1)) if biases else pre
