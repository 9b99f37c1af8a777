"""A report whose figures are all known, for tests of how reports are shown."""

from __future__ import annotations

import math

import torch

from monosema.evaluation import Report


def report(**changes) -> Report:
    values = {
        "fve": 0.75,
        "mse": 12345.678,
        "cosine": 0.9,
        "norm_ratio": 0.95,
        "relative_reconstruction_bias": math.nan,
        "l0": 32.0,
        "l0_std": 0.0,
        "l1": 3.5,
        "dead_fraction": 0.25,
        "dead_fraction_reliable": True,
        "n_alive": 1536,
        "d_sae": 2048,
        "n_tokens": 200_192,
        "hook_name": "blocks.1.hook_resid_post",
        "hook_name_out": "blocks.1.hook_resid_post",
        "split": "heldout",
        "firing_density": torch.tensor([0.5, 0.0]),
    }
    return Report(**(values | changes))
