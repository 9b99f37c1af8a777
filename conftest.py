"""Options of the whole test run; they must stand in the root to be known however pytest is called."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-parity",
        action="store_true",
        help="compare with sae-lens and dictionary-learning in environments of their own (`make parity`)",
    )
