"""What changes with the step: learning rate and sparsity warm-up. Pure functions of the step."""

from __future__ import annotations

import math

from monosema.core.errors import ConfigError


def lr_factor(
    step: int,
    n_steps: int,
    *,
    warmup_fraction: float,
    decay_fraction: float,
    kind: str = "constant",
    end_fraction: float = 0.1,
    cycles: int = 1,
) -> float:
    """The share of the peak learning rate at ``step`` (0-based): warm-up, a main part, linear decay to zero.

    ``min(1, (step+1)/W, (n_steps-step)/D)`` with ``W = warmup_fraction·n_steps``, ``D = decay_fraction·n_steps``, times
    the main part's value between them: 1 for ``constant``; ``linear`` and ``cosine`` (half a period) fall from 1 to
    ``end_fraction``; ``cosine_restarts`` does so ``cycles`` times. During the decay the main part keeps its last value.
    """
    rise = (step + 1) / max(1.0, warmup_fraction * n_steps)
    fall = (n_steps - step) / max(1.0, decay_fraction * n_steps)
    edge = min(1.0, rise, fall)
    if kind == "constant":
        return edge
    start, length = warmup_fraction * n_steps, (1 - warmup_fraction - decay_fraction) * n_steps
    done = min(1.0, max(0.0, (step - start) / max(1.0, length)))
    if kind == "linear":
        return edge * (1 - (1 - end_fraction) * done)
    if kind == "cosine_restarts" and done < 1 - 1e-9:
        done = (done * cycles + 1e-9) % 1  # a cycle's first step belongs to it, whatever the rounding
    elif kind not in ("cosine", "cosine_restarts"):
        raise ConfigError(f"the kind of schedule is constant, linear, cosine or cosine_restarts, got {kind!r:.80}")
    return edge * (end_fraction + (1 - end_fraction) * 0.5 * (1 + math.cos(math.pi * done)))


def rewarm_factor(steps_since: int, n_steps: int, floor: float) -> float:
    """Linear rise from ``floor`` to 1 over ``n_steps`` after a resampling."""
    return 1.0 if n_steps <= 0 else min(1.0, floor + (1 - floor) * steps_since / n_steps)


def warmup_factor(step: int, n_steps: int, warmup_fraction: float) -> float:
    """Linear rise from 0 at step 0 to 1 after ``warmup_fraction`` of the run."""
    steps = warmup_fraction * n_steps
    return 1.0 if steps <= 0 else min(1.0, step / steps)


def automatic_beta2(n_steps: int) -> float:
    """Adam's β₂ for a run of ``n_steps``: ``1 − 1/m`` with ``m = n_steps / 20``, at least 20 and at most 1,000.

    Gradients of a dictionary shrink by orders of magnitude within a few hundred steps. A memory as long as the run
    keeps dividing by the first ones, and the steps become too small.
    """
    return 1 - 1 / min(1000.0, max(20.0, n_steps / 20))


def automatic_lr(d_sae: int, batch_size: int, n_steps: int) -> float:
    """Adam's peak learning rate for a run of ``n_steps`` batches.

    ``2e-4 · √(2^14 / d_sae)``, the OpenAI rule for long runs (arXiv 2406.04093, appendix A.3), times
    ``√(10^5 / n_steps)`` for runs under 10^5 steps and times ``√(batch_size / 2048)`` for batches under 2048; at most
    8e-3. Measured beside fixed rates in ``benchmarks/automatic_lr.py``.
    """
    length = max(1.0, math.sqrt(1e5 / max(1, n_steps)))
    batch = min(1.0, math.sqrt(batch_size / 2048))
    return min(8e-3, 2e-4 * math.sqrt(2**14 / d_sae) * length * batch)
