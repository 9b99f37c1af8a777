"""The Triton programs: without a GPU, by Triton's interpreter in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coder_cases import randn
from kernels.conftest import INTERPRETED

from monosema.kernels import (
    Latents,
    Scores,
    bags,
    latents_from_mask,
    reference,
    select_batch_top_k,
    select_batch_top_k_of_parts,
    select_row_top_k,
    to_columns,
    weight_gradient,
)

HERE = Path(__file__).parent
STEPS = HERE.parent / "training" / "test_triton_step.py"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process it starts")
def test_the_programs_equal_their_twins() -> None:
    """The other tests of this folder, and whole steps, run on the programs."""
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "sparse or hand or programs", HERE, STEPS]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs where the programs are interpreted")


def same(a: Latents, b: Latents) -> None:
    assert torch.equal(a.crow, b.crow)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.values, b.values)


def hostile(n_tokens: int, d_sae: int) -> dict[str, torch.Tensor]:
    """Pre-activations that are hard to choose from."""
    pre = randn(n_tokens, d_sae, seed=3).float()  # the programs are for float32
    broken = pre.clone()
    broken[0, ::3], broken[-1, 0] = float("nan"), float("inf")
    return {
        "normal": pre,
        "tied": (2 * pre).round(),
        "few positive": pre - 2.5,
        "all equal": torch.ones_like(pre),
        "nothing positive": -pre.abs(),
        "broken": broken,
    }


@interpreted
@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (3, 1056)])
@pytest.mark.parametrize("kind", hostile(2, 32))
def test_programs_choose_what_the_twins_choose(shape: tuple[int, int], kind: str) -> None:
    pre = hostile(*shape)[kind]
    known = pre.nan_to_num(nan=-1.0, posinf=torch.inf)  # sorting takes NaN for the largest
    for k in (1, 5, 40):
        filled = select_row_top_k(pre, k, may_fill=True)
        assert filled.nnz == shape[0] * min(k, shape[1])
        assert bool((filled.indices >= 0).all()) and bool((filled.indices < shape[1]).all())
        same(select_row_top_k(pre, k), reference.row_top_k_dense(known, k))
    for n in (1, pre.numel() // 2 + 1, pre.numel() + 1):
        expected = reference.batch_top_k_dense(known, n)
        filled, least = select_batch_top_k(pre, n, may_fill=True)
        assert filled.nnz == min(n, pre.numel())
        same(filled.where(filled.values != 0, filled.values), expected)
        assert float(least) == (float(expected.values.min()) if expected.nnz == n else 0.0)


@interpreted
def test_programs_choose_from_parts_what_they_choose_from_all() -> None:
    pre = hostile(7, 70)["tied"]
    for n in (1, 60, 300):
        parts, _ = select_batch_top_k_of_parts(lambda: iter(pre.split(3)), (7, 70), n)
        same(parts, reference.batch_top_k_dense(pre, n))


@interpreted
@pytest.mark.parametrize("signed", [False, True])
def test_programs_choose_by_magnitudes_and_norms(signed: bool) -> None:
    pre, weights = hostile(4, 100)["tied"], randn(100, seed=5).abs().float()
    scores = Scores(pre, weights, signed).dense()
    rows = select_row_top_k(pre, 7, weights, signed=signed)
    same(rows, Scores(pre, weights, signed).activations(reference.row_top_k_dense(scores, 7)))
    batch, least = select_batch_top_k(pre, 31, None, weights, signed=signed)
    expected = reference.batch_top_k_dense(scores, 31)
    same(batch, Scores(pre, weights, signed).activations(expected))
    assert float(least) == float(expected.values.min())


@interpreted
@pytest.mark.parametrize("longest", [4, 7, 512])
def test_programs_cut_bags_longer_than_the_longest(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    from monosema.kernels import triton_bags

    monkeypatch.setattr(triton_bags, "LONGEST", longest)
    monkeypatch.setattr(bags, "DENSE_DENSITY", 2.0)
    x, table = randn(40, 24, seed=0), randn(40, 37, seed=1)
    x[:, 3], x[:, 7] = 5.0, 5.0
    latents = latents_from_mask(x, x > 1.2)
    expected = (x * (x > 1.2)).T @ table
    torch.testing.assert_close(weight_gradient(to_columns(latents), latents.values, table), expected)
