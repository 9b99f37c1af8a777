"""dictionary-learning 0.1.0, run by ``test_dictionary_learning.py`` in its own environment."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as installed
from types import SimpleNamespace
from typing import Any

import torch
from dictionary_learning.evaluation import evaluate
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from peer_dictionary_learning_training import schedules, train
from peer_serve import serve
from safetensors.torch import load_file, save_file


def version() -> Mapping[str, Any]:
    return {"dictionary_learning": installed("dictionary-learning"), "torch": torch.__version__}


def jumprelu_l0_gradient(tensors: str, out: str, bandwidth: float) -> Mapping[str, Any]:
    """∂(mean L0)/∂θ as the trainer's own loss has it.

    ``W_dec`` is zero, so that the reconstruction loss does not depend on the activations; what is left is
    ``(L0/target - 1)²``, whose outer derivative is divided out.
    """
    given = load_file(tensors)
    d_in, d_sae = given["W_enc"].shape
    target = 1.0
    trainer = JumpReluTrainer(
        steps=10,
        activation_dim=d_in,
        dict_size=d_sae,
        layer=0,
        lm_name="none",
        bandwidth=bandwidth,
        warmup_steps=1,
        sparsity_warmup_steps=None,
        target_l0=target,
    )
    with torch.no_grad():
        trainer.ae.W_enc.copy_(given["W_enc"])
        trainer.ae.threshold.copy_(given["threshold"])
        for zeroed in (trainer.ae.b_enc, trainer.ae.W_dec, trainer.ae.b_dec):
            zeroed.zero_()
    x = given["x"]
    trainer.loss(x, step=5).backward()
    l0 = ((x @ given["W_enc"]) > given["threshold"]).float().sum(1).mean()
    save_file({"gradient": trainer.ae.threshold.grad * target / (2 * (l0 / target - 1))}, out)
    return {"l0": float(l0)}


def figures(given: str, batch_tokens: int) -> Mapping[str, Any]:
    """Its ``evaluate`` of reconstructions and latents that were made elsewhere, a batch of rows at a time."""
    rows = load_file(given)
    batches = list(zip(*(rows[name].split(batch_tokens) for name in ("x", "x_hat", "latents")), strict=True))
    answers = iter(batches)

    class Given(SimpleNamespace):
        def __call__(self, x: torch.Tensor, output_features: bool) -> tuple[torch.Tensor, torch.Tensor]:
            own, x_hat, latents = next(answers)
            assert torch.equal(own, x)
            return x_hat, latents

    dictionary = Given(dict_size=rows["latents"].shape[1])
    return evaluate(dictionary, (x for x, _, _ in batches), n_batches=len(batches))


if __name__ == "__main__":
    serve({f.__name__: f for f in (version, jumprelu_l0_gradient, schedules, train, figures)})
