"""``evaluate``: one coder, as it is, on text it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError
from monosema.core.progress import Progress
from monosema.data import Tokens, TokenSplit
from monosema.evaluation.contexts import choose_contexts, overlap_with_training
from monosema.evaluation.losses import LossSums
from monosema.evaluation.measure import RowSums, evaluation_mode, measure_activations, require_enough
from monosema.evaluation.report import Ablation, ModelLosses, Report
from monosema.evaluation.runs import ModelRuns, fitting_batch_size
from monosema.evaluation.sites import Models, by_name, sites_of
from monosema.metrics import RELIABLE_DEAD_TOKENS, ce_loss_score, kl_score
from monosema.models import LanguageModel


def evaluate(
    coder: Dictionary,
    model: Models | None = None,
    tokens: Tokens | TokenSplit | Tensor | None = None,
    *,
    activations: Tensor | np.ndarray | Iterable[Tensor | np.ndarray] | None = None,
    n_tokens: int | None = 200_000,
    n_loss_tokens: int | None = None,
    batch_size: int | None = None,
    ablation: Ablation = "zero",
    losses: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Every metric of ``coder``, with its weights and its inference rule as they are.

    With a model and tokens, the site is captured, reconstructed and replaced in three runs: clean, spliced (the site
    becomes the reconstruction of its clean value) and ablated. At special positions the site keeps its own value in
    all three; they are not measured, and a prediction counts only where neither the position nor its target is
    special. An encoder predicts masked tokens instead (15 % of the positions, the mask token at each); what is
    measured on its activations is measured on unmasked text.

    Of a coder over several models each is run by itself, clean, spliced and ablated at its own sites, and has a score
    of its own (``Report.models``); the reconstruction is that of the sites of all of them together.

    With ``activations``, everything that needs no model is measured.

    Args:
        coder: any coder; a transcoder is compared with the site it writes.
        model: the language model the coder reads; several by name, for sites such as ``base:blocks.2.hook_resid_post``.
        tokens: a ``Tokens`` (its held-out split is used), one split, or token ids ``[n, T]``.
        activations: instead of model and tokens, a tensor ``[..., d]`` or an iterable of them. ``d`` is ``d_in``, or
            ``d_in + d_out`` where the coder writes another site than it reads. A stream is left in the state it came
            in.
        n_tokens: tokens to use, in whole contexts spread evenly over the split (of ``activations``, the first rows);
            None for all (an endless stream then never ends).
        n_loss_tokens: so many of them, again spread evenly, are run spliced and ablated as well, which is most of the
            work; None for all. ``n_predicted_tokens`` of the report counts the predictions compared.
        batch_size: contexts in a forward pass (rows in a step for ``activations``); by default what fits well.
        ablation: ``"zero"``, or ``"mean"``: the site's mean over the tokens run ablated, which takes a pass of its own.
        losses: False leaves out cross-entropy and KL, and with them the spliced and ablated runs.
        seed: which positions of an encoder's contexts are masked.
        progress: show a bar on a terminal, a logged line elsewhere.

    Raises:
        ConfigError: neither or both of (model, tokens) and activations are given, or the coder names no site, or
            sites of other models.
        UnknownNameError: the model has no such site.
        ShapeError: the coder's width is not the site's, or the contexts do not fit the model.
        DataError: an activation, a reconstruction or a loss is not finite, or there are too few tokens.

    No global random state, training flag or gradient is touched.
    """
    check_options(n_tokens, n_loss_tokens, batch_size, ablation)
    if activations is not None:
        if model is not None or tokens is not None:
            raise ConfigError("give either activations, or model and tokens, not both")
        with evaluation_mode(coder):
            sums = measure_activations(coder, activations, n_tokens, batch_size)
        return _report(coder, sums, split="activations", notes=["no cross-entropy or KL: they need model and tokens"])
    if model is None or tokens is None:
        raise ConfigError("evaluate needs evaluate(coder, model, tokens), or evaluate(coder, activations=...)")

    models = by_name(model)
    notes = []
    if not losses:
        notes.append("no cross-entropy or KL: left out as asked (losses=False)")
    elif reason := no_task(models):
        losses = False
        notes.append(f"no cross-entropy or KL: {reason}")
    chosen = choose_contexts(tokens, list(models.values()), n_tokens, n_loss_tokens if losses else 0)
    runs = ModelRuns(
        coder=coder,
        models=models,
        sites=sites_of(coder, models, to_be_written=losses),
        chosen=chosen,
        batch_size=batch_size or fitting_batch_size(models, chosen.split.context_size),
        ablation=ablation,
        mask_token_id=mask_token_id(models) if losses else None,
        seed=seed,
    )
    bar = Progress("evaluate", chosen.contexts.numel(), enabled=progress)
    with bar, evaluation_mode(coder, *(each.hf for each in models.values())):
        sums, loss_sums = runs.measure(bar)
    return _report(
        coder,
        sums,
        loss_sums if losses else None,
        notes=notes,
        ablation=ablation if losses else None,
        model_name=", ".join(f"{key}: {each.name}" if key else each.name for key, each in models.items()),
        split=chosen.split.name,
        tokens_fingerprint=chosen.split.fingerprint,
        overlap=overlap_with_training(coder, tokens, chosen.split),
        n_special_positions=int(chosen.special.sum()),
    )


def no_task(models: Mapping[str, LanguageModel]) -> str:
    """Why the models' predictions cannot be compared; empty where they can."""
    n_encoders = sum(model.is_encoder for model in models.values())
    if 0 < n_encoders < len(models):
        return "an encoder and a decoder have no task in common"
    if n_encoders and mask_token_id(models) is None:
        return "the model is an encoder and its tokenizer has no mask token"
    return ""


def mask_token_id(models: Mapping[str, LanguageModel]) -> int | None:
    """What stands at the positions that encoders must predict; None for decoders."""
    first = next(iter(models.values()))
    return getattr(first.tokenizer, "mask_token_id", None) if first.is_encoder else None


def losses_of(sums: LossSums) -> ModelLosses:
    """Means and scores of what was summed."""
    clean, spliced, ablated = sums.ce_clean.value, sums.ce_spliced.value, sums.ce_ablated.value
    return ModelLosses(
        ce_clean=clean,
        ce_spliced=spliced,
        ce_ablated=ablated,
        ce_loss_score=ce_loss_score(clean, spliced, ablated),
        kl=sums.kl.value,
        kl_ablated=sums.kl_ablated.value,
        kl_score=kl_score(sums.kl.value, sums.kl_ablated.value),
        n_predicted_tokens=sums.ce_clean.n_tokens,
    )


def _report(
    coder: Dictionary,
    sums: RowSums,
    loss_sums: Mapping[str, LossSums] | None = None,
    *,
    notes: list[str],
    **provenance: Any,
) -> Report:
    """The report of what was summed; ``provenance`` are fields of ``Report`` that say on what."""
    require_enough(sums.sparsity.n_tokens)
    reconstruction, sparsity = sums.reconstruction, sums.sparsity
    losses = {key: losses_of(each) for key, each in (loss_sums or {}).items()}
    if losses:
        notes = [*notes, "special positions keep the site's own value in the clean, spliced and ablated runs"]
    for key, each in losses.items():
        if each.ce_ablated <= each.ce_clean:
            of_model = f" of {key}" if key else ""
            notes.append(f"ablating the site does not raise the loss{of_model}, so ce_loss_score means nothing here")
    if not sparsity.dead_fraction_reliable:
        notes = [
            *notes,
            f"dead_fraction counts silence on {sparsity.n_tokens:,} tokens only; below {RELIABLE_DEAD_TOKENS:,} a "
            "latent may merely be rare",
        ]
    if provenance.get("overlap") == "same tokens":
        notes = [*notes, "the coder was trained on these very tokens; evaluate on a held-out split"]
    return Report(
        fve=reconstruction.fve,
        mse=reconstruction.mse,
        cosine=reconstruction.cosine,
        norm_ratio=reconstruction.norm_ratio,
        relative_reconstruction_bias=reconstruction.relative_reconstruction_bias,
        l0=sparsity.l0,
        l0_std=sparsity.l0_std,
        l1=sparsity.l1,
        dead_fraction=sparsity.dead_fraction,
        dead_fraction_reliable=sparsity.dead_fraction_reliable,
        n_alive=sparsity.n_alive,
        d_sae=coder.d_sae,
        n_tokens=sparsity.n_tokens,
        hook_name=coder.hook_name or "",
        hook_name_out=coder.hook_name_out or "",
        notes=tuple(notes),
        firing_density=sparsity.firing_density,
        fve_per_site=_fve_per_site(coder, sums),
        **(asdict(losses[""]) if "" in losses else {"models": losses or None}),
        **provenance,
    )


def check_options(n_tokens: int | None, n_loss_tokens: int | None, batch_size: int | None, ablation: str) -> None:
    """Raise ``ConfigError`` for an option that makes no sense, before any work is done."""
    for name, value in (("n_tokens", n_tokens), ("n_loss_tokens", n_loss_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, or None, got {value}")
    if ablation not in ("zero", "mean"):
        raise ConfigError(f"ablation must be 'zero' or 'mean', got {ablation!r}")


def _fve_per_site(coder: Dictionary, sums: RowSums) -> dict[str, float] | None:
    """By the coder's name of each site written, or by its number; None where there is one."""
    if not sums.sites:
        return None
    names = (coder.hook_name_out or "").split("+")
    if len(names) != len(sums.sites):
        names = [f"site_{number}" for number in range(len(sums.sites))]
    return {name: site.fve for name, site in zip(names, sums.sites, strict=True)}
