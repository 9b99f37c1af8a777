"""A calibrated threshold gives the wanted L0 on the tokens it was calibrated on, exactly."""

from __future__ import annotations

import math

import pytest
import torch

import monosema as ms
from monosema.core.errors import ConfigError, DataError


def rows(n: int = 5000) -> torch.Tensor:
    return torch.randn(n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "activation",
    [ms.BatchTopK(k=2.5), ms.TopK(k=3, inference="threshold"), ms.AbsTopK(k=3, inference="threshold")],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_l0_is_the_target_less_one_entry(activation, weighted):
    from dataclasses import replace

    coder = ms.SAE(8, 32, activation=replace(activation, weight_by_decoder_norm=weighted), dtype="float64")
    with torch.no_grad():
        coder.W_dec.mul_(torch.linspace(0.5, 2, 32).unsqueeze(1))
    x = rows()
    for target in (None, 1.25):
        found = ms.calibrate_threshold(coder, x, target_l0=target)
        wanted = activation.k if target is None else target
        assert coder.activation.threshold == found > 0
        assert coder.encode_sparse(x).nnz == round(wanted * len(x)) - 1


def test_tokens_that_fire_unevenly_are_seen_whole():
    coder = ms.SAE(8, 32, activation=ms.BatchTopK(k=1), dtype="float64")
    x = rows(9000)
    x[:4096] *= 1e-3  # nearly all large scores are in the later batches
    ms.calibrate_threshold(coder, [x[:4096], x[4096:4200], x[4200:]])
    assert coder.encode_sparse(x).nnz == 9000 - 1
    ms.calibrate_threshold(coder, x, n_tokens=4096)
    assert coder.encode_sparse(x[:4096]).nnz == 4096 - 1


def test_what_cannot_be_calibrated_is_refused():
    for activation in (ms.TopK(k=3), ms.ReLU(), ms.JumpReLU()):
        with pytest.raises(ConfigError, match="has no threshold to calibrate"):
            ms.calibrate_threshold(ms.SAE(8, 32, activation=activation), rows())
    coder = ms.SAE(8, 32, activation=ms.BatchTopK(k=3), dtype="float64")
    with pytest.raises(ConfigError, match="target_l0 must be"):
        ms.calibrate_threshold(coder, rows(), target_l0=0)
    for bad in (math.nan, math.inf):
        broken = rows()
        broken[4500, 3] = bad
        with pytest.raises(DataError, match=r"activations of batch 1 must be finite.*\[404, 3\]"):
            ms.calibrate_threshold(coder, broken)
    with pytest.raises(DataError, match=r"no activations were given$"):
        ms.calibrate_threshold(coder, [])
    uneven = rows()
    uneven[:4096] *= 1e-3
    with pytest.raises(DataError, match="read more than once: give a list, not an iterator"):
        ms.calibrate_threshold(coder, iter([uneven]), target_l0=0.05)
    with pytest.raises(DataError, match="scores a token are positive"):
        ms.calibrate_threshold(coder, rows(), target_l0=31.9)
    assert coder.activation.threshold is None
