"""What changes with the step: learning rate and sparsity warm-up. Pure functions of the step."""

from __future__ import annotations

import math


def lr_factor(step: int, n_steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Warm-up, constant, linear decay: the share of the peak learning rate at ``step`` (0-based).

    ``min(1, (step+1)/W, (n_steps-step)/D)`` with ``W = warmup_fraction·n_steps``, ``D = decay_fraction·n_steps``; the
    last step uses ``1/D`` of the peak.
    """
    rise = (step + 1) / max(1.0, warmup_fraction * n_steps)
    fall = (n_steps - step) / max(1.0, decay_fraction * n_steps)
    return min(1.0, rise, fall)


def warmup_factor(step: int, n_steps: int, warmup_fraction: float) -> float:
    """Linear rise from 0 at step 0 to 1 after ``warmup_fraction`` of the run."""
    steps = warmup_fraction * n_steps
    return 1.0 if steps <= 0 else min(1.0, step / steps)


def automatic_lr(d_sae: int, batch_size: int, n_steps: int) -> float:
    """Adam's peak learning rate for a run of ``n_steps`` batches.

    ``2e-4 · √(2^14 / d_sae)``, the OpenAI rule for long runs (arXiv 2406.04093, appendix A.3), times
    ``√(10^5 / n_steps)`` for runs under 10^5 steps and times ``√(batch_size / 2048)`` for batches under 2048; at most
    8e-3. Measured beside fixed rates in ``benchmarks/automatic_lr.py``.
    """
    length = max(1.0, math.sqrt(1e5 / max(1, n_steps)))
    batch = min(1.0, math.sqrt(batch_size / 2048))
    return min(8e-3, 2e-4 * math.sqrt(2**14 / d_sae) * length * batch)
