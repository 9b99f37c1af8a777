"""Meta-dictionaries that are trained: shared structure is found where it is, and not where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monosema.coders import SAE, ReLU, SparseCoder
from monosema.core.errors import ConfigError
from monosema.evaluation.benchmarks import MetaConfig
from monosema.runs.decoder_structure import decoder_structure

OPTIONS = MetaConfig(width_fraction=1 / 8, k=2, n_steps=25, lr=4e-2, seeds=(0, 1))


def dictionary(decoder: torch.Tensor) -> SparseCoder:
    coder = SAE(decoder.shape[1], len(decoder), activation=ReLU(), hook_name="site")
    with torch.no_grad():
        coder.W_dec.copy_(decoder)
    return coder


def test_composed_directions_are_explained_and_random_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    parts = torch.nn.functional.normalize(torch.randn(16, 32, generator=generator), dim=1)
    chosen = torch.stack([torch.randperm(16, generator=generator)[:2] for _ in range(128)])
    composed = parts[chosen].sum(1)
    shared = decoder_structure(dictionary(composed), OPTIONS, progress=False)
    separate = decoder_structure(
        dictionary(torch.randn(128, 32, generator=generator)), replace(OPTIONS, seeds=(0,)), progress=False
    )
    assert shared.fve > 0.8
    assert separate.fve < 0.5
    assert shared.fve_std > 0
    assert [each.seed for each in shared.dictionaries] == [0, 1]
    assert all(each.n_meta_latents == 16 for each in shared.dictionaries)
    few = replace(OPTIONS, n_steps=2, seeds=(4,))
    again = [decoder_structure(dictionary(composed), few, progress=False) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    "wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"n_steps": 0}, {"width_fraction": 0.0}, {"batch_size": 0}]
)
def test_options_without_sense_are_refused(wrong: dict):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MetaConfig(**wrong)


def test_more_active_meta_latents_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="k"):
        decoder_structure(dictionary(torch.eye(8)), MetaConfig(n_steps=1), progress=False)
