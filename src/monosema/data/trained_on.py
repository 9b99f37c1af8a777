"""What must be said where a dictionary meets another model than the one it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from monosema.coders import Dictionary
from monosema.coders.site_transform import SiteTransform
from monosema.core.logs import get_logger
from monosema.data.cache.expectations import model_differences
from monosema.data.named_models import NamedModels
from monosema.models import LanguageModel
from monosema.models.sites import split_head, split_name

logger = get_logger("monosema.data.trained_on")

_WRITTEN = (
    "hook_embed",
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_result",
)
"""The residual stream and what is added to it."""
_VALUES = ("attn.hook_v", "attn.hook_z", "attn.hook_result")
_ATTENTION = ("attn.hook_q", "attn.hook_k", *_VALUES)


def model_notes(coder: Dictionary, models: LanguageModel | Mapping[str, LanguageModel]) -> list[str]:
    """Notes for a report of ``coder`` in ``models``, plain models as ``load_model`` gives them; none where all is well.

    One where the coder records that it was trained on another model or other weights, and one where it records that it
    was trained on processed weights (``SiteTransform``) that give its sites other values than the plain model has.
    """
    named = NamedModels(models)
    different = model_differences(coder.metadata, named.record())
    notes = [f"the coder was trained on another model ({'; '.join(different)})"] if different else []
    transform, reasons = coder.site_transform, list[str]()
    for site in dict.fromkeys((*coder.reads, *coder.writes)):
        model = named.by_name.get(site.model)
        hook = str(site) if model is None else site.hook_name
        reasons += _reasons(transform, str(site), hook, model or named.first)
    if reasons:
        notes.append(
            "measured here is the plain model, and the coder was trained on activations of processed weights or of "
            f"another definition: {'; '.join(dict.fromkeys(reasons))}. The figures do not hold for those activations"
        )
    elif transform.centering_unknown and _may_be_centered(coder, named):
        notes.append(
            "the coder's file does not say how the model's weights were processed, and the first versions of SAELens "
            "centered the residual stream: if the coder was trained so, these figures, of the plain model, do not hold"
        )
    return notes


def log_model_notes(coder: Dictionary, models: LanguageModel | Mapping[str, LanguageModel]) -> None:
    """The same as warnings, where there is no report to hold them."""
    for note in model_notes(coder, models):
        logger.warning("%s", note)


def _reasons(transform: SiteTransform, site: str, hook: str, model: LanguageModel) -> Iterator[str]:
    """In what ``site``, the ``hook`` of the plain ``model``, differs from what ``transform`` made of it."""
    inner = _inner(hook)
    if transform.centered and _is_written(inner) and model.has_layer_norm:
        yield f"{site} was centered over its width (center_writing_weights), the plain model's has a mean"
    if transform.norms_folded and inner == "mlp.hook_in":
        yield f"{site} was before the norm's gain and bias (fold_ln), the plain model's is after them"
    if transform.value_biases_folded and inner in _VALUES:
        yield f"{site} was without the biases of the values (fold_value_biases), the plain model's is with those it has"
    if transform.attention_refactored and inner in _ATTENTION:
        yield f"{site} was in other coordinates (refactor_factored_attn_matrices)"
    if transform.norm_outputs_after_gain and inner.endswith("hook_normalized") and model.has_layer_norm:
        yield f"{site} was after the norm's gain and bias, the site of this name here is before them"
    if transform.embedding_unscaled and inner == "hook_embed":
        yield f"{site} was before the factor of the embedding, the site of this name here is after it"


def _may_be_centered(coder: Dictionary, models: NamedModels) -> bool:
    sites = (*coder.reads, *coder.writes)
    return models.first.has_layer_norm and any(_is_written(_inner(str(site))) for site in sites)


def _inner(site: str) -> str:
    """The name inside the block, without a head."""
    return split_name(split_head(site)[0])[1]


def _is_written(inner: str) -> bool:
    """Whether a site is one of the residual stream's; one by its module's path may be."""
    return inner in _WRITTEN or ":" in inner
