from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model


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
