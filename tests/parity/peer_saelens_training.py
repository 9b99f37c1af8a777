"""What ``peer_saelens.py`` answers about training: steps of sae-lens' own trainer, gradients of its coders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def train(
    tensors: str, out: str, architecture: str, options: dict[str, Any], run: dict[str, Any], dead_steps: int | None
) -> Mapping[str, Any]:
    """One step on each of the batches; ``dead_steps`` is since when the marked latents have not fired."""
    given = load_file(tensors)
    weights, batches = _part(given, "weights."), given["batches"]
    sae = _with_weights(*get_sae_training_class(architecture), weights, options)
    n_steps, n_tokens = batches.shape[:2]
    config = SAETrainerConfig(
        total_training_samples=n_steps * n_tokens,
        train_batch_size_samples=n_tokens,
        lr_end=run["lr"] / 10,
        **run,
    )
    trainer = SAETrainer(config, sae, iter(batches))
    if dead_steps is not None:
        trainer.n_forward_passes_since_fired[given["dead"]] = dead_steps
    gradients, before = _first_step(trainer, batches[0])
    losses = []
    for batch in batches:
        made = trainer.step(batch)
        trainer.n_training_steps += 1
        losses.append({"loss": float(made.loss), **{name: float(value) for name, value in made.losses.items()}})
    state = {
        "state.since_fired": trainer.n_forward_passes_since_fired.clone(),
        "state.n_active": made.feature_acts.count_nonzero(),
        "state.log_sparsity": trainer.log_feature_sparsity.clone(),
    }
    if hasattr(sae, "topk_threshold"):
        state["state.threshold"] = sae.topk_threshold.clone()
    save_file({**gradients, **before, **_named("weights.", dict(sae.named_parameters())), **state}, out)
    return {"losses": losses}


def fit(
    tensors: str,
    out: str,
    architecture: str,
    options: dict[str, Any],
    run: dict[str, Any],
    n_estimate: int,
) -> Mapping[str, Any]:
    """A whole run: the scaling from the first ``n_estimate`` batches, training on the others, the scaling folded in."""
    given = load_file(tensors)
    batches = given["batches"]
    sae = _with_weights(*get_sae_training_class(architecture), _part(given, "weights."), options)
    n_tokens = batches.shape[1]
    config = SAETrainerConfig(
        total_training_samples=(len(batches) - n_estimate) * n_tokens,
        train_batch_size_samples=n_tokens,
        n_batches_for_norm_estimate=n_estimate,
        lr_end=run["lr"] / 10,
        **run,
    )
    folded = SAETrainer(config, sae, iter(batches)).fit()
    last = batches[-1]
    with torch.no_grad():
        kept = {"state.output": folded(last).clone(), "state.b_dec": folded.b_dec.clone()}
    save_file(kept, out)
    return {"losses": []}


def lr_schedule(name: str, n_steps: int, warm_up_steps: int, decay_steps: int, n_cycles: int) -> Mapping[str, Any]:
    """The learning rate at every step, of 1 at its peak and 0.1 at the main part's end."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_lr_scheduler(name, optimizer, n_steps, 1.0, warm_up_steps, decay_steps, 0.1, n_cycles)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return {"lr": rates}


def transcode(tensors: str, out: str, architecture: str, options: dict[str, Any]) -> Mapping[str, Any]:
    """``mean ‖y - ŷ‖²`` of a transcoder on ``x`` and ``y``, side by side in the one batch, and its gradients."""
    given = load_file(tensors)
    weights = _part(given, "weights.")
    sae = _with_weights(*get_sae_class(architecture), weights, options)
    x, y = given["batches"][0].split([options["d_in"], options["d_out"]], dim=1)
    y_hat = sae(x)
    loss = (y - y_hat).square().sum(dim=1).mean()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in sae.named_parameters() if parameter.grad is not None}
    kept = {"state.output": y_hat.detach().clone(), **_named("weights.", dict(sae.named_parameters()))}
    save_file({**_named("gradients.", gradients), **kept}, out)
    return {"losses": [{"loss": float(loss), "mse": float(loss)}]}


def _first_step(trainer: SAETrainer[Any, Any], batch: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients before the trainer clips them, latents and output; on a copy, for the forward pass changes state."""
    sae = copy.deepcopy(trainer.sae)
    step = TrainStepInput(
        sae_in=batch,
        coefficients=trainer.get_coefficients(),
        dead_neuron_mask=trainer.dead_neurons,
        n_training_steps=0,
        is_logging_step=False,
    )
    made = sae.training_forward_pass(step)
    made.loss.backward()
    gradients = _named("gradients.", {name: parameter.grad for name, parameter in sae.named_parameters()})
    return gradients, _named("state.first_", {"activations": made.feature_acts, "output": made.sae_out})


def _with_weights(sae_class: Any, config_class: Any, weights: Mapping[str, Tensor], options: dict[str, Any]) -> Any:
    sae = sae_class(config_class(**options, dtype=str(weights["W_dec"].dtype).removeprefix("torch.")))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            value = weights[name].T.contiguous() if name == "W_skip" else weights[name]
            if name == "threshold":  # which sae-lens keeps in float32 whatever the rest is in
                sae.threshold = nn.Parameter(value)
            else:
                parameter.copy_(value)
    return sae


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    transposed = {name: value.detach().T if name == "W_skip" else value.detach() for name, value in tensors.items()}
    return {prefix + name: value.clone().contiguous() for name, value in transposed.items()}
