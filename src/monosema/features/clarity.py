"""``clarity``: how much a latent promises to a reader, by which the page is ordered at first.

Shape letters: F latents, K contexts kept per latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from monosema.features.store import FeatureStore

MODERATE_DENSITY = 0.01
"""Latents that fire more often count for less."""


def clarity(store: FeatureStore) -> Tensor:
    """[F] float32, 0 to 1: ``agreement · min(1, 0.01 / density)``; 0 for a latent that never fired.

    ``agreement`` is the share of the contexts that a latent could have kept in which its strongest token has the same
    text, case and white space around it aside. Of the texts, that of the most contexts counts. A latent that fired in
    fewer contexts than are kept per latent agrees in as many as it has.
    """
    n_possible = min(store.windows.context.shape[1], store.provenance.n_contexts)
    agreement = _largest_group(_strongest_texts(store)) / max(1, n_possible)
    density = store.numbers.density.numpy()
    moderate = np.minimum(1.0, MODERATE_DENSITY / np.maximum(density, np.finfo(float).tiny))
    return torch.from_numpy((agreement * moderate).astype(np.float32))


def _strongest_texts(store: FeatureStore) -> np.ndarray:
    """[F, K] int64: a number for the text at each kept context's maximum, the same for the same text; -1 for none."""
    windows, texts = store.windows, store.texts
    numbers: dict[str, int] = {}
    number_of = np.array(
        [numbers.setdefault(text.strip().casefold() or text, len(numbers)) for text in texts.vocabulary], dtype=np.int64
    )
    found = np.full(windows.context.shape, -1, dtype=np.int64)
    filled = (windows.context >= 0).numpy()
    row = texts.rows(windows.context[windows.context >= 0]).numpy()
    text_ids = texts.text_ids.numpy()
    group_start = np.maximum.accumulate(np.where(text_ids >= 0, np.arange(text_ids.shape[1]), 0), axis=1)
    position = group_start[row, windows.position.numpy()[filled]]
    found[filled] = number_of[text_ids[row, position]]
    return found


def _largest_group(texts_FK: np.ndarray) -> np.ndarray:
    """[F] int64: how often the most common number that is not -1 occurs in each row."""
    ordered = np.sort(texts_FK, axis=1)
    run = np.zeros(len(ordered), dtype=np.int64)
    largest = run.copy()
    for place in range(ordered.shape[1]):
        same = ordered[:, place] == ordered[:, place - 1] if place else np.zeros(len(ordered), dtype=bool)
        run = np.where(ordered[:, place] < 0, 0, np.where(same, run + 1, 1))
        largest = np.maximum(largest, run)
    return largest
