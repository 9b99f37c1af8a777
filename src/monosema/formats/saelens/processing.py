"""How SAELens' ``model_from_pretrained_kwargs`` say that a model's weights were processed, and our words for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monosema.core.errors import FileError
from monosema.core.plain import mapping_in
from monosema.formats.saelens.names import NAME

KWARGS, CLASS = "model_from_pretrained_kwargs", "model_class_name"
_TRANSFORMER_LENS = "HookedTransformer"
_FLAGS = {
    "center_writing_weights": "centered",
    "fold_ln": "norms_folded",
    "fold_value_biases": "value_biases_folded",
    "refactor_factored_attn_matrices": "attention_refactored",
    "center_unembed": None,
}
"""TransformerLens' options by name, with the field of ``coders.SiteTransform`` that says the same; None for one that
changes logits alone. Nothing else of these arguments is used."""


def read_transform(metadata: Mapping[str, Any], *, is_old: bool, where: Path) -> dict[str, bool] | None:
    """The fields of ``coders.SiteTransform`` that a file's ``metadata`` make true; None where nothing is said.

    SAELens loads models by ``from_pretrained_no_processing``, so what is not named was not done. Before version 6
    (``is_old``) a file without these arguments may be of a time when it loaded them by ``from_pretrained``.
    """
    kwargs = mapping_in(metadata, KWARGS, where)
    flags = {name: kwargs[name] for name in _FLAGS if name in kwargs}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise FileError(f"{where}: {KWARGS}.{name} must be true or false, got {value!r:.80}")
    found = {own: True for name, own in _FLAGS.items() if own is not None and flags.get(name)}
    may_be_lens = metadata.get(CLASS) in (None, _TRANSFORMER_LENS)
    if may_be_lens and is_old and KWARGS not in metadata:
        return {**found, "centering_unknown": True}
    sites = f"{metadata.get('hook_name')} {metadata.get('hook_name_out')}"
    if may_be_lens and "hook_normalized" in sites and not flags.get("fold_ln"):
        found["norm_outputs_after_gain"] = True
    return found if flags or found else None


def written_kwargs(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of SAELens' metadata that say the same of a dictionary with our ``metadata``; none for plain models.

    An empty transform is one that was read from a file, whose arguments say that nothing was done.
    """
    transform = metadata.get("site_transform")
    if transform is None:
        return {}
    foreign = metadata.get(NAME) or {}
    told = foreign.get(KWARGS) or {}
    kwargs = {name: bool(told[name]) for name in _FLAGS if name in told}
    kwargs |= {name: True for name, own in _FLAGS.items() if own is not None and transform.get(own)}
    return {KWARGS: kwargs, CLASS: foreign.get(CLASS) or _TRANSFORMER_LENS} if kwargs else {}
