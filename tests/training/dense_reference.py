"""Training again, dense and by autograd: no code of the library but the shapes of its parameters.

Shape letters: B tokens, D width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """What the reference is told about the run."""

    kind: str
    k: float
    bandwidth: float
    coefficient: float
    sparsity_warmup: float
    norm_weighted: bool
    n_steps: int
    lr: float
    warmup: float
    decay: float
    aux_k: int
    aux_coefficient: float
    dead_after: int
    unit_norm: bool
    beta2: float


class _Step(torch.autograd.Function):
    """``1[pre > θ]`` whose gradient reaches pre and θ through a rectangle of width ε."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta = ctx.saved_tensors
        window = ((pre - theta).abs() < ctx.width / 2).to(g.dtype)
        return g * window / ctx.width, -(g * window).sum(0) / ctx.width, None


class _Jump(torch.autograd.Function):
    """``pre · 1[pre > θ]``; the same window, times θ."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, theta = ctx.saved_tensors
        through = g * ((pre - theta).abs() < ctx.width / 2) * theta / ctx.width
        return g * (pre > theta) + through, -through.sum(0), None


class Reference:
    """One SAE with its optimiser; ``parameters`` start as clones of the coder's."""

    def __init__(self, parameters: dict[str, Tensor], recipe: Recipe):
        self.recipe = recipe
        self.p = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        if recipe.unit_norm:
            with torch.no_grad():
                self.p["W_dec"] /= self.p["W_dec"].norm(dim=1, keepdim=True)
        self.adam = torch.optim.Adam(self.p.values(), lr=0.0, betas=(0.9, recipe.beta2), fused=False, foreach=False)
        self.since_fired = torch.zeros(self.p["W_dec"].shape[0], dtype=torch.int64)
        self.step_number = 0
        self.losses: list[float] = []
        self.n_dead: list[int] = []

    def _activate(self, pre: Tensor) -> tuple[Tensor, Tensor | None]:
        """Activations [B, F] and the L0 indicator."""
        recipe, p = self.recipe, self.p
        if recipe.kind == "ReLU":
            return torch.relu(pre), None
        if recipe.kind == "TanhReLU":
            return torch.relu(pre).tanh(), None
        if recipe.kind == "Gated":
            magnitude = torch.relu(pre * p["activation.r_mag"].exp() + p["activation.b_mag"])
            return magnitude * (pre + p["activation.b_gate"] > 0), None
        if recipe.kind == "JumpReLU":
            theta = p["activation.threshold"]
            return _Jump.apply(pre, theta, recipe.bandwidth), _Step.apply(pre, theta, recipe.bandwidth)
        norms = p["W_dec"].detach().norm(dim=1)
        if recipe.kind == "AbsTopK":
            score = pre.abs() * norms
            return pre * (score >= score.topk(int(recipe.k), dim=1).values[:, -1:]), None
        flat = torch.relu(pre)
        score = flat * norms
        if recipe.kind == "TopK":
            kept = score >= score.topk(int(recipe.k), dim=1).values[:, -1:]
        else:
            kept = score >= score.flatten().topk(round(recipe.k * len(pre))).values[-1]
        return flat * kept, None

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the activations."""
        recipe, p, n = self.recipe, self.p, len(x)
        pre = (x - p["b_dec"]) @ p["W_enc_rows"].T
        pre = pre + p["b_enc"] if "b_enc" in p else pre
        f, indicator = self._activate(pre)
        error = x - (f @ p["W_dec"] + p["b_dec"])
        loss = error.square().sum() / n
        rise = recipe.sparsity_warmup * recipe.n_steps
        coefficient = recipe.coefficient * (min(1.0, self.step_number / rise) if rise else 1.0)
        norms = p["W_dec"].norm(dim=1) if recipe.norm_weighted else torch.ones_like(p["W_dec"][:, 0])
        if recipe.kind == "Gated":
            gate = torch.relu(pre + p["activation.b_gate"])
            frozen = gate @ p["W_dec"].detach() + p["b_dec"].detach()
            loss = loss + (x - frozen).square().sum() / n + coefficient * (gate * norms).sum() / n
        elif indicator is not None:
            loss = loss + coefficient * indicator.sum() / n
        else:
            loss = loss + coefficient * (f * norms).sum() / n
        dead = (self.since_fired >= recipe.dead_after).nonzero().flatten()
        self.n_dead.append(len(dead))
        if len(dead):
            signed, own = recipe.kind == "AbsTopK", pre[:, dead]
            weights = p["W_dec"].detach().norm(dim=1)[dead] if recipe.kind.endswith("TopK") else 1.0
            score = (own.abs() if signed else own) * weights
            places = score.topk(min(recipe.aux_k, len(dead)), dim=1).indices
            straight = own if signed else own + (torch.relu(own) - own).detach()
            values = straight.gather(1, places)
            sparse = torch.zeros(n, len(dead), dtype=pre.dtype).scatter(1, places, values)
            left = error.detach() - sparse @ p["W_dec"][dead]
            loss = loss + recipe.aux_coefficient * left.square().sum() / n
        return loss, f.detach()

    def step(self, x: Tensor) -> None:
        recipe = self.recipe
        loss, f = self.loss(x)
        self.adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            decoder, n = self.p["W_dec"], recipe.n_steps
            if recipe.unit_norm:
                decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
            rise = (self.step_number + 1) / max(1.0, recipe.warmup * n)
            fall = (n - self.step_number) / max(1.0, recipe.decay * n)
            self.adam.param_groups[0]["lr"] = recipe.lr * min(1.0, rise, fall)
            self.adam.step()
            if recipe.unit_norm:
                decoder /= decoder.norm(dim=1, keepdim=True)
            if recipe.kind == "JumpReLU":
                self.p["activation.threshold"].clamp_(min=0)
            self.since_fired = torch.where((f != 0).any(0), 0, self.since_fired + len(x))
        self.losses.append(float(loss.detach()))
        self.step_number += 1
