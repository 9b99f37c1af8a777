"""``evaluate``: a coder or several, as they are, on text they were not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.devices import say_if_threads_spin
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options
from monosema.core.progress import doing
from monosema.core.words import counted
from monosema.data import Tokens, TokenSplit
from monosema.data.dictionary_sites import Models, by_name, sites_of
from monosema.data.outliers import NormRule
from monosema.data.recorded_outliers import OutlierMultiple, rule_for
from monosema.data.trained_on import model_notes
from monosema.evaluation.activations import measure_activations
from monosema.evaluation.comparison import Reports
from monosema.evaluation.contexts import evaluation_contexts, overlap_with_training
from monosema.evaluation.findings import CLEAN, ROW_TERMS, Findings
from monosema.evaluation.latent_table import latent_table
from monosema.evaluation.losses import few_documents, losses_of, nothing_predicted, with_patterns
from monosema.evaluation.measure import (
    check_counts,
    evaluation_mode,
    require_enough,
    require_finite_weights,
)
from monosema.evaluation.report import Ablation, ModelLosses, Report
from monosema.evaluation.runs import ModelRuns, Subject
from monosema.evaluation.tasks import mask_token_id, no_task
from monosema.metrics import RELIABLE_DEAD_TOKENS, jackknife_interval, left_out_variation
from monosema.metrics.figure import Interval, Measured, figures_of
from monosema.metrics.figures import FIGURES, ActivationFigures, names_needing

Activations = Tensor | np.ndarray | Iterable[Tensor | np.ndarray]
"""``[..., d]``, or an iterable of such."""


@explains_options
def evaluate(
    coder: Dictionary,
    model: Models | None = None,
    tokens: Tokens | TokenSplit | Tensor | None = None,
    *,
    activations: Activations | None = None,
    n_tokens: int | None = 200_000,
    n_loss_tokens: int | None = None,
    n_batches: int | None = None,
    batch_size: int | None = None,
    ablation: Ablation | Literal["both"] = "both",
    losses: bool = True,
    weights: bool = True,
    seed: int = 0,
    outlier_norm_multiple: OutlierMultiple = "recorded",
    progress: bool = True,
) -> Report:
    """Every metric of ``coder``, with its weights and its inference rule as they are.

    With a model and tokens, the site is captured, reconstructed and replaced: beside the clean run there is a spliced
    one (the site becomes the reconstruction of its clean value) and ablated ones (zero; its mean). At special
    positions the site keeps its own value in all of them; they are not measured, and a prediction counts only where
    neither the position nor its target is special. A row whose norm is far above the median is in none of the figures
    of activations but ``fve_all_rows``; its site keeps its own value in all of the runs, and its prediction counts. An
    encoder predicts masked tokens instead (15 % of the positions, the mask token at each); what is measured on its
    activations is measured on unmasked text. Figures that depend on text have a 95 % confidence interval by document
    (``Report.intervals``).

    A model without a language-model head (a reward model, a bare ``AutoModel``) predicts nothing: its report has no
    losses, as with ``losses=False``, and a note that says so.

    Of a dictionary of queries or keys, one head's or all, the attention patterns of the heads concerned are compared
    as well (``pattern_kl``); that block's eager attention forms them, whatever attention the model runs.

    Of a coder over several models each is run by itself, clean, spliced and ablated at its own sites, and has a score
    of its own (``Report.models``); the reconstruction is that of the sites of all of them together.

    With ``activations``, everything that needs no model is measured.

    Args:
        coder: any coder; a transcoder is compared with the site it writes. Several: ``evaluate_many``.
        model: the language model the coder reads; several by name, for sites such as ``base:blocks.2.hook_resid_post``.
        tokens: a ``Tokens`` (its held-out split is used), one split, or token ids ``[n, T]``.
        activations: instead of model and tokens, a tensor ``[..., d]``, an iterable of them, or an activation cache.
            ``d`` is ``d_in``, or ``d_in + d_out`` where the coder writes another site than it reads. A stream is left
            in the state it came in.
        n_tokens: tokens to use, in whole contexts spread evenly over the split (of ``activations``, the first rows);
            None for all (an endless stream then never ends).
        n_loss_tokens: so many of them, again spread evenly, are run spliced and ablated as well, which is most of the
            work; None for all. ``n_predicted_tokens`` of the report counts the predictions compared.
        n_batches: of ``activations``, what at most so many tensors of the iterable hold.
        batch_size: contexts in a forward pass (rows in a step for ``activations``); by default what fits well.
        ablation: ``"zero"``, ``"mean"`` (the site's mean over the tokens run ablated), or ``"both"``; ``ce_ablated``
            and the scores beside it are those of zero then.
        losses: False leaves out cross-entropy and KL, attention patterns', too, and with them the spliced and ablated
            runs.
        weights: False leaves out the figures of the weights (cosines among all latents) and the table of latents.
        seed: which positions of an encoder's contexts are masked.
        outlier_norm_multiple: a row whose norm at a site exceeds so many times the median there is left out: what the
            dictionary was trained with, by default, and 10 where it does not say. A dictionary that records no median
            gets that of the first 4,096 rows. None leaves no row out.
        progress: show a bar on a terminal, a logged line elsewhere.

    Raises:
        ConfigError: neither or both of (model, tokens) and activations are given, or the coder names no site, or
            sites of other models.
        UnknownNameError: the model has no such site.
        ShapeError: the coder's width is not the site's, or the contexts do not fit the model.
        DataError: a weight, an activation, a reconstruction or a loss is not finite, or there are too few tokens.

    No global random state, training flag or gradient is touched.
    """
    return evaluate_many(
        {"": coder},
        model,
        tokens,
        activations=activations,
        n_tokens=n_tokens,
        n_loss_tokens=n_loss_tokens,
        n_batches=n_batches,
        batch_size=batch_size,
        ablation=ablation,
        losses=losses,
        weights=weights,
        seed=seed,
        outlier_norm_multiple=outlier_norm_multiple,
        progress=progress,
    )[""]


@explains_options
def evaluate_many(
    coders: Mapping[str, Dictionary],
    model: Models | None = None,
    tokens: Tokens | TokenSplit | Tensor | None = None,
    *,
    activations: Activations | None = None,
    n_tokens: int | None = 200_000,
    n_loss_tokens: int | None = None,
    n_batches: int | None = None,
    batch_size: int | None = None,
    ablation: Ablation | Literal["both"] = "both",
    losses: bool = True,
    weights: bool = True,
    seed: int = 0,
    outlier_norm_multiple: OutlierMultiple = "recorded",
    progress: bool = True,
) -> Reports:
    """``evaluate`` of several dictionaries on the same tokens: by name, the report that each has alone.

    What does not depend on a dictionary is done once for all of them. A batch costs one forward pass, one pass for each
    ablation of each site and one for each dictionary, and those begin at the block of the site edited; where
    attention patterns are compared, each of these and the clean run cost one block's attention more. Where a dictionary
    records no median norm, the first 4,096 positions are captured once more.
    Arguments and errors are those of ``evaluate``; the dictionaries may belong to several sites. The result is a
    ``dict`` that prints as a table.
    """
    check_counts(n_tokens=n_tokens, n_loss_tokens=n_loss_tokens, n_batches=n_batches, batch_size=batch_size)
    ablations = ablations_of(ablation)
    if not coders:
        raise ConfigError("no coder given: name at least one")
    for coder in coders.values():
        require_finite_weights(coder)
        say_if_threads_spin(coder.device)
    rules = [rule_for(coder, outlier_norm_multiple) for coder in coders.values()]
    if activations is not None:
        if model is not None or tokens is not None:
            raise ConfigError("give either activations, or model and tokens, not both")
        with evaluation_mode(*coders.values()):
            found = measure_activations([*coders.values()], activations, n_tokens, batch_size, n_batches, rules)
        notes = ["no cross-entropy or KL: they need model and tokens"]
        return Reports(
            (name, _report(coder, own, rule=rule, weights=weights, split="activations", notes=notes))
            for (name, coder), own, rule in zip(coders.items(), found, rules, strict=True)
        )
    if model is None or tokens is None:
        raise ConfigError("evaluate needs evaluate(coder, model, tokens), or evaluate(coder, activations=...)")
    if n_batches is not None:
        raise ConfigError("n_batches counts tensors of activations; of text use n_tokens")

    models = by_name(model)
    notes = []
    if not losses:
        notes.append("no cross-entropy or KL: left out as asked (losses=False)")
    elif reason := no_task(models):
        losses = False
        notes.append(f"no cross-entropy or KL: {reason}")
    chosen = evaluation_contexts(tokens, list(models.values()), n_tokens, n_loss_tokens if losses else 0)
    subjects = [
        Subject(coder, sites_of(coder, models, to_be_written=losses), rule)
        for coder, rule in zip(coders.values(), rules, strict=True)
    ]
    with evaluation_mode(*coders.values(), *(each.hf for each in models.values())):
        with doing("preparing the evaluation", enabled=progress):
            runs = ModelRuns(
                subjects,
                models,
                chosen,
                batch_size=batch_size,
                ablations=ablations,
                mask_token_id=mask_token_id(models) if losses else None,
                seed=seed,
            )
        found = runs.measure(progress)
    reports = {
        name: _report(
            coder,
            own,
            _losses(own, ablations),
            rule=subject.rule,
            weights=weights,
            notes=[*notes, *runs.notes(subject), *model_notes(coder, model)],
            ablation=ablations[0] if losses else None,
            model_name=", ".join(f"{key}: {each.name}" if key else each.name for key, each in models.items()),
            split=chosen.split.name,
            tokens_fingerprint=chosen.split.fingerprint,
            overlap=overlap_with_training(coder, tokens, chosen.split),
            n_special_positions=int(chosen.special.sum()),
            n_documents=chosen.n_documents,
        )
        for (name, coder), subject, own in zip(coders.items(), subjects, found, strict=True)
    }
    return Reports(reports)


def _outlier_note(n_outliers: int, n_tokens: int, rule: NormRule) -> str:
    """What a reader of figures must know where rows were left out; ``rule`` is as ``rule_for`` gives it."""
    median = "" if rule.medians else "; the dictionary records no median: that of the first rows was taken"
    n = n_tokens + n_outliers
    return (
        f"{n_outliers:,} of {counted(n, 'row')} ({n_outliers / n:.2%}) have a norm above "
        f"{rule.multiple:g} times the median and are in no figure of the activations but fve_all_rows{median}"
    )


def ablations_of(ablation: str) -> tuple[Ablation, ...]:
    """Those that an option asks for, that of the flat fields first; ``ConfigError`` for another word."""
    if ablation == "both":
        return ("zero", "mean")
    for known in get_args(Ablation):
        if ablation == known:
            return (known,)
    raise ConfigError(f"ablation must be 'zero', 'mean' or 'both', got {ablation!r}")


def _losses(found: Findings, ablations: Sequence[Ablation]) -> dict[str, ModelLosses]:
    """By model."""
    losses = {key: losses_of(sums, ablations) for key, sums in found.runs.items()}
    if not found.patterns:
        return losses
    return {key: with_patterns(each, found.patterns, ablations) for key, each in losses.items()}


def _report(
    coder: Dictionary,
    found: Findings,
    losses: Mapping[str, ModelLosses] | None = None,
    *,
    rule: NormRule | None,
    weights: bool,
    notes: Sequence[str],
    **provenance: Any,
) -> Report:
    """The report of what was found; ``provenance`` are fields of ``Report`` that say on what."""
    reconstruction, sparsity, losses = found.rows.reconstruction, found.rows.sparsity, losses or {}
    require_enough(sparsity.n_tokens)
    n_outliers = found.outliers.n_tokens
    if rule is not None and n_outliers:
        notes = [*notes, _outlier_note(n_outliers, sparsity.n_tokens, rule)]
    table = latent_table(coder, found.latents, sparsity.n_tokens) if weights else None
    alone = losses.get("")
    measured = _measured(found)
    of_weights: dict[str, Any] = {name: table.mean(name) for name in names_needing("weights") if table is not None}
    return Report(
        **{name: row.of(measured) for name, row in figures_of(ActivationFigures).items() if row.of is not None},
        n_outlier_rows=None if rule is None else n_outliers,
        outlier_norm_multiple=None if rule is None else rule.multiple,
        hook_name=coder.hook_name or "",
        hook_name_out=coder.hook_name_out or "",
        notes=(*notes, *_notes(found, losses, provenance.get("overlap"))),
        firing_density=sparsity.firing_density,
        fve_per_dimension=reconstruction.fve_per_dimension,
        fve_per_site=_fve_per_site(coder, found),
        pattern_kl_per_position={run: each.per_position for run, each in found.patterns.items()} or None,
        intervals={**_row_intervals(found, measured), **(alone.intervals if alone else {})},
        latents=table,
        models=None if alone else losses or None,
        ablations=None if alone is None else alone.ablations,
        **of_weights,
        **{name: getattr(alone, name) for name in names_needing("predictions", "patterns") if alone is not None},
        **provenance,
    )


def _notes(found: Findings, losses: Mapping[str, ModelLosses], overlap: str | None) -> list[str]:
    """What a reader of the numbers must know."""
    notes, sparsity = [], found.rows.sparsity
    if found.rows.reconstruction.fve < 0:
        notes.append(
            "fve is below 0, so the reconstruction is worse than the mean of the activations; check that the model, "
            "the site and the scaling are those the coder was trained on"
        )
    if losses:
        notes.append("special positions keep the site's own value in the clean, spliced and ablated runs")
    for key, each in losses.items():
        of_model = f" of {key}" if key else ""
        notes += nothing_predicted(each, of_model)
        notes += [
            f"{name} ablation of the site does not raise the loss{of_model}, so its ce_loss_score means nothing here"
            for name, of_ablation in each.ablations.items()
            if of_ablation.ce <= each.ce_clean
        ]
    groups = [found.terms, *(run[CLEAN] for run in found.runs.values())]
    notes += few_documents(min((n for each in groups if (n := each.n_with_tokens)), default=0))
    if not sparsity.dead_fraction_reliable:
        notes.append(
            f"dead_fraction counts silence on {counted(sparsity.n_tokens, 'token')} only; below "
            f"{RELIABLE_DEAD_TOKENS:,} a "
            "latent may merely be rare"
        )
    if overlap == "same tokens":
        notes.append("the coder was trained on these very tokens; evaluate on a held-out split")
    return notes


def _measured(found: Findings) -> Measured:
    """What the figures of activations are made of."""
    rows, outliers = found.rows, found.outliers
    return Measured(
        reconstruction=rows.reconstruction,
        all_rows=rows.reconstruction + outliers if outliers.n_tokens else None,
        sparsity=rows.sparsity,
        terms=dict(zip(ROW_TERMS, found.terms.sums.sum(0).tolist(), strict=True)),
    )


def _row_intervals(found: Findings, measured: Measured) -> dict[str, Interval]:
    """Of the figures of activations, where documents are known."""
    rest = dict(zip(ROW_TERMS, found.terms.left_out.unbind(1), strict=True))
    rest["variation"] = left_out_variation(found.deviations)
    d_sae = len(measured.sparsity.firings)
    intervals = {
        name: jackknife_interval(row.of(measured), row.left_out(rest), row.bounds_of(d_sae))
        for name, row in FIGURES.items()
        if row.of is not None and row.left_out is not None
    }
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _fve_per_site(coder: Dictionary, found: Findings) -> dict[str, float] | None:
    """By the coder's name of each site written, or by its number; None where there is one."""
    sites = found.rows.sites
    if not sites:
        return None
    return {name: site.fve for name, site in zip(coder.names_written(len(sites)), sites, strict=True)}
