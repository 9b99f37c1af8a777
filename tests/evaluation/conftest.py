"""The tiny models are built once: they are only read."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from evaluation_tiny import TOKENIZER, tiny_contexts, tiny_decoder, tiny_encoder
from torch import Tensor

from monosema.models import LanguageModel


@pytest.fixture(scope="session")
def decoder() -> LanguageModel:
    return tiny_decoder()


@pytest.fixture(scope="session")
def encoder() -> LanguageModel:
    return tiny_encoder(TOKENIZER)


@pytest.fixture
def contexts(decoder: LanguageModel) -> Tensor:
    return tiny_contexts(decoder)
