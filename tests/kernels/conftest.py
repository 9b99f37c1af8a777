"""With ``TRITON_INTERPRET=1`` these tests run the Triton programs on the CPU, by Triton's own interpreter."""

import os

import pytest

from monosema.kernels import bags, select

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        for module in (bags, select):
            monkeypatch.setattr(module, "runs_triton", lambda _: True)
