"""The encoder product alone under ``step.py``: what a step cannot be faster than."""

from __future__ import annotations

import torch
from protocol import Prepared, Problem, serve
from torch import Tensor


def prepare(problem: Problem, first: Tensor) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    there = {"device": problem.device, "dtype": getattr(torch, problem.precision)}
    encoder = torch.randn(problem.d_sae, problem.d_in, generator=generator).to(**there)
    bias, out = torch.zeros(problem.d_sae, **there), torch.empty(problem.batch_size, problem.d_sae, **there)

    def step(batch: Tensor) -> None:
        torch.addmm(bias, batch.to(encoder.dtype), encoder.T, out=out)

    return Prepared({}, step, lambda _: (float("nan"), float("nan")), encoder.numel())


if __name__ == "__main__":
    serve(prepare)
