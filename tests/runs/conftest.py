from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model

import monosema as ms


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(scope="session")
def model(model_folder: Path) -> ms.LanguageModel:
    return ms.load_model(str(model_folder))


@pytest.fixture(scope="session")
def tokens(model: ms.LanguageModel, text_file: Path) -> ms.Tokens:
    return ms.load_tokens(str(text_file), model.tokenizer, 32, heldout_fraction=0.1)
