"""``clarity`` by hand: the contexts and densities are those of ``features_tiny``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monosema.features import FeatureStore
from monosema.features.clarity import _largest_group


def test_by_hand(known_store: FeatureStore):
    # three contexts were read. Latents 0 and 1 peak in two of them, both times on one token; latent 2 in one of them.
    # Their texts (⟨2⟩, ⟨3⟩, ⟨4⟩) hold no letters
    agreement = [1 / 3, 1 / 3, 1 / 6]
    density = [9 / 14, 3 / 14, 5 / 14]
    expected = [a * 0.01 / d for a, d in zip(agreement, density, strict=True)]
    assert known_store.clarity.tolist() == pytest.approx([*expected, 0], rel=1e-6)
    assert known_store.order("clarity") == [1, 0, 2]
    assert [row.clarity for row in known_store.table()] == known_store.clarity.tolist()[:3]


def test_a_density_of_one_percent_or_less_costs_nothing(known_store: FeatureStore):
    rare = replace(known_store, numbers=replace(known_store.numbers, n_tokens=900))
    assert rare.clarity.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 6, 0])


@pytest.mark.parametrize(
    ("words", "agreement"),
    [((" Word", "word"), 2 / 3), (("of", "to"), 1 / 3), (("\n", " "), 1 / 6), ((" ", " "), 1 / 3), (("A", "a"), 1 / 3)],
)
def test_texts_are_one_but_for_case_and_spaces_around_and_words_count_more(
    known_store: FeatureStore, words: tuple[str, str], agreement: float
):
    position = known_store.windows.position.clone()
    position[0, 1] = 3  # the second context of latent 0 peaks on token 2, the first on token 3
    names = {"⟨2⟩": words[0], "⟨3⟩": words[1]}
    vocabulary = tuple(names.get(each, each) for each in known_store.texts.vocabulary)
    store = replace(
        known_store,
        numbers=replace(known_store.numbers, n_tokens=900),
        windows=replace(known_store.windows, position=position),
        texts=replace(known_store.texts, vocabulary=vocabulary),
    )
    assert float(store.clarity[0]) == pytest.approx(agreement)


def test_the_most_common_text_counts():
    texts = np.array([[1, 1, 2, -1], [3, 2, 3, 3], [-1, -1, -1, -1], [0, 1, 0, 1]])
    assert _largest_group(texts, np.ones(4)).tolist() == [2, 3, 0, 2]
    assert _largest_group(texts, np.array([1, 0.25, 1, 0.5])).tolist() == [1, 1.5, 0, 2]
