"""How threads wait: what importing monosema sets, and what it leaves alone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from monosema.core import devices, openmp

CODE = """
import os, sys
if "torch" in sys.argv:
    import types
    sys.modules["torch"] = types.ModuleType("torch")  # stands for torch that somebody imported first
import monosema
from monosema.core.openmp import VARIABLES, threads_spin
assert ("torch" in sys.argv) == ("torch" in sys.modules)
print({name: os.environ[name] for name in VARIABLES if name in os.environ}, threads_spin())
"""


@pytest.mark.parametrize(
    ("given", "argument", "expected"),
    [
        ({}, "", "{'OMP_WAIT_POLICY': 'PASSIVE', 'GOMP_SPINCOUNT': '1000'} False"),
        ({}, "torch", "{} True"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", "{'OMP_WAIT_POLICY': 'ACTIVE'} False"),
        ({"GOMP_SPINCOUNT": "7"}, "torch", "{'GOMP_SPINCOUNT': '7'} False"),
        ({"KMP_BLOCKTIME": "0"}, "", "{'KMP_BLOCKTIME': '0'} False"),
    ],
)
def test_threads_sleep_unless_torch_is_loaded_or_the_user_said_otherwise(
    given: dict[str, str], argument: str, expected: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in openmp.VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", CODE, argument], env={**inherited, **given}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected


def test_that_threads_spin_is_said_once_and_only_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    devices._say_that_threads_spin.cache_clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(openmp, "_late", False)
    cpu = torch.device("cpu")
    with caplog.at_level(logging.WARNING, logger="monosema"):
        devices.say_if_threads_spin(cpu)
        monkeypatch.setattr(openmp, "_late", True)
        devices.say_if_threads_spin(torch.device("meta"))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        devices.say_if_threads_spin(cpu)
        assert caplog.messages == []
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        devices.say_if_threads_spin(cpu)
        devices.say_if_threads_spin(cpu)
    (message,) = caplog.messages
    assert "import monosema first, or set OMP_WAIT_POLICY=PASSIVE" in message
