import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model


@pytest.fixture(scope="module", autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command line sets the level and a handler of the ``monosema`` logger; other tests need theirs."""
    logger = logging.getLogger("monosema")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No MONOSEMA_… of the machine's, and an empty working directory (no .env)."""
    import os

    for name in list(os.environ):
        if name.startswith("MONOSEMA_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
