"""Setting the inference threshold by the L0 it gives on activations the dictionary was not trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from monosema.coders import SparseCoder
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.core.errors import ConfigError, DataError
from monosema.core.peers import explains_options
from monosema.evaluation.activations import ROWS_PER_STEP, row_batches, split_row, unmoved
from monosema.kernels import select_batch_top_k
from monosema.metrics import require_finite


@explains_options
@torch.no_grad()
def calibrate_threshold(
    coder: SparseCoder,
    activations: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    *,
    target_l0: float | None = None,
    n_tokens: int | None = 100_000,
) -> float:
    """Set ``coder``'s threshold in place so that on ``activations`` it has ``target_l0`` active latents a token.

    The threshold is the ``round(target_l0 · n)``-th largest score of all n tokens, exactly, so the mean L0 on them is
    ``target_l0`` less one entry. For TopK, AbsTopK and BatchTopK with
    ``inference="threshold"``.

    Args:
        activations: ``[..., d]`` or an iterable of them, as for ``evaluate``; a stream over held-out tokens, say. A
            stream is left in the state it came in.
        target_l0: the coder's own k by default.
        n_tokens: tokens used at most.

    Returns the threshold. Raises ``ConfigError`` for a coder without one, ``DataError`` where there are no tokens,
    too few positive scores, or an activation that is not finite.
    """
    own = coder.activation
    if not isinstance(own, FixedCountActivation) or own.config.inference != "threshold":
        raise ConfigError(
            f"{coder.config.activation} has no threshold to calibrate; use TopK, AbsTopK or BatchTopK with "
            "inference='threshold'"
        )
    wanted = own.config.k if target_l0 is None else target_l0
    if not 0 < wanted <= coder.d_sae:
        raise ConfigError(f"target_l0 must be above 0 and at most {coder.d_sae}, got {wanted}")
    margin = 4.0
    while True:
        with unmoved(activations):
            kept, floors, n = _largest_scores(coder, own, activations, n_tokens, margin * wanted)
        if n == 0:
            spent = "" if margin == 4.0 else "; they are read more than once: give a list, not an iterator"
            raise DataError(f"calibrate_threshold: no activations were given{spent}")
        count = max(1, round(wanted * n))
        if len(kept) < count:
            raise DataError(f"only {len(kept) / n:.1f} scores a token are positive, {wanted} are wanted")
        threshold = float(kept.kthvalue(len(kept) - count + 1).values)
        if all(floor < threshold for floor in floors):
            break
        margin *= 4  # a batch had more large scores than were kept
    own.set_threshold(threshold)
    return threshold


def _largest_scores(
    coder: SparseCoder,
    own: FixedCountActivation,
    activations: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    n_tokens: int | None,
    per_token: float,
) -> tuple[Tensor, list[float], int]:
    """The largest scores of each batch, the least of each batch that had more, and the number of tokens."""
    kept, floors, n = [torch.zeros(0, dtype=torch.float64)], [0.0], 0
    for index, rows in enumerate(row_batches(activations, ROWS_PER_STEP)):
        rows = rows if n_tokens is None else rows[: n_tokens - n]
        if len(rows) == 0:
            break
        require_finite(f"activations of batch {index}", rows)
        x = split_row(coder, rows, index)[0].to(device=coder.device, dtype=coder.dtype)
        score = own.scores(coder.pre_activations(x), coder.selection_weights())
        budget = min(score.numel(), round(per_token * len(x)))
        latents, least = select_batch_top_k(score, budget)
        kept.append(latents.values.double().cpu())
        if latents.nnz == budget < score.numel():
            floors.append(float(least))
        n += len(x)
    return torch.cat(kept), floors, n
