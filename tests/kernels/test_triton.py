"""The Triton programs: without a GPU, by Triton's interpreter in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coder_cases import randn
from kernels.conftest import INTERPRETED

from monosema.kernels import bags, latents_from_mask, to_columns, weight_gradient

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process it starts")
def test_the_programs_equal_their_twins() -> None:
    """The other tests of this folder, run on the programs."""
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "sparse or hand or longest", HERE]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="runs where the programs are interpreted")
@pytest.mark.parametrize("longest", [4, 7, 512])
def test_bags_longer_than_the_longest_are_cut(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    from monosema.kernels import triton_bags

    monkeypatch.setattr(triton_bags, "LONGEST", longest)
    monkeypatch.setattr(bags, "DENSE_DENSITY", 2.0)
    x, table = randn(40, 24, seed=0), randn(40, 37, seed=1)
    x[:, 3], x[:, 7] = 5.0, 5.0
    latents = latents_from_mask(x, x > 1.2)
    expected = (x * (x > 1.2)).T @ table
    torch.testing.assert_close(weight_gradient(to_columns(latents), latents.values, table), expected)
