"""Small coders, sparse synthetic rows, and a trainer's state as one comparable dictionary."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from monosema.coders import SAE, AbsTopK, ActivationConfig, BatchTopK, Gated, JumpReLU, ReLU, TanhReLU, TopK
from monosema.training import L0, L1, AuxK, Trainer, TrainingConfig

D, F, BATCH = 8, 24, 16
ACTIVATIONS: dict[str, ActivationConfig] = {
    "TopK": TopK(k=3),
    "AbsTopK": AbsTopK(k=3),
    "TanhReLU": TanhReLU(),
    "BatchTopK": BatchTopK(k=2.5),
    "ReLU": ReLU(),
    "JumpReLU": JumpReLU(init_threshold=0.3, bandwidth=0.4),
    "Gated": Gated(),
}
SPARSITY: dict[str, L1 | L0 | None] = {
    "TopK": None,
    "AbsTopK": None,
    "TanhReLU": L1(coefficient=0.3, warmup_fraction=0.2),
    "BatchTopK": None,
    "ReLU": L1(coefficient=0.3, warmup_fraction=0.2),
    "JumpReLU": L0(coefficient=0.2, warmup_fraction=0.2),
    "Gated": L1(coefficient=0.3, warmup_fraction=0.2),
}


def batches(
    n: int, width: int = D, seed: int = 0, rows: int = BATCH, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Sums of a few of 2·width fixed directions, with an offset, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    made = []
    for _ in range(n):
        weights = torch.rand(rows, 2 * width, generator=generator, dtype=torch.float64)
        weights = weights * (torch.rand(rows, 2 * width, generator=generator, dtype=torch.float64) < 0.25)
        noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        made.append((weights @ directions + 0.1 * noise + 0.5).to(dtype))
    return made


def make_trainer(name: str = "BatchTopK", n_steps: int = 30, rows: int = BATCH, **changes: Any) -> Trainer:
    options: dict[str, Any] = {
        "tokens": n_steps * rows,
        "lr": 0.01,
        "sparsity": SPARSITY[name],
        "revive": AuxK(coefficient=1 / 32, dead_after_tokens=2 * rows, k=3),
        "warmup_fraction": 0.2,
        "decay_fraction": 0.3,
    }
    coder = SAE(D, F, activation=ACTIVATIONS[name], dtype=changes.pop("dtype", "float64"), seed=1)
    return Trainer(coder, TrainingConfig(**{**options, **changes}), rows)


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Everything ``state_dict`` returns, copied, tensors and plain values in one dictionary."""
    tensors, plain = trainer.state_dict()
    return {**{name: tensor.clone() for name, tensor in tensors.items()}, "plain": json.loads(json.dumps(plain))}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names under which two snapshots differ by a bit."""
    assert a.keys() == b.keys()
    return [
        name
        for name, value in a.items()
        if not (torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name])
    ]
