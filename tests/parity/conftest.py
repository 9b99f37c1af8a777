"""Parity tests need the peers' environments (``environments.py``) and ``--run-parity``; else they say so and skip."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this file, whatever pytest's import mode

from environments import DICTIONARY_LEARNING, SAEBENCH, SAELENS, Environment
from peer import Peer

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-parity"):
        return
    reason = pytest.mark.skip(reason="compares with the peers in environments of their own; run `make parity`")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(reason)


@pytest.fixture(scope="session")
def saelens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    yield from _peer(SAELENS, "peer_saelens.py", tmp_path_factory)


@pytest.fixture(scope="session")
def dictionary_learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    yield from _peer(DICTIONARY_LEARNING, "peer_dictionary_learning.py", tmp_path_factory)


@pytest.fixture(scope="session")
def saebench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    yield from _peer(SAEBENCH, "peer_saebench.py", tmp_path_factory)


def _peer(environment: Environment, script: str, folders: pytest.TempPathFactory) -> Iterator[Peer]:
    if not environment.is_ready():
        pytest.skip(
            f"no environment {environment.folder.name}; run `python tests/parity/environments.py "
            f"--only {environment.name}`"
        )
    peer = Peer(environment.python, script, folders.mktemp(environment.name) / "log.txt")
    try:
        peer.call("version")  # a peer that cannot be imported says so once
        yield peer
    finally:
        peer.close()
