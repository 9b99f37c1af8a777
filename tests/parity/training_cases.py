"""What the comparisons of training share: weights by name, our trainer's run on them, the peer's, and what is equal.

Weights go by the names that coders are saved with: ``W_enc [d_in, d_sae]``, ``b_enc``, ``W_dec [d_sae, d_out]``,
``b_dec``, ``W_skip [d_in, d_out]``, ``threshold``, ``b_gate``, ``r_mag``, ``b_mag``. Each peer's script renames them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peer import Peer
from safetensors.torch import load_file, save_file
from torch import Tensor

from monosema.coders import JumpReLU, SparseCoder
from monosema.training import Trainer, TrainingConfig

D_IN, D_SAE, N_TOKENS, N_STEPS = 12, 40, 24, 12
FLOAT32, FLOAT64 = 1e-5, 1e-9
"""Relative to the largest value of a tensor: after one step in float32, and after ``N_STEPS`` in float64."""
DEAD = torch.arange(D_SAE) >= D_SAE - 15
"""The latents that both sides are told have not fired for long, where a case has dead ones."""
LONG_AGO = 100
"""Steps since they fired; a latent is dead after more than ``DEAD_STEPS`` of them."""
DEAD_STEPS = 50

PEERS: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "warmup_fraction": 0.0,
    "decay_fraction": 0.0,
    "lr_schedule": "constant",
    "reconstruction": "sum_of_squares",
    "revive": None,
    "b_dec_init": "zeros",
    "input_scaling": "none",
}
"""What both peers do where a case does not ask for something else, in words of ``TrainingConfig``: whatever the
defaults are here, both sides of a case are the same."""
SAELENS: dict[str, Any] = {**PEERS, "decoder": "free", "grad_clip": 1.0}
"""sae-lens 6.54.12 clips at 1 and leaves decoder rows their norms."""
DICTIONARY_LEARNING: dict[str, Any] = {**PEERS, "decoder": "unit_norm", "grad_clip": None}
"""Most trainers of dictionary-learning 0.1.0 keep decoder rows at norm one; some clip."""


@dataclass(frozen=True)
class Run:
    """Some optimiser steps of either side."""

    losses: list[dict[str, float]]
    """Loss terms and what steers them by name, of each step."""
    gradients: dict[str, Tensor]
    """∂loss/∂weights at the first step: before any clipping; ours with the decoder's projection."""
    weights: dict[str, Tensor]
    """After the last step."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Whatever else is compared."""


def random_weights(
    dtype: torch.dtype,
    *,
    names: tuple[str, ...] = ("W_enc", "b_enc", "W_dec", "b_dec"),
    d_out: int = D_IN,
    unit_norm: bool = False,
    dead: Literal["none", "positive", "silent"] = "none",
) -> dict[str, Tensor]:
    """Weights of a size that matters, decoder rows of unequal norm unless ``unit_norm``.

    The pre-activations of the latents ``DEAD`` may be ``positive``, but too small to be among the largest, or negative.
    """
    generator = torch.Generator().manual_seed(11)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, d_out), "b_dec": (d_out,), "W_skip": (D_IN, d_out)}
    weights = {
        name: torch.randn(shapes.get(name, (D_SAE,)), generator=generator, dtype=torch.float64) / 3 for name in names
    }
    if "threshold" in weights:
        weights["threshold"].abs_()
    if unit_norm:
        weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
    if dead != "none":
        weights["W_enc"][:, DEAD] *= 0.1
        weights["b_enc"][DEAD] = 1.0 if dead == "positive" else -1.0
        if dead == "positive":
            weights["b_enc"][~DEAD] += 4.0
    return {name: value.to(dtype).contiguous() for name, value in weights.items()}


def random_batches(dtype: torch.dtype, n_steps: int, width: int = D_IN) -> Tensor:
    """``[n_steps, N_TOKENS, width]``, not centred."""
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(n_steps, N_TOKENS, width, generator=generator, dtype=torch.float64) + 0.3).to(dtype)


def jumprelu(bandwidth: float, *, ste_to_input: bool = False) -> JumpReLU:
    """As the peers have it: a rectangular window, from which thresholds learn and nothing else by default."""
    return JumpReLU(bandwidth=bandwidth, kernel="rectangle", ste_to_input=ste_to_input, init_threshold=0.01)


def put(coder: SparseCoder, weights: Mapping[str, Tensor]) -> SparseCoder:
    """Give ``coder`` the weights; every parameter must be among them."""
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.copy_(_ours(_common(name), weights[_common(name)]))
    return coder


def train_ours(
    coder: SparseCoder, config: dict[str, Any], batches: Tensor, dead: Tensor | None = None
) -> tuple[Run, Trainer]:
    """As many steps of ``Trainer`` as there are batches; the schedules span just these unless ``config`` has tokens.

    ``config`` is a peer's options (``SAELENS`` or ``DICTIONARY_LEARNING``) with the case's own.
    """
    assert set(PEERS) <= set(config), "a comparison must not depend on our defaults: begin with the peer's options"
    n_steps, n_tokens = batches.shape[:2]
    trainer = Trainer(coder, TrainingConfig(**{"tokens": n_steps * n_tokens, **config}), n_tokens)
    if dead is not None:
        trainer.statistics.tokens_since_fired[dead] = LONG_AGO * n_tokens
    update, handed = trainer._optimizer.step_, []

    def record(gradients: Mapping[str, Tensor], loss: Tensor, lr: float, *directions: Collection[str]) -> Tensor:
        handed.append({_common(name): _ours(_common(name), value).clone() for name, value in gradients.items()})
        return update(gradients, loss, lr, *directions)

    trainer._optimizer.step_ = record  # type: ignore[method-assign]
    losses = []
    for batch in batches:
        trainer.step(batch)
        metrics = trainer.metrics()
        terms = {name.removeprefix("loss/"): value for name, value in metrics.items() if name.startswith("loss/")}
        further = ("loss", "penalty", "sparsity_coefficient", "p")
        losses.append({**terms, **{name: metrics[name] for name in further if name in metrics}})
    weights = {_common(name): _ours(_common(name), value.detach()) for name, value in coder.named_parameters()}
    return Run(losses, handed[0], weights), trainer


def train_theirs(
    peer: Peer,
    folder: Path,
    weights: Mapping[str, Tensor],
    batches: Tensor,
    command: str = "train",
    *,
    dead: Tensor = DEAD,
    **arguments: Any,
) -> Run:
    """The peer's own trainer on the same, ``command`` of its script; ``dead`` marks latents for its arguments."""
    tensors, out = folder / "in.safetensors", folder / "out.safetensors"
    save_file({**{f"weights.{k}": v for k, v in weights.items()}, "batches": batches, "dead": dead}, tensors)
    answer = peer.call(command, tensors=str(tensors), out=str(out), **arguments)
    found = load_file(out)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    return Run(answer["losses"], part("gradients."), part("weights."), part("state."))


def along_decoder(gradients: Mapping[str, Tensor], W_dec: Tensor) -> dict[str, Tensor]:
    """Gradients with the part of the decoder's that changes its rows' norms taken out, by its definition."""
    unit = W_dec / W_dec.norm(dim=1, keepdim=True)
    g = gradients["W_dec"]
    return {**gradients, "W_dec": g - (g * unit).sum(1, keepdim=True) * unit}


def assert_same_losses(
    theirs: list[dict[str, float]], ours: list[dict[str, float]], names: Mapping[str, str], tolerance: float
) -> None:
    """Their term ``key`` is our term ``value`` at every step, and none of these is zero at the last."""
    assert len(theirs) == len(ours) > 0
    assert all(ours[-1][name] for name in names.values())
    for step, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        for name, value in names.items():
            assert abs(their[name] - our[value]) <= tolerance * abs(our[value]), f"{name} at step {step}"


def assert_same_tensors(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], tolerance: float, leave_out: tuple[str, ...] = ()
) -> None:
    """Equal to ``tolerance`` of each tensor's largest value; none may be missing, and none zero throughout."""
    assert set(theirs) == set(ours)
    for name in sorted(set(ours) - set(leave_out)):
        assert_close(theirs[name], ours[name], tolerance, name)


def assert_close(theirs: Tensor, ours: Tensor, tolerance: float, name: str = "") -> None:
    assert theirs.shape == ours.shape, name
    scale = float(ours.abs().max())
    assert scale > 0, f"{name} is zero: a comparison of nothing"
    off = float((theirs - ours).abs().max()) / scale
    assert off <= tolerance, f"{name} is off by {off:.2e} of its largest value"


def _common(name: str) -> str:
    return {"W_enc_rows": "W_enc"}.get(name, name.removeprefix("activation."))


def _ours(name: str, value: Tensor) -> Tensor:
    return value.T if name == "W_enc" else value
