"""``evaluate_replacement``: the language model with coders in place of its MLPs, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.devices import say_if_threads_spin
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options
from monosema.core.progress import Progress
from monosema.data import Tokens, TokenSplit
from monosema.data.trained_on import model_notes
from monosema.evaluation.contexts import evaluation_contexts, overlap_with_training
from monosema.evaluation.findings import CLEAN, SPLICED
from monosema.evaluation.losses import few_documents, losses_of, nothing_predicted
from monosema.evaluation.measure import check_counts, evaluation_mode, require_enough, require_finite_weights
from monosema.evaluation.predictions import CleanPredictions
from monosema.evaluation.predictor import Predictor
from monosema.evaluation.replaced import LayerSums, ReplacedRun, Replacement, replacement_of
from monosema.evaluation.replacement_report import ReplacedLayer, ReplacementReport
from monosema.evaluation.report import ModelLosses, Overlap
from monosema.evaluation.runs import batches, fitting_batch_size
from monosema.evaluation.tasks import choose_masked, mask_token_id, masked_token_task, next_token_task, no_task
from monosema.metrics import GroupSums
from monosema.models import LanguageModel
from monosema.models.suffix import Suffix

_LOSSES = {
    "replacement_score": "ce_loss_score",
    "ce_clean": "ce_clean",
    "ce_replaced": "ce_spliced",
    "ce_zero": "ce_ablated",
    "kl": "kl",
    "kl_zero": "kl_ablated",
    "top1_agreement": "top1_agreement",
}
"""By field of ``ReplacementReport``, that of ``ModelLosses``."""


@explains_options
def evaluate_replacement(
    coders: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary],
    model: LanguageModel,
    tokens: Tokens | TokenSplit | Tensor,
    *,
    n_tokens: int | None = 200_000,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ReplacementReport:
    """``(CE_zero - CE_replaced) / (CE_zero - CE_clean)``: what is left of the model with its MLPs replaced.

    In the replaced run every site that a coder writes becomes that coder's output, ``ŷ = f(x) W_dec + b_dec
    [+ x W_skip]``, where x is the site it reads *in this run*, after the layers before have been replaced; the latents
    of layer l of a cross-layer transcoder write to all later layers, ``ŷ^t = Σ_{l ≤ t} f^l W_dec^{l→t} + b_dec^t``.
    In the zero run the same sites are zero. At special positions the model's own MLPs stay in both. Predictions are
    compared as in ``evaluate``: those of masked tokens for an encoder.

    "Replacement model" in Ameisen et al. 2025 (circuit tracing), without error terms. Which MLPs are replaced is which
    sites the coders write; a note names the others. Coders of other sites, SAEs too, are put in place alike.

    Args:
        coders: transcoders of one site each, cross-layer transcoders, or both; a sequence, a mapping or one alone.
        model: the language model they read.
        tokens: a ``Tokens`` (its held-out split is used), one split, or token ids ``[n, T]``.
        n_tokens: tokens to use, in whole contexts spread evenly over the split; None for all.
        batch_size: contexts in a forward pass; by default what fits well.
        seed: which positions of an encoder's contexts are masked.
        progress: show a bar on a terminal, a logged line elsewhere.

    Raises:
        ConfigError: no coder, two that write one site, one that joins several sites or names none, or an encoder
            without a mask token.
        UnknownNameError: the model has no such site.
        UserError: a site cannot be written, or the model computes it before the one its coder reads.
        ShapeError: a coder's width is not the site's, or the contexts do not fit the model.
        DataError: an activation, an output or a loss is not finite, or there are too few tokens.
    """
    check_counts(n_tokens=n_tokens, batch_size=batch_size)
    replacement = replacement_of(_listed(coders), model)
    for coder in replacement.coders:
        require_finite_weights(coder)
        say_if_threads_spin(coder.device)
    models = {"": model}
    if reason := no_task(models):
        raise ConfigError(f"nothing to predict: {reason}; load the model with its tokenizer")
    chosen = evaluation_contexts(tokens, [model], n_tokens, None)
    mask = mask_token_id(models)
    masked = None if mask is None else choose_masked(chosen.special, seed)
    runs, layers = dict[str, GroupSums](), list[LayerSums]()
    bar = Progress("evaluate", chosen.contexts.numel(), enabled=progress)
    with bar, evaluation_mode(model.hf, *replacement.coders):
        written = [layer.written for layer in replacement.layers]
        edited = {*written, *(layer.read for layer in replacement.layers)}
        predictor, suffix = Predictor(model, edited), Suffix(model, edited)
        starts = [suffix.start_name] if suffix.start_name else []
        size = batch_size or fitting_batch_size(models, chosen.split.context_size)
        for index, part in enumerate(batches(chosen, size)):
            where = f"batch {index}"
            contexts, special, documents = chosen.contexts[part], chosen.special[part], chosen.documents_of(part)
            if masked is None or mask is None:
                task = next_token_task(contexts, special, chosen.no_target[part], documents)
            else:
                task = masked_token_task(contexts, masked[part], mask, documents)
            logits, values = predictor.predict(task, dict.fromkeys([*written, *starts]))
            clean = CleanPredictions(logits, task, where)
            run = ReplacedRun(replacement, ~special, values, where)
            terms = {CLEAN: clean.terms}
            for name, edits in ((SPLICED, run.edits()), ("zero", replacement.zeros(~special))):
                with suffix.resumed(values[starts[0]] if starts else None):
                    logits, _ = predictor.predict(task, edits=edits)
                terms[name] = clean.compared(logits, name)
            groups = chosen.groups[part].flatten()[task.positions]
            for name, each in terms.items():
                sums = GroupSums.of(each, groups, chosen.n_groups)
                runs[name] = runs[name] + sums if name in runs else sums
            layers = [a + b for a, b in zip(layers, run.sums(), strict=True)] if layers else list(run.sums())
            bar.advance(contexts.numel())
    require_enough(layers[0].sparsity.n_tokens)
    return _report(
        replacement,
        model,
        losses_of(runs, ["zero"]),
        layers,
        n_special_positions=int(chosen.special.sum()),
        split=chosen.split,
        overlap=_overlap([overlap_with_training(coder, tokens, chosen.split) for coder in replacement.coders]),
        notes=[
            *few_documents(runs[CLEAN].n_with_tokens),
            *(["the figures of the layers are those of masked text"] if masked is not None else []),
            *dict.fromkeys(note for coder in replacement.coders for note in model_notes(coder, model)),
        ],
    )


def _report(
    replacement: Replacement,
    model: LanguageModel,
    losses: ModelLosses,
    sums: Sequence[LayerSums],
    *,
    n_special_positions: int,
    split: TokenSplit,
    overlap: Overlap,
    notes: list[str],
) -> ReplacementReport:
    notes = [*notes, "special positions keep the model's own MLPs in the replaced and the zero run"]
    notes += nothing_predicted(losses)
    mlps = [name for name in model.hook_names if name.endswith(".hook_mlp_out")]
    written = {layer.written for layer in replacement.layers}
    kept = [name for name in mlps if name not in written]
    if kept and len(kept) < len(mlps):
        notes.append(f"{len(kept)} of the model's {len(mlps)} MLPs stay as they are: {', '.join(kept)}")
    if losses.ce_ablated <= losses.ce_clean:
        notes.append("zero in these sites' place does not raise the loss, so replacement_score means nothing here")
    if overlap == "same tokens":
        notes.append("a coder was trained on these very tokens; evaluate on a held-out split")
    return ReplacementReport(
        **{name: getattr(losses, own) for name, own in _LOSSES.items()},
        l0=sum(each.sparsity.l0 for each in sums),
        layers=tuple(
            ReplacedLayer(
                hook_name=layer.read,
                hook_name_out=layer.written,
                d_sae=replacement.encoder(layer).d_sae,
                l0=each.sparsity.l0,
                fve=each.reconstruction.fve,
            )
            for layer, each in zip(replacement.layers, sums, strict=True)
        ),
        n_tokens=sums[0].sparsity.n_tokens,
        n_special_positions=n_special_positions,
        n_predicted_tokens=losses.n_predicted_tokens,
        model_name=model.name,
        split=split.name,
        tokens_fingerprint=split.fingerprint,
        overlap=overlap,
        notes=tuple(notes),
        intervals={name: losses.intervals[own] for name, own in _LOSSES.items() if own in losses.intervals},
    )


def _listed(coders: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary]) -> list[Dictionary]:
    if isinstance(coders, Mapping):
        return list(coders.values())
    return list(coders) if isinstance(coders, Sequence) else [coders]


def _overlap(each: Sequence[Overlap]) -> Overlap:
    """Of all coders together."""
    if "same tokens" in each:
        return "same tokens"
    return "unknown" if "unknown" in each else "none"
