"""Three runs of the model on the same tokens: clean, spliced (the reconstruction in the site's place), ablated.

Shape letters: B contexts, T positions, V vocabulary. The same positions count in all three runs, and special
positions keep the site's own value in all three, so that the runs differ only in what the coder is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from monosema.core.errors import DataError
from monosema.core.seeds import random_stream
from monosema.metrics import TokenMean, log_probs, token_cross_entropy, token_kl
from monosema.models import LanguageModel
from monosema.models.hooks import EditFunction
from monosema.models.language_model import SiteName

MASKED_FRACTION = 0.15
"""Of an encoder's positions, as in its pre-training (Devlin et al. 2019, section 3.1), but always by the mask token."""

Edits = Mapping[SiteName, EditFunction]
"""By hook name, what is made of a site's value ``[B, T, width]`` in one run."""

_LOG_PROB_ELEMENTS = {"cpu": 2**20}
"""Log-probabilities taken at a time, by device (2**26 where not named)."""


@dataclass(frozen=True)
class LossSums:
    """Losses summed over predicted tokens; two add to the sums of both."""

    ce_clean: TokenMean
    """Cross-entropy of the clean run."""
    ce_spliced: TokenMean
    """Of the spliced run."""
    ce_ablated: TokenMean
    """Of the ablated run."""
    kl: TokenMean
    """``KL(clean || spliced)``."""
    kl_ablated: TokenMean
    """``KL(clean || ablated)``."""

    @classmethod
    def empty(cls) -> LossSums:
        """The sums of no tokens."""
        return cls(*(TokenMean() for _ in fields(cls)))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.ce_clean + other.ce_clean,
            self.ce_spliced + other.ce_spliced,
            self.ce_ablated + other.ce_ablated,
            self.kl + other.kl,
            self.kl_ablated + other.kl_ablated,
        )


@dataclass(frozen=True)
class Task:
    """What the model is asked to predict on one batch."""

    tokens: Tensor
    """``[B, T]`` token ids put in."""
    positions: Tensor
    """``[n]`` positions, in the flattened ``[B * T]``, whose prediction counts."""
    targets: Tensor
    """``[n]`` token ids to predict there."""
    documents: Tensor | None = None
    """``[B, T]`` the number of each position's document, where the model needs it."""


def next_token_task(
    contexts: Tensor, special: Tensor, no_target: Tensor | None = None, documents: Tensor | None = None
) -> Task:
    """Position t predicts token t + 1; counted where position t is not ``special`` and token t + 1 a target.

    A special position keeps the site's own value, so its prediction would be partly clean; a special target (a
    document's end, a new document's start) is not what the model is judged by. ``no_target`` is ``special`` where
    not given.
    """
    no_target = special if no_target is None else no_target
    counted = torch.zeros_like(special)
    counted[:, :-1] = ~special[:, :-1] & ~no_target[:, 1:]
    positions = counted.flatten().nonzero().squeeze(1)
    return Task(contexts, positions, contexts.flatten()[(positions + 1).clamp(max=contexts.numel() - 1)], documents)


def choose_masked(special: Tensor, seed: int) -> Tensor:
    """``[n, T]`` bool: the positions an encoder must predict, ``MASKED_FRACTION`` of those that are not special.

    Drawn for all contexts at once, so that it does not depend on how they are batched.
    """
    drawn = torch.rand(special.shape, generator=random_stream(seed, "evaluation", "masked")) < MASKED_FRACTION
    return drawn.to(special.device) & ~special


def masked_token_task(contexts: Tensor, masked: Tensor, mask_token_id: int, documents: Tensor | None = None) -> Task:
    """Masked positions predict the token that was there."""
    positions = masked.flatten().nonzero().squeeze(1)
    return Task(contexts.masked_fill(masked, mask_token_id), positions, contexts.flatten()[positions], documents)


def compare_runs(
    model: LanguageModel,
    task: Task,
    clean_logits: Tensor,
    spliced: Edits,
    ablated: Edits,
    where: str,
) -> LossSums:
    """The losses of one batch.

    ``clean_logits [B, T, V]`` come from the clean run; ``spliced`` and ``ablated`` are what is done to the sites of
    ``model`` in the other two. Raises ``DataError`` where a loss is not finite, naming the run.
    """
    elements = _LOG_PROB_ELEMENTS.get(clean_logits.device.type, 2**26)
    step = max(1, elements // clean_logits.shape[-1])
    positions, targets = task.positions.to(clean_logits.device), task.targets.to(clean_logits.device)
    clean, clean_loss = [], TokenMean()
    for at, target in zip(positions.split(step), targets.split(step), strict=True):
        log_p = log_probs(clean_logits.flatten(0, 1)[at])
        clean.append(log_p)
        clean_loss = clean_loss + TokenMean.of(token_cross_entropy(log_p, target))
    _require_finite_loss(clean_loss, "clean", where)
    del clean_logits

    def against_clean(edits: Edits, run: str) -> tuple[TokenMean, TokenMean]:
        with model.edits(edits):
            logits = model(task.tokens, documents_BT=task.documents).flatten(0, 1)
        loss, divergence = TokenMean(), TokenMean()
        for log_p, at, target in zip(clean, positions.split(step), targets.split(step), strict=True):
            log_q = log_probs(logits[at])
            loss = loss + TokenMean.of(token_cross_entropy(log_q, target))
            divergence = divergence + TokenMean.of(token_kl(log_p, log_q))
        _require_finite_loss(loss, run, where)
        return loss, divergence

    spliced_loss, divergence = against_clean(spliced, "spliced")
    ablated_loss, divergence_ablated = against_clean(ablated, "ablated")
    return LossSums(clean_loss, spliced_loss, ablated_loss, divergence, divergence_ablated)


def replace_by(value: Tensor) -> EditFunction:
    """The edit that puts ``value [B, T, width]`` in a site's place."""
    return lambda current: value.to(device=current.device, dtype=current.dtype)


def _require_finite_loss(loss: TokenMean, run: str, where: str) -> None:
    if loss.n_tokens and not torch.isfinite(torch.tensor(loss.total)):
        raise DataError(
            f"the cross-entropy of the {run} run is {loss.value} at {where}; the model's logits are not finite there. "
            "Load the model in bfloat16 or float32"
        )
