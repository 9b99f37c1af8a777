"""What ``peer_dictionary_learning.py`` answers about training: steps of its own trainers, and of repaired ones.

Everything is made under the given weights' dtype, so that the peer works in float64 where it does not say otherwise.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from dictionary_learning.trainers import batch_top_k, jumprelu, matryoshka_batch_top_k, p_anneal, standard, top_k
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.trainer import get_lr_schedule, get_sparsity_warmup_fn
from safetensors.torch import load_file, save_file
from torch import Tensor

TRAINERS = {
    "standard": standard.StandardTrainer,
    "standard_april": standard.StandardTrainerAprilUpdate,
    "p_anneal": p_anneal.PAnnealTrainer,
    "gdm": GatedSAETrainer,
    "gated_anneal": GatedAnnealTrainer,
    "jumprelu": jumprelu.JumpReluTrainer,
    "top_k": top_k.TopKTrainer,
    "batch_top_k": batch_top_k.BatchTopKTrainer,
    "matryoshka_batch_top_k": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
}
NAMES = {
    "AutoEncoder": {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec"},
    "GatedAutoEncoder": {
        "encoder.weight": "W_enc",
        "decoder.weight": "W_dec",
        "decoder_bias": "b_dec",
        "gate_bias": "b_gate",
        "mag_bias": "b_mag",
    },
    "AutoEncoderTopK": {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
    "BatchTopKSAE": {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"},
}
"""The common names of weights that a class calls otherwise."""


def train(
    tensors: str,
    out: str,
    trainer: str,
    options: dict[str, Any],
    first_step: int = 0,
    dead_tokens: tuple[int, int] | None = None,
    record: tuple[str, ...] = (),
    exact: bool = False,
    pre_jump: bool = False,
) -> Mapping[str, Any]:
    """One ``update`` on each of the batches, the first at ``first_step``.

    Args:
        dead_tokens: a latent is dead after so many tokens, and the marked ones have not fired for so many.
        record: attributes of the trainer that are given back as they are after each step.
        exact: take the 1e-6 out of the decoder gradient's projection.
        pre_jump: give JumpReLU's step function the pre-activations.
    """
    with _dtype(load_file(tensors)["batches"].dtype), _exact_projection(exact), _step_of_pre_activations(pre_jump):
        return _train(load_file(tensors), out, trainer, options, first_step, dead_tokens, record)


def schedules(n_steps: int, lr: dict[str, Any], sparsity_warmup_steps: int) -> Mapping[str, Any]:
    """The factors of learning rate and penalty at every step."""
    rate, penalty = get_lr_schedule(n_steps, **lr), get_sparsity_warmup_fn(n_steps, sparsity_warmup_steps)
    return {"lr": [rate(n) for n in range(n_steps)], "penalty": [penalty(n) for n in range(n_steps)]}


def _train(
    given: dict[str, Tensor],
    out: str,
    name: str,
    options: dict[str, Any],
    first_step: int,
    dead_tokens: tuple[int, int] | None,
    record: tuple[str, ...],
) -> Mapping[str, Any]:
    weights = {key.removeprefix("weights."): value for key, value in given.items() if key.startswith("weights.")}
    d_in, d_sae = weights["W_enc"].shape
    common = {"activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": "none", "device": "cpu"}
    trainer = TRAINERS[name](**common, **options)
    with torch.no_grad():
        for key, parameter in trainer.ae.named_parameters():
            parameter.copy_(_turned(key, weights[_common(trainer, key)]))
    if dead_tokens is not None:
        trainer.dead_feature_threshold = dead_tokens[0]
        trainer.num_tokens_since_fired[given["dead"]] = dead_tokens[1]
    probe = _copied(trainer)
    probe.loss(given["batches"][0], step=first_step).backward()
    gradients = {key: parameter.grad.clone() for key, parameter in probe.ae.named_parameters()}
    losses, drawn_from = [], []
    for step, batch in enumerate(given["batches"], start=first_step):
        terms = _copied(trainer).loss(batch, step=step, logging=True)[3]
        terms["loss"] = float(_copied(trainer).loss(batch, step=step))
        with _recorded_draws(drawn_from):
            trainer.update(step, batch)
        losses.append({**terms, **{f"after/{name}": float(getattr(trainer, name)) for name in record}})
    saved = {f"gradients.{_common(trainer, key)}": _turned(key, value) for key, value in gradients.items()}
    for key, parameter in trainer.ae.named_parameters():
        saved[f"weights.{_common(trainer, key)}"] = _turned(key, parameter.detach()).clone()
        for moment, value in trainer.optimizer.state.get(parameter, {}).items():
            if moment != "step":
                saved[f"state.{_common(trainer, key)}.{moment}"] = _turned(key, value).clone()
    if "threshold" not in weights and hasattr(trainer.ae, "threshold"):
        saved["state.threshold"] = trainer.ae.threshold.clone()
    if drawn_from:
        saved["state.drawn_from"] = drawn_from[-1]
    if hasattr(trainer, "num_tokens_since_fired"):
        saved["state.since_fired"] = trainer.num_tokens_since_fired.clone()
    save_file({key: value.contiguous() for key, value in saved.items()}, out)
    return {"losses": losses}


def _copied(trainer: Any) -> Any:
    """A copy, as ``loss`` changes state. Trainers keep parts of the newest loss's graph, which cannot be copied."""
    for name, value in vars(trainer).items():
        if isinstance(value, Tensor) and not value.is_leaf:
            setattr(trainer, name, value.detach())
    return copy.deepcopy(trainer)


def _common(trainer: Any, key: str) -> str:
    return NAMES.get(type(trainer.ae).__name__, {}).get(key, key)


def _turned(key: str, value: Tensor) -> Tensor:
    return value.T.contiguous() if key.endswith("coder.weight") else value


@contextlib.contextmanager
def _dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _recorded_draws(drawn_from: list[Tensor]) -> Iterator[None]:
    """Append what ``torch.multinomial`` draws from."""
    multinomial = torch.multinomial

    def record(weights: Tensor, *arguments: Any, **options: Any) -> Tensor:
        drawn_from.append(weights.detach().clone())
        return multinomial(weights, *arguments, **options)

    torch.multinomial = record
    try:
        yield
    finally:
        torch.multinomial = multinomial


@contextlib.contextmanager
def _exact_projection(wanted: bool) -> Iterator[None]:
    def exact(W_dec: Tensor, gradient: Tensor, activation_dim: int, d_sae: int) -> Tensor:
        unit = W_dec / W_dec.norm(dim=0, keepdim=True)
        return gradient - (gradient * unit).sum(0, keepdim=True) * unit

    name = "remove_gradient_parallel_to_decoder_directions"
    modules = (jumprelu, top_k, batch_top_k, matryoshka_batch_top_k) if wanted else ()
    before = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, torch.no_grad()(exact))
    try:
        yield
    finally:
        for module, function in zip(modules, before, strict=True):
            setattr(module, name, function)


@contextlib.contextmanager
def _step_of_pre_activations(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    jump, step = jumprelu.JumpReLUFunction, jumprelu.StepFunction
    seen: list[Tensor] = []

    class Jump:
        @staticmethod
        def apply(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
            seen[:] = [pre]
            return jump.apply(pre, threshold, bandwidth)

    class Step:
        @staticmethod
        def apply(f: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
            return step.apply(seen[0], threshold, bandwidth)

    jumprelu.JumpReLUFunction, jumprelu.StepFunction = Jump, Step
    try:
        yield
    finally:
        jumprelu.JumpReLUFunction, jumprelu.StepFunction = jump, step
