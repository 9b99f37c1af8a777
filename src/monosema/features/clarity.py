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


WEIGHT_WITHOUT_WORD = 0.5
"""What a context counts whose strongest token holds fewer than two letters: punctuation, white space, a digit."""


def clarity(store: FeatureStore) -> Tensor:
    """[F] float32, 0 to 1: ``agreement · min(1, 0.01 / density)``; 0 for a latent that never fired.

    ``agreement``: for each text that is the strongest token of some of a latent's contexts, case and spaces around
    it aside, the number of those contexts; half of it where the text holds fewer than two letters. The largest of them,
    over the number of contexts that a latent could have kept.
    """
    n_possible = min(store.windows.context.shape[1], store.provenance.n_contexts)
    texts_FK, weights = _strongest_texts(store)
    agreement = _largest_group(texts_FK, weights) / max(1, n_possible)
    density = store.numbers.density.numpy()
    moderate = np.minimum(1.0, MODERATE_DENSITY / np.maximum(density, np.finfo(float).tiny))
    return torch.from_numpy((agreement * moderate).astype(np.float32))


def _strongest_texts(store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """[F, K] int64: a number for the text at each kept context's maximum, the same for the same text, -1 for none; and
    what a context with each of these texts counts."""
    windows, texts = store.windows, store.texts
    numbers: dict[str, int] = {}
    number_of = np.array(
        [numbers.setdefault(text.strip().casefold() or text, len(numbers)) for text in texts.vocabulary], dtype=np.int64
    )
    weights = np.array([1.0 if sum(map(str.isalpha, text)) > 1 else WEIGHT_WITHOUT_WORD for text in numbers])
    found = np.full(windows.context.shape, -1, dtype=np.int64)
    filled = (windows.context >= 0).numpy()
    row = texts.rows(windows.context[windows.context >= 0]).numpy()
    text_ids = texts.text_ids.numpy()
    group_start = np.maximum.accumulate(np.where(text_ids >= 0, np.arange(text_ids.shape[1]), 0), axis=1)
    position = group_start[row, windows.position.numpy()[filled]]
    found[filled] = number_of[text_ids[row, position]]
    return found, weights


def _largest_group(texts_FK: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[F] float64: of the numbers in each row that are not -1, the largest count times weight; 0 without any."""
    ordered = np.sort(texts_FK, axis=1)
    run = np.zeros(len(ordered), dtype=np.int64)
    largest = np.zeros(len(ordered))
    for place in range(ordered.shape[1]):
        text = ordered[:, place]
        run = np.where((text == ordered[:, place - 1]) & (place > 0), run + 1, 1)
        largest = np.where(text < 0, largest, np.maximum(largest, run * weights[text]))
    return largest
