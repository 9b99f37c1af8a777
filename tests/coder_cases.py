"""The table of coders that contract tests run over, and an independent dense reference for each.

Adding an activation to ``ACTIVATIONS`` adds all its contract and gradient tests. The reference shares no code with
the library: dense tensors, selection by sorting Python tuples, gradients by autograd with straight-through
estimators of its own. Shape letters: B tokens, I input width, F latents, O output width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import (
    SAE,
    AbsTopK,
    ActivationConfig,
    BatchTopK,
    CoderConfig,
    Crosscoder,
    Gated,
    JumpReLU,
    Latents,
    ReLU,
    SparseCoder,
    TanhReLU,
    TopK,
    Transcoder,
)
from monosema.coders.config import BDecMode
from monosema.coders.initial import zero_acausal_

D_IN, D_SAE, D_OUT = 12, 40, 9


class Leaves(dict[str, Tensor]):
    """Parameters by name, and the widths of the sites written."""

    widths: tuple[int, ...] = ()


def leaves_of(coder: SparseCoder, *, grad: bool = False) -> Leaves:
    """Copies of a coder's parameters."""
    leaves = Leaves({name: p.detach().clone().requires_grad_(grad) for name, p in coder.named_parameters()})
    leaves.widths = coder.config.write_widths
    return leaves


@dataclass(frozen=True)
class Channels:
    """What the dense reference makes of pre-activations."""

    f: Tensor
    """[B, F] activations under the training rule."""
    step: Tensor | None = None
    """[B, F] ``1[pre > θ]`` with its straight-through gradient (JumpReLU)."""
    gate: Tensor | None = None
    """[B, F] ``ReLU(π)`` (Gated)."""


@dataclass(frozen=True)
class ActivationCase:
    """One activation under test."""

    config: Callable[[], ActivationConfig]
    train: Callable[[Tensor, Leaves], Channels]
    """Dense training rule."""
    infer: Callable[[Tensor, Leaves], Tensor]
    """Dense inference rule."""
    max_entries: Callable[[int], int] | None = None
    """The largest number of active entries in a batch of B tokens, where there is a bound."""
    scale_free: bool = True
    """Whether unequal decoder norms can be folded into the encoder."""
    prepare: Callable[[SparseCoder], None] = lambda coder: None


class _Jump(torch.autograd.Function):
    """``pre · 1[pre > θ]``; arXiv 2407.14435, equation 11 for θ, and its negative for ``pre`` where asked for."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width, ctx.to_input = width, to_input
        return torch.where(pre > theta, pre, torch.zeros_like(pre))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        pre, theta = ctx.saved_tensors
        kernel = (((pre - theta) / ctx.width).abs() < 0.5).to(g.dtype)
        estimate = (theta / ctx.width) * kernel * g
        return g * (pre > theta) + ctx.to_input * estimate, -estimate.sum(0), None, None


class _Step(torch.autograd.Function):
    """``1[pre > θ]``; arXiv 2407.14435, equation 12 for θ, and its negative for ``pre`` where asked for."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width, ctx.to_input = width, to_input
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        pre, theta = ctx.saved_tensors
        estimate = (((pre - theta) / ctx.width).abs() < 0.5).to(g.dtype) * g / ctx.width
        return ctx.to_input * estimate, -estimate.sum(0), None, None


def _keep(pre: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    mask = torch.zeros_like(pre)
    if pairs:
        mask[tuple(torch.tensor(pairs).T)] = 1
    return pre * mask


def largest(values: list[tuple[float, int, int]], n: int) -> list[tuple[int, int]]:
    """Places of the n largest positive of (value, token, latent): larger value, lower token, lower latent."""
    ranked = sorted(values, key=lambda entry: (-entry[0], entry[1], entry[2]))[:n]
    return [(token, latent) for value, token, latent in ranked if value > 0]


def entries_of(pre: Tensor) -> list[tuple[float, int, int]]:
    return [(v, token, latent) for token, row in enumerate(pre.tolist()) for latent, v in enumerate(row)]


def _top_k(pre: Tensor, k: int) -> Tensor:
    values = entries_of(pre.detach())
    rows = itertools.groupby(values, key=lambda entry: entry[1])
    return _keep(pre, [place for _, row in rows for place in largest(list(row), k)])


def _batch_top_k(pre: Tensor, k: float) -> Tensor:
    return _keep(pre, largest(entries_of(pre.detach()), round(k * pre.shape[0])))


def _norms(leaves: Leaves) -> Tensor:
    """[F] decoder norms that weigh the selection: summed over sites."""
    return sum(
        (site.norm(dim=1) for site in leaves["W_dec"].detach().split(leaves.widths, dim=1)),
        torch.zeros((), dtype=torch.float64),
    )


def _weighted_top_k(pre: Tensor, leaves: Leaves, k: int) -> Tensor:
    chosen = _top_k(pre * _norms(leaves), k) != 0
    return pre * chosen


def _weighted_batch_top_k(pre: Tensor, leaves: Leaves, k: float) -> Tensor:
    chosen = _batch_top_k(pre * _norms(leaves), k) != 0
    return pre * chosen


def _abs_top_k(pre: Tensor, k: int) -> Tensor:
    return pre * (_top_k(pre.abs(), k) != 0)


def _positive(pre: Tensor) -> Tensor:
    return torch.where(pre > 0, pre, torch.zeros_like(pre))


def _gated(pre: Tensor, leaves: Leaves) -> Channels:
    pi = pre + leaves["activation.b_gate"]
    magnitude = pre * leaves["activation.r_mag"].exp() + leaves["activation.b_mag"]
    return Channels((pi > 0).to(pre.dtype) * _positive(magnitude), gate=_positive(pi))


WINDOW = 0.5


def _jump_relu(pre: Tensor, leaves: Leaves, to_input: bool = True) -> Channels:
    theta = leaves["activation.threshold"]
    return Channels(_Jump.apply(pre, theta, WINDOW, to_input), step=_Step.apply(pre, theta, WINDOW, to_input))


def _fix_threshold(coder: SparseCoder) -> None:
    coder.activation.set_threshold(0.4)


def _above(pre: Tensor, score: Tensor) -> Tensor:
    return torch.where(score > 0.4, pre, torch.zeros_like(pre))


ACTIVATIONS = {
    "relu": ActivationCase(ReLU, lambda pre, _: Channels(_positive(pre)), lambda pre, _: _positive(pre)),
    "topk": ActivationCase(
        lambda: TopK(k=3, weight_by_decoder_norm=False),
        lambda pre, _: Channels(_top_k(pre, 3)),
        lambda pre, _: _top_k(pre, 3),
        max_entries=lambda n: 3 * n,
        scale_free=False,
    ),
    "batchtopk": ActivationCase(
        lambda: BatchTopK(k=3, weight_by_decoder_norm=False),
        lambda pre, _: Channels(_batch_top_k(pre, 3)),
        lambda pre, _: _batch_top_k(pre, 3),
        max_entries=lambda n: 3 * n,
        scale_free=False,
    ),
    "batchtopk_fractional": ActivationCase(
        lambda: BatchTopK(k=2.6, weight_by_decoder_norm=False),
        lambda pre, _: Channels(_batch_top_k(pre, 2.6)),
        lambda pre, _: _batch_top_k(pre, 2.6),
        max_entries=lambda n: round(2.6 * n),
        scale_free=False,
    ),
    "batchtopk_threshold": ActivationCase(
        lambda: BatchTopK(k=3, weight_by_decoder_norm=False),
        lambda pre, _: Channels(_batch_top_k(pre, 3)),
        lambda pre, _: torch.where(pre > 0.4, pre, torch.zeros_like(pre)),
        scale_free=False,
        prepare=_fix_threshold,
    ),
    "tanhrelu": ActivationCase(
        TanhReLU,
        lambda pre, _: Channels(_positive(pre).tanh()),
        lambda pre, _: _positive(pre).tanh(),
        scale_free=False,
    ),
    "abstopk": ActivationCase(
        lambda: AbsTopK(k=3, weight_by_decoder_norm=False),
        lambda pre, _: Channels(_abs_top_k(pre, 3)),
        lambda pre, _: _abs_top_k(pre, 3),
        scale_free=False,
    ),
    "abstopk_threshold": ActivationCase(
        lambda: AbsTopK(k=3, inference="threshold", weight_by_decoder_norm=False),
        lambda pre, _: Channels(_abs_top_k(pre, 3)),
        lambda pre, _: _above(pre, pre.abs()),
        scale_free=False,
        prepare=_fix_threshold,
    ),
    "topk_weighted": ActivationCase(
        lambda: TopK(k=3),
        lambda pre, leaves: Channels(_weighted_top_k(pre, leaves, 3)),
        lambda pre, leaves: _weighted_top_k(pre, leaves, 3),
        max_entries=lambda n: 3 * n,
    ),
    "batchtopk_weighted": ActivationCase(
        lambda: BatchTopK(k=3),
        lambda pre, leaves: Channels(_weighted_batch_top_k(pre, leaves, 3)),
        lambda pre, leaves: _above(pre, pre * _norms(leaves)),
        prepare=_fix_threshold,
    ),
    "abstopk_weighted": ActivationCase(
        lambda: AbsTopK(k=3),
        lambda pre, leaves: Channels(pre * (_top_k(pre.abs() * _norms(leaves), 3) != 0)),
        lambda pre, leaves: pre * (_top_k(pre.abs() * _norms(leaves), 3) != 0),
    ),
    "jumprelu": ActivationCase(
        lambda: JumpReLU(init_threshold=0.3, bandwidth=WINDOW),
        _jump_relu,
        lambda pre, leaves: pre * (pre > leaves["activation.threshold"]),
    ),
    "jumprelu_to_threshold": ActivationCase(
        lambda: JumpReLU(init_threshold=0.3, bandwidth=WINDOW, ste_to_input=False),
        lambda pre, leaves: _jump_relu(pre, leaves, to_input=False),
        lambda pre, leaves: pre * (pre > leaves["activation.threshold"]),
    ),
    "gated": ActivationCase(Gated, _gated, lambda pre, leaves: _gated(pre, leaves).f),
}


def _sae(b_dec: BDecMode) -> Callable[[ActivationConfig, str, int], SparseCoder]:
    return lambda activation, dtype, d_sae: SAE(D_IN, d_sae, activation=activation, b_dec=b_dec, dtype=dtype)


def _skip_sae(activation: ActivationConfig, dtype: str, d_sae: int) -> SparseCoder:
    return SparseCoder(CoderConfig(d_in=D_IN, d_sae=d_sae, d_out=D_IN, activation=activation, skip=True, dtype=dtype))


CODERS: dict[str, Callable[[ActivationConfig, str, int], SparseCoder]] = {
    "sae": _sae("input_and_output"),
    "sae_output_bias": _sae("output"),
    "sae_no_bias": _sae("none"),
    "sae_skip": _skip_sae,
    "transcoder": lambda a, dtype, d_sae: Transcoder(D_IN, D_OUT, d_sae, activation=a, dtype=dtype),
    "transcoder_two_biases": lambda a, dtype, d_sae: Transcoder(
        D_IN, D_OUT, d_sae, activation=a, b_dec="separate", dtype=dtype
    ),
    "crosscoder": lambda a, dtype, d_sae: Crosscoder((D_IN // 2,) * 2, d_sae, activation=a, dtype=dtype),
    "crosscoder_causal": lambda a, dtype, d_sae: Crosscoder(
        (D_IN // 2,) * 2, max(2, d_sae), activation=a, causal=True, dtype=dtype
    ),
    "skip_transcoder": lambda a, dtype, d_sae: Transcoder(D_IN, D_OUT, d_sae, activation=a, skip=True, dtype=dtype),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@torch.no_grad()
def randomise_(coder: SparseCoder, seed: int = 0) -> SparseCoder:
    """Give every parameter values that matter: about half of the pre-activations positive, no bias zero."""
    for i, (name, parameter) in enumerate(sorted(coder.named_parameters())):
        drawn = randn(*parameter.shape, seed=1000 * seed + i)
        if name == "activation.threshold":
            parameter.copy_(0.3 + 0.1 * drawn.tanh())
        elif parameter.ndim == 2:
            parameter.copy_(drawn / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.2 * drawn)
    if coder.config.causal:
        zero_acausal_(coder.W_enc_rows, coder.W_dec, coder.config)
    return coder


def make(activation: str, coder: str, *, dtype: str = "float64", seed: int = 0, d_sae: int = D_SAE) -> SparseCoder:
    """A coder of the table with random parameters."""
    made = randomise_(CODERS[coder](ACTIVATIONS[activation].config(), dtype, d_sae), seed)
    ACTIVATIONS[activation].prepare(made)
    return made


@dataclass(frozen=True)
class DenseForward:
    """One batch through the dense reference, with a graph to the leaves."""

    leaves: Leaves
    pre: Tensor
    channels: Channels
    out: Tensor

    causal: bool = False

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        names = list(self.leaves)
        found = torch.autograd.grad(loss, [self.leaves[name] for name in names], allow_unused=True, retain_graph=True)
        pairs = zip(names, found, strict=True)
        made = {name: torch.zeros_like(self.leaves[name]) if g is None else g for name, g in pairs}
        if (
            self.causal
        ):  # two sites: the first half of the latents never reads the second, the other never writes the first
            half, width = len(made["W_dec"]) // 2, D_IN // 2
            made["W_enc_rows"] = made["W_enc_rows"].clone()
            made["W_dec"] = made["W_dec"].clone()
            made["W_enc_rows"][:half, width:] = 0
            made["W_dec"][half:, :width] = 0
        return made


def dense_pre(coder: SparseCoder, leaves: Leaves, x_BI: Tensor) -> Tensor:
    inner = x_BI - leaves["b_dec"] if coder.config.b_dec == "input_and_output" else x_BI
    inner = inner - leaves["b_dec_in"] if "b_dec_in" in leaves else inner
    pre = inner @ leaves["W_enc_rows"].T
    return pre + leaves["b_enc"] if "b_enc" in leaves else pre


def dense_forward(coder: SparseCoder, activation: str, x_BI: Tensor) -> DenseForward:
    """The training forward pass of ``coder`` on ``x``, computed densely with autograd."""
    leaves = leaves_of(coder, grad=True)
    pre = dense_pre(coder, leaves, x_BI)
    channels = ACTIVATIONS[activation].train(pre, leaves)
    out = channels.f @ leaves["W_dec"]
    if "b_dec" in leaves:
        out = out + leaves["b_dec"]
    if "W_skip" in leaves:
        out = out + x_BI @ leaves["W_skip"]
    return DenseForward(leaves, pre, channels, out, coder.config.causal)


def assert_canonical(latents: Latents) -> None:
    """Rows in order, indices ascending and in range, row pointers consistent, no zeros stored."""
    assert latents.crow.dtype == torch.int32
    assert latents.indices.dtype == torch.int32
    assert latents.crow.shape == (latents.n_tokens + 1,)
    assert latents.indices.shape == latents.values.shape == (latents.nnz,)
    assert int(latents.crow[0]) == 0
    assert int(latents.crow[-1]) == latents.nnz
    assert bool((latents.crow.diff() >= 0).all())
    assert bool((latents.values != 0).all())
    if latents.nnz:
        assert int(latents.indices.min()) >= 0
        assert int(latents.indices.max()) < latents.d_sae
    for start, end in itertools.pairwise(latents.crow.tolist()):
        assert bool((latents.indices[start:end].diff() > 0).all()), "indices must ascend within a row"
    count = 1
    for size in latents.leading_shape:
        count *= size
    assert count == latents.n_tokens
