"""Tiny models, tokenizers and stores that are built once and only read."""

import pytest
from features_tiny import HOSTILE, byte_level_tokenizer, known_coder, known_model, known_tokens, text_store

from monosema.features import FeatureStore, collect_features


@pytest.fixture(scope="session")
def known_store() -> FeatureStore:
    """The store whose numbers are computed by hand in ``features_tiny``."""
    return collect_features(
        known_coder(), known_model(), known_tokens(), n_histogram_bins=5, n_logits=3, batch_size=2, progress=False
    )


@pytest.fixture(scope="session")
def hostile_store() -> FeatureStore:
    """Features of text that tries to break pages."""
    return text_store(HOSTILE, byte_level_tokenizer(HOSTILE))
