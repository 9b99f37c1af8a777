"""EleutherAI sparsify's coder under ``step.py``: one update as its ``Trainer.fit`` makes it, with Adam."""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import version

import torch
from protocol import Prepared, Problem, serve, variance_explained
from torch import Tensor

with contextlib.redirect_stdout(sys.stderr):  # it says which decoder it uses
    from sparsify import SparseCoder, SparseCoderConfig


def prepare(problem: Problem, first: Tensor) -> Prepared:
    torch.manual_seed(0)
    coder = SparseCoder(
        problem.d_in,
        SparseCoderConfig(num_latents=problem.d_sae, k=problem.k),
        device=problem.device,
        dtype=torch.float32,
    )
    with torch.no_grad():
        coder.b_dec.copy_(first.mean(0))
    adam = torch.optim.Adam(coder.parameters(), lr=2e-4 / (problem.d_sae / 2**14) ** 0.5)
    since_fired = torch.zeros(problem.d_sae, dtype=torch.long, device=problem.device)

    def step(batch: Tensor) -> None:
        if coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        with problem.autocast():
            out = coder(batch, dead_mask=None)
        out.fvu.backward()
        if coder.cfg.normalize_decoder:
            coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        since_fired.add_(len(batch))
        since_fired[out.latent_indices.flatten()] = 0

    @torch.no_grad()
    def finish(batch: Tensor) -> tuple[float, float]:
        out = coder(batch)
        return variance_explained(batch, out.sae_out), float((out.latent_acts > 0).sum()) / len(batch)

    n_parameters = sum(parameter.numel() for parameter in coder.parameters())
    return Prepared({"eai-sparsify": version("eai-sparsify")}, step, finish, n_parameters)


if __name__ == "__main__":
    serve(prepare)
