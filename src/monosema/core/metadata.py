"""What dictionaries and caches record of model, text and training, refused where a value is of another type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosema.core.config import check_values
from monosema.core.plain import mapping_in

_TYPES: dict[str, Any] = {
    **dict.fromkeys(("model", "models", "tokens", "stream", "training", "coder", "site_transform"), dict),
    **dict.fromkeys(("hook_names", "targets"), list[str]),
    **dict.fromkeys(("batch_size", "seed", "epochs", "chunk_contexts", "model_batch_size"), int),
    **dict.fromkeys(("dtype", "autocast"), str),
    "outlier_norm_multiple": float,
    "median_norms": list,
}
"""What the metadata hold, as far as it is used."""
_MODEL_TYPES: dict[str, Any] = {
    **dict.fromkeys(("name", "class", "source", "revision", "dtype", "requested_dtype", "device", "fingerprint"), str),
    **dict.fromkeys(("model_kwargs", "forward_kwargs"), dict),
    "trust_remote_code": bool,
    "tokenizer": str | bool,
}
_TOKENS_TYPES: dict[str, Any] = {
    **dict.fromkeys(("source", "column", "fingerprint", "split", "when_dry"), str),
    **dict.fromkeys(("context_size", "max_documents", "n_processes"), int),
    **dict.fromkeys(("options", "mixture", "packing", "positions"), dict),
    **dict.fromkeys(("attend_across_documents", "in_memory"), bool),
    "heldout_fraction": float,
    "exclude_special_tokens": bool | list[int],
}

_CODER_TYPES: dict[str, Any] = {"seed": int, "b_dec": str}


def checked_metadata(values: Any, where: object) -> Mapping[str, Any]:
    """The metadata ``values`` in the file ``where``; ``FileError`` where they, or a value that is used, are of another
    type than expected."""
    metadata = mapping_in({"metadata": values}, "metadata", where)
    check_values(metadata, _TYPES, where)
    models = mapping_in(metadata, "models", where)
    for name in models:
        check_values(mapping_in(models, name, where), _MODEL_TYPES, f"{where}: models.{name}")
    check_values(mapping_in(metadata, "model", where), _MODEL_TYPES, f"{where}: model")
    check_values(mapping_in(metadata, "tokens", where), _TOKENS_TYPES, f"{where}: tokens")
    check_values(mapping_in(metadata, "coder", where), _CODER_TYPES, f"{where}: coder")
    return metadata
