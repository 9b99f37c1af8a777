"""A feature store on disk: ``features.safetensors`` for the arrays, ``features.json`` for the rest."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from monosema.core.config import made_of
from monosema.core.errors import FileError
from monosema.core.files import atomic_folder, read_json, write_json
from monosema.core.plain import list_in, mapping_in, text_in, texts_in, whole_in
from monosema.core.tensors import read_tensors
from monosema.features.logits import ExtremeLogits
from monosema.features.statistics import LatentNumbers
from monosema.features.store import ContextTexts, FeatureStore, Provenance
from monosema.features.windows import Windows

_ARRAYS, _FACTS = "features.safetensors", "features.json"
_FORMAT = "monosema features 1"
_GROUPS: dict[str, type] = {
    "numbers": LatentNumbers,
    "windows": Windows,
    "texts": ContextTexts,
    "logits": ExtremeLogits,
}
_INTEGERS = (
    *("numbers.count", "numbers.histogram"),
    *("windows.context", "windows.position", "windows.crow", "windows.entry_position"),
    *("texts.context", "texts.token_ids", "texts.text_ids"),
    *("logits.top_tokens", "logits.bottom_tokens"),
)
"""The arrays of whole numbers; the others are floats."""


def save_store(store: FeatureStore, folder: Path) -> Path:
    """See ``FeatureStore.save``."""
    if folder.exists() and not (folder / _FACTS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} exists and holds no features; choose another place, or remove it first")
    tensors: dict[str, Tensor] = {}
    for group in _GROUPS:
        part = getattr(store, group)
        if part is not None:
            tensors |= {f"{group}.{name}": getattr(part, name).contiguous() for name in _tensor_names(type(part))}
    facts = {
        "format": _FORMAT,
        "provenance": asdict(store.provenance),
        "n_tokens": store.numbers.n_tokens,
        "vocabulary": store.texts.vocabulary,
        "logits_note": store.logits_note,
        "logit_texts": [list(pair) for pair in store.logit_texts.items()],
    }
    with atomic_folder(folder) as temporary:
        save_file(tensors, str(temporary / _ARRAYS))
        write_json(temporary / _FACTS, facts)
    return folder


def load_store(folder: Path) -> FeatureStore:
    """See ``FeatureStore.load``."""
    where = folder / _FACTS
    facts = read_json(where)
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise FileError(f"{folder / _FACTS} is not a feature store of this version ({_FORMAT!r})")
    tensors = read_tensors(folder / _ARRAYS, integers=_INTEGERS)
    try:
        note = text_in(facts, "logits_note", where)
        provenance = mapping_in(facts, "provenance", where)
        store = FeatureStore(
            provenance=made_of(Provenance, {**provenance, "notes": texts_in(provenance, "notes", where)}, where),
            numbers=LatentNumbers(n_tokens=whole_in(facts, "n_tokens", where) or 0, **_group(tensors, "numbers")),
            windows=Windows(**_group(tensors, "windows")),
            texts=ContextTexts(**_group(tensors, "texts"), vocabulary=texts_in(facts, "vocabulary", where)),
            logits=None if note is not None else ExtremeLogits(**_group(tensors, "logits")),
            logits_note=note,
            logit_texts={_index(token): _index(text) for token, text in list_in(facts, "logit_texts", where)},
        )
        problem = _contradiction(store)
    except FileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise FileError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
    if problem:
        raise FileError(f"{folder} is damaged: {problem}")
    return store


def _index(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r:.80} is not a whole number")
    return value


def _tensor_names(group: type) -> list[str]:
    return [each.name for each in fields(group) if each.name not in ("n_tokens", "vocabulary")]


def _group(tensors: dict[str, Tensor], group: str) -> dict[str, Any]:
    return {name: tensors[f"{group}.{name}"] for name in _tensor_names(_GROUPS[group])}


def _contradiction(store: FeatureStore) -> str | None:
    """What in a loaded store does not fit together, so that no later access can go astray."""
    numbers, windows, texts = store.numbers, store.windows, store.texts
    n_latents, n_words, n_positions = store.d_sae, len(texts.vocabulary), texts.token_ids.shape[1]
    n_slots, n_entries = windows.context.numel(), windows.entry_value.numel()
    names = [] if store.logits is None else _tensor_names(ExtremeLogits)
    logits: list[Tensor] = [getattr(store.logits, name) for name in names]
    listed = {token for table in logits if not table.is_floating_point() for token in table.unique().tolist()}
    filled = windows.context >= 0
    checks = {
        "number of latents": all(
            len(each) == n_latents
            for each in (numbers.maximum, numbers.mean, numbers.bin_width, numbers.histogram, windows.context, *logits)
        ),
        "number of tokens": numbers.n_tokens > 0
        and all(_within(each, 0, numbers.n_tokens + 1) for each in (numbers.count, numbers.histogram)),
        "windows": windows.context.shape == windows.maximum.shape == windows.position.shape,
        "entries": windows.crow.shape == (n_slots + 1,)
        and int(windows.crow[0]) == 0
        and int(windows.crow[-1]) == n_entries == windows.entry_position.numel()
        and bool((windows.crow.diff() >= 0).all()),
        "positions": _within(windows.entry_position, 0, n_positions) and _within(windows.position, -1, n_positions),
        "contexts": texts.text_ids.shape == texts.token_ids.shape
        and len(texts.context) == len(texts.token_ids)
        and bool(torch.isin(windows.context[filled], texts.context).all())
        and bool((texts.context.diff() > 0).all()),
        "texts": _within(texts.text_ids, -1, n_words) and bool((texts.text_ids[:, :1] >= 0).all()),
        "logits": [each.is_floating_point() for each in logits] == [name.endswith("values") for name in names]
        and listed <= store.logit_texts.keys()
        and all(0 <= text < n_words for text in store.logit_texts.values())
        and all(each.shape == logits[0].shape for each in logits),
    }
    return next((f"its {name} do not fit together" for name, holds in checks.items() if not holds), None)


def _within(values: Tensor, low: int, high: int) -> bool:
    return not values.is_floating_point() and (
        values.numel() == 0 or (int(values.min()) >= low and int(values.max()) < high)
    )
