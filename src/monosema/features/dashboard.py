"""One HTML file that shows a feature store offline.

The page holds a JSON header (texts, title, how the arrays lie) and one block of arrays, deflated and in base64. Text
from the corpus occurs only in the header, where markup characters are escaped; the script writes it with
``textContent``. Context tokens are stored once, however many windows share them; an activation in a window is a
16-bit share of its latent's maximum.

Shape letters: L latents shown, W windows shown, E entries of those windows, P tokens of the pooled contexts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from monosema.core.errors import ConfigError, UserError
from monosema.core.files import write_atomically
from monosema.core.page import assembled, asset
from monosema.core.printable import WHITESPACE_SYMBOLS, printable
from monosema.features.render import number
from monosema.features.store import FeatureStore, Provenance

_SHARE = 65_535
"""The integer that stands for a latent's maximum."""
_LOGITS = (
    "What an activation of 1 adds to each token's logit directly: the latent's decoder row through the final norm's "
    "gain and the unembedding."
)
_LOGITS_OF_STACK = (
    "What an activation of 1 adds to each token's logit directly: the sum of the latent's decoder rows at all sites it "
    "writes, through the final norm's gain and the unembedding."
)


def write_dashboard(
    store: FeatureStore,
    path: Path,
    *,
    latents: Sequence[int] | None,
    title: str | None,
    figures: Mapping[str, str | float | None],
    before: int,
    after: int,
    contexts_per_latent: int | None,
) -> Path:
    """See ``FeatureStore.dashboard``."""
    if before < 0 or after < 0:
        raise ConfigError(f"before and after must not be negative, got {before} and {after}")
    if contexts_per_latent is not None and contexts_per_latent < 1:
        raise ConfigError(f"contexts_per_latent must be at least 1, or None for all, got {contexts_per_latent}")
    chosen = _shown_latents(store, latents)
    arrays = _latent_arrays(store, chosen) | _window_arrays(store, chosen, before, after, contexts_per_latent)
    strings, arrays = _used_strings(store, arrays)
    provenance = store.provenance
    title = printable(title or provenance.site)
    shown = {
        "architecture": provenance.architecture or None,
        "k": None if provenance.k is None else f"{provenance.k:g}",
        **figures,
    }
    shown.setdefault("dead fraction", 1 - len(store) / store.d_sae)
    header = {
        "title": title,
        "site": provenance.site,
        "split": provenance.split,
        "n_tokens": store.numbers.n_tokens,
        "n_contexts": provenance.n_contexts,
        "context_size": provenance.context_size,
        "d_sae": store.d_sae,
        "n_alive": len(store),
        "n_bins": store.numbers.histogram.shape[1],
        "n_logits": 0 if store.logits is None else store.logits.top_tokens.shape[1],
        "logits_note": store.logits_note,
        "share": _SHARE,
        "notes": [printable(note) for note in provenance.notes],
        "figures": [[name, _figure(value)] for name, value in shown.items() if value is not None],
        "logits_meaning": _LOGITS_OF_STACK if provenance.layer_sites else _LOGITS,
        "layers": [_layer(provenance, layer) for layer in range(len(provenance.layer_sites))],
        "whitespace": WHITESPACE_SYMBOLS,
        "strings": strings,
    }
    header = {key: printable(value) if isinstance(value, str) else value for key, value in header.items()}
    page = assembled(
        title=title,
        body=_file("body.html"),
        styles=[_file("page.css")],
        scripts=[_file("data.js"), _file("page.js")],
        header=header,
        arrays=arrays,
    )
    write_atomically(path, page)
    return path


def _shown_latents(store: FeatureStore, latents: Sequence[int] | None) -> np.ndarray:
    """[L] int64, ascending."""
    alive = store.alive.numpy()
    if latents is not None:
        wanted = np.unique(np.asarray(list(latents), dtype=np.int64))
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= store.d_sae):
            raise UserError(f"latents must be 0 to {store.d_sae - 1}, got {wanted[0]} to {wanted[-1]}")
        alive = np.intersect1d(alive, wanted)
    if not len(alive):
        raise UserError("none of these latents fired, so there is nothing to show; read more text or check the coder")
    return alive


def _latent_arrays(store: FeatureStore, chosen: np.ndarray) -> dict[str, np.ndarray]:
    numbers, logits = store.numbers, store.logits
    arrays = {
        "latent": chosen,
        "clarity": store.clarity.numpy()[chosen],
        "count": numbers.count.numpy()[chosen],
        "maximum": numbers.maximum.numpy()[chosen],
        "mean": numbers.mean.numpy()[chosen].astype(np.float32),
        "bin_width": numbers.bin_width.numpy()[chosen].astype(np.float32),
        "histogram": numbers.histogram.numpy()[chosen],
    }
    if logits is not None:
        tokens = np.array(list(store.logit_texts), dtype=np.int64)
        order = np.argsort(tokens)
        text_of = np.array(list(store.logit_texts.values()), dtype=np.int64)[order]
        for end, ids, values in (
            ("top", logits.top_tokens, logits.top_values),
            ("bottom", logits.bottom_tokens, logits.bottom_values),
        ):
            arrays[f"{end}_text"] = text_of[np.searchsorted(tokens[order], ids.numpy()[chosen])]
            arrays[f"{end}_value"] = values.numpy()[chosen]
    return arrays


def _window_arrays(
    store: FeatureStore, chosen: np.ndarray, before: int, after: int, contexts_per_latent: int | None
) -> dict[str, np.ndarray]:
    """Windows around the maxima, and the pool of context tokens they are cut from."""
    windows, texts = store.windows, store.texts
    n_kept = windows.context.shape[1]
    kept = windows.context.numpy()[chosen][:, :contexts_per_latent]
    place, rank = np.nonzero(kept >= 0)
    context, latent = kept[place, rank], chosen[place]
    peak = windows.position.numpy()[latent, rank].astype(np.int64)
    text_ids = texts.text_ids.numpy()
    row = np.searchsorted(texts.context.numpy(), context)

    # whole groups only: back to the start of the first, forward to the end of the last
    n_positions = text_ids.shape[1]
    starts = np.where(text_ids >= 0, np.arange(n_positions), 0)
    group_start = np.maximum.accumulate(starts, axis=1)
    ends = np.where(np.pad(text_ids, ((0, 0), (0, 1)))[:, 1:] >= 0, np.arange(1, n_positions + 1), n_positions)
    group_end = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    start = group_start[row, np.maximum(peak - before, 0)]
    stop = group_end[row, np.minimum(peak + after, n_positions - 1)]

    edges = np.zeros((len(text_ids), n_positions + 1), dtype=np.int64)
    np.add.at(edges, (row, start), 1)
    np.add.at(edges, (row, stop), -1)
    covered = edges.cumsum(1)[:, :-1] > 0
    pool_index = covered.cumsum().reshape(covered.shape) - 1
    opens = covered & ~np.pad(covered, ((0, 0), (1, 0)))[:, :-1]

    # entries of the chosen slots, cut to their windows
    slot = latent * n_kept + rank
    crow = windows.crow.numpy()
    lengths = crow[slot + 1] - crow[slot]
    window = np.repeat(np.arange(len(slot)), lengths)
    entry = np.arange(len(window)) - np.repeat(lengths.cumsum() - lengths, lengths) + crow[slot][window]
    position = windows.entry_position.numpy()[entry]
    inside = (position >= start[window]) & (position < stop[window])
    window, position, entry = window[inside], position[inside], entry[inside]
    maximum = store.numbers.maximum.numpy()[latent[window]].astype(np.float64)
    share = np.rint(windows.entry_value.numpy()[entry] / maximum * _SHARE)
    return {
        "window_from": np.searchsorted(place, np.arange(len(chosen) + 1)),
        "window_context": context,
        "window_pool": pool_index[row, start],
        "window_length": stop - start,
        "window_start": start,
        "window_peak": peak - start,
        "window_maximum": windows.maximum.numpy()[latent, rank],
        "entry_from": np.searchsorted(window, np.arange(len(slot) + 1)),
        "entry_offset": position - start[window],
        "entry_share": np.maximum(share, 1).astype(np.int64),  # whatever fires is seen to fire
        "pool_text": text_ids[covered].astype(np.int64),
        "pool_opens": opens[covered].astype(np.int64),
    }


def _used_strings(store: FeatureStore, arrays: dict[str, np.ndarray]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The texts that the arrays use, and the arrays with indices into those; 0 stands for a continued group."""
    names = [name for name in ("pool_text", "top_text", "bottom_text") if name in arrays]
    used = np.unique(np.concatenate([arrays[name].ravel() for name in names]))
    used = used[used >= 0]
    strings = ["", *(store.texts.vocabulary[index] for index in used.tolist())]
    renumbered = {name: np.where(arrays[name] < 0, 0, np.searchsorted(used, arrays[name]) + 1) for name in names}
    return strings, arrays | renumbered


def _layer(provenance: Provenance, layer: int) -> dict[str, str]:
    """How a layer of a stack is called, and what its latents read and write."""
    read, written = provenance.layer_sites[layer]
    return {
        "name": printable(provenance.layer_name(layer)),
        "sites": printable(f"reads {read}, writes {written.replace('+', ', ')}"),
    }


def _file(name: str) -> str:
    return asset("monosema.features", f"page/{name}")


def _figure(value: str | float) -> str:
    if isinstance(value, str):
        return printable(value)
    if not math.isfinite(value):
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else number(value)
