"""The rows of the table of figures that compare runs of a model: predictions and attention patterns.

Rows are as ``figures.py`` explains. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from monosema.metrics.figure import ANY, AT_LEAST_0, AT_MOST_1, SHARE, Column, figure
from monosema.metrics.scores import ce_loss_score, kl_score

F = TypeVar("F")
"""``float``, or ``float | None`` where a figure may not have been measured."""
N = TypeVar("N")
"""The same of whole numbers."""


@dataclass(frozen=True, kw_only=True)
class AblationLosses:
    """What the predictions lose where the sites are ablated in one way; averages as in ``ModelLosses``."""

    ce: float = figure(
        needs="predictions",
        bounds=AT_LEAST_0,
        of=lambda runs: runs.ablated["ce"],
        flat="ce_ablated",
        column=Column("Cross-entropy, nats per token", "{Ablation}", "with {what} in the site's place"),
    )
    """Cross-entropy of the ablated run."""
    ce_loss_score: float = figure(
        needs="predictions",
        bounds=ANY,  # above 1 where the spliced model predicts better than the clean one
        of=lambda runs: ce_loss_score(runs.clean["ce"], runs.spliced["ce"], runs.ablated["ce"]),
        flat="ce_loss_score",
        column=Column("CE recovered", "of {ablation}", "(ablated - spliced) / (ablated - clean), {ablation} ablation"),
    )
    """``(ce - ce_spliced) / (ce - ce_clean)``."""
    kl: float = figure(needs="predictions", bounds=AT_LEAST_0, of=lambda runs: runs.ablated["kl"], flat="kl_ablated")
    """``KL(clean || ablated)``."""
    kl_score: float = figure(
        needs="predictions",
        bounds=AT_MOST_1,
        of=lambda runs: kl_score(runs.spliced["kl"], runs.ablated["kl"]),
        flat="kl_score",
        column=Column(
            "Predictions", "KL rec. of {ablation}", "(ablated - spliced) / ablated KL, {ablation} ablation", rank=20
        ),
    )
    """``(kl - kl of the spliced run) / kl``."""
    top1_agreement: float = figure(needs="predictions", bounds=SHARE, of=lambda runs: runs.ablated["top1_agreement"])
    """Share of the predictions whose most probable token is the clean run's."""
    pattern_kl: float | None = figure(
        None, needs="patterns", bounds=AT_LEAST_0, of=lambda runs: runs.ablated["kl"], flat="pattern_kl_ablated"
    )
    """``KL(clean || ablated)`` of attention patterns, as in ``Report``."""
    pattern_kl_score: float | None = figure(
        None,
        needs="patterns",
        bounds=AT_MOST_1,
        of=lambda runs: kl_score(runs.spliced["kl"], runs.ablated["kl"]),
        flat="pattern_kl_score",
    )
    """``(pattern_kl - that of the spliced run) / pattern_kl``."""


@dataclass(frozen=True, kw_only=True)
class PredictionFigures(Generic[F, N]):
    """What a model's predictions lose where sites are replaced; means over ``n_predicted_tokens``, in nats."""

    ce_clean: F = figure(
        None,
        label="CE, clean",
        formula="cross-entropy in nats per predicted token of the model alone",
        values="≥ 0",
        group="language model",
        rank=20,
        needs="predictions",
        bounds=AT_LEAST_0,
        of=lambda runs: runs.clean["ce"],
        is_logged=True,
        column=Column("Cross-entropy, nats per token", "Clean", "of the model itself"),
    )
    """Cross-entropy of the model itself, nats per predicted token."""
    ce_spliced: F = figure(
        None,
        label="CE, spliced",
        formula="the same with the site replaced by x̂",
        values="≥ 0",
        better="lowest",
        group="language model",
        rank=20,
        needs="predictions",
        bounds=AT_LEAST_0,
        of=lambda runs: runs.spliced["ce"],
        is_logged=True,
        column=Column("Cross-entropy, nats per token", "Spliced", "with the reconstruction in the site's place"),
    )
    """The same with the reconstruction in the site's place."""
    ce_ablated: F = figure(
        None,
        label="CE, ablated",
        formula="the same with the site replaced by zero (or its mean)",
        values="≥ 0",
        group="language model",
        rank=20,
        needs="predictions",
        bounds=AT_LEAST_0,
        is_logged=True,
    )
    """The same with the site ablated."""
    ce_loss_score: F = figure(
        None,
        label="CE loss score",
        formula="(ce_ablated − ce_spliced) / (ce_ablated − ce_clean)",
        values="any; 1 costs nothing, 0 is as bad as ablation; above 1 where the spliced model predicts the text "
        "better than the model alone",
        better="highest",
        group="language model",
        rank=10,
        needs="predictions",
        bounds=ANY,
        is_logged=True,
    )
    """``(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)``: 1 is no loss, 0 is as bad as ablation."""
    kl: F = figure(
        None,
        label="KL",
        formula="KL(clean ‖ spliced), nats per predicted token",
        values="≥ 0",
        better="lowest",
        group="language model",
        needs="predictions",
        bounds=AT_LEAST_0,
        of=lambda runs: runs.spliced["kl"],
        is_logged=True,
        column=Column("Predictions", "KL", "KL(clean || spliced), nats per predicted token", rank=10),
    )
    """``KL(clean || spliced)``, nats per predicted token."""
    kl_ablated: F = figure(
        None,
        label="KL, ablated",
        formula="KL(clean ‖ ablated), nats per predicted token",
        values="≥ 0",
        group="language model",
        needs="predictions",
        bounds=AT_LEAST_0,
    )
    """``KL(clean || ablated)``, nats per predicted token."""
    kl_score: F = figure(
        None,
        label="KL score",
        formula="(kl_ablated − kl) / kl_ablated",
        values="≤ 1",
        better="highest",
        group="language model",
        rank=30,
        needs="predictions",
        bounds=AT_MOST_1,
        is_logged=True,
    )
    """``(kl_ablated - kl) / kl_ablated``."""
    top1_agreement: F = figure(
        None,
        label="top-1 agreement",
        formula="share of the predictions whose most probable token is the clean run's, with x̂ in the site's place",
        values="0 to 1",
        better="highest",
        group="language model",
        needs="predictions",
        bounds=SHARE,
        of=lambda runs: runs.spliced["top1_agreement"],
        is_logged=True,
        column=Column("Predictions", "Top-1", "share of the predictions whose most probable token is the clean run's"),
    )
    """Share of the predictions whose most probable token is the clean run's, with the reconstruction in place."""
    n_predicted_tokens: N = figure(
        None,
        label="predicted tokens",
        formula="tokens over which cross-entropy and KL are averaged",
        group="data",
        rank=20,
        needs="predictions",
        column=Column("Tokens", "Predicted", "tokens over which cross-entropy and KL are averaged"),
    )
    """Tokens over which cross-entropy and KL are averaged."""


@dataclass(frozen=True, kw_only=True)
class PatternFigures:
    """What happens to the attention patterns that the site written decides: where the site is ``attn.hook_q``,
    ``attn.hook_k`` or one head of either. None where no pattern was compared."""

    pattern_kl: float | None = figure(
        None,
        label="KL of attention",
        formula="of dictionaries of queries or keys: KL(A ‖ A′) = Σ_k A_k ln(A_k / A′_k) of a query's attention over "
        "keys, A of the clean run, A′ of the spliced one; nats, mean over queries and heads; see below",
        values="≥ 0",
        better="lowest",
        group="attention",
        needs="patterns",
        bounds=AT_LEAST_0,
        of=lambda runs: runs.spliced["kl"],
    )
    """``KL(clean || spliced)`` of the attention patterns that the site written decides: nats per query, the mean over
    the heads concerned."""
    pattern_kl_ablated: float | None = figure(
        None,
        label="KL of attention, ablated",
        formula="the same with A′ of the ablated run",
        values="≥ 0",
        group="attention",
        needs="patterns",
        bounds=AT_LEAST_0,
    )
    """``KL(clean || ablated)`` of these patterns."""
    pattern_kl_score: float | None = figure(
        None,
        label="KL score of attention",
        formula="(pattern_kl_ablated − pattern_kl) / pattern_kl_ablated",
        values="≤ 1; 0 is as bad as ablation",
        better="highest",
        group="attention",
        rank=10,
        needs="patterns",
        bounds=AT_MOST_1,
    )
    """``(pattern_kl_ablated - pattern_kl) / pattern_kl_ablated``: 1 is no change, 0 is as bad as ablation."""
    n_pattern_queries: int | None = figure(
        None, label="queries", formula="queries in these means", group="attention", needs="patterns"
    )
    """Queries over which they are averaged: positions that are not special and have keys to choose among."""
