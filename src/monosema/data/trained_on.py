"""What must be said where a dictionary meets another model than the one it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from monosema.coders import Dictionary
from monosema.coders.site_transform import SiteTransform
from monosema.data.cache.expectations import model_differences
from monosema.data.named_models import NamedModels
from monosema.models import LanguageModel
from monosema.models.sites import split_head, split_name

logger = logging.getLogger("monosema.data.trained_on")

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
    for name in dict.fromkeys(f"{coder.hook_name or ''}+{coder.hook_name_out or ''}".split("+")):
        key, colon, hook = name.partition(":")
        in_one = named.is_mapping and colon and key in named.by_name
        model = named.by_name[key] if in_one else named.first
        reasons += _reasons(transform, hook if in_one else name, model)
    if reasons:
        notes.append(
            f"the coder was trained on processed weights: {'; '.join(dict.fromkeys(reasons))}. Measured here is the "
            "plain model, so the figures are not those of the coder on what it was trained for"
        )
    return notes


def log_model_notes(coder: Dictionary, models: LanguageModel | Mapping[str, LanguageModel]) -> None:
    """The same as warnings, where there is no report to hold them."""
    for note in model_notes(coder, models):
        logger.warning("%s", note)


def _reasons(transform: SiteTransform, site: str, model: LanguageModel) -> list[str]:
    """In what ``site`` of the plain ``model`` differs from what ``transform`` made of it."""
    inner = split_name(split_head(site)[0])[1]
    # A site by its module's path may be any of those written.
    is_written = inner in _WRITTEN or ":" in inner
    is_centered = is_written and model.has_layer_norm
    found = {
        f"{site} was centered over its width (center_writing_weights), and the plain model's has a mean that the coder "
        "never saw": transform.centered and is_centered,
        f"{site} may have been centered over its width, as SAELens' first versions did; the coder's file does not say":
            transform.centering_unknown and not transform.centered and is_centered,
        f"{site} was before the norm's gain and bias (fold_ln), and the plain model's is after them":
            transform.norms_folded and inner == "mlp.hook_in",
        f"{site} was without the biases of the values (fold_value_biases), and the plain model's has them where there "
        "are any": transform.value_biases_folded and inner in _VALUES,
        f"{site} was in other coordinates (refactor_factored_attn_matrices)":
            transform.attention_refactored and inner in _ATTENTION,
        f"{site} was after the norm's gain and bias, and the one of this name here is before them":
            transform.norm_outputs_after_gain and inner.endswith("hook_normalized") and model.has_layer_norm,
        f"{site} was before the factor of the embedding, and the one of this name here is after it":
            transform.embedding_unscaled and inner == "hook_embed",
    }  # fmt: skip
    return [reason for reason, holds in found.items() if holds]
