"""``SparseCoder``: SAE, transcoder and skip transcoder in one module.

Shape letters: B tokens, I input width, F latents, O output width, E active entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from monosema.coders.activations.base import Activation, ChannelGradients, Selection
from monosema.coders.config import CoderConfig
from monosema.core.devices import dtype_name, parse_dtype
from monosema.core.errors import ConfigError, ShapeError
from monosema.core.seeds import random_stream
from monosema.kernels import Latents, decode, sampled_products, to_columns, weight_gradient
from monosema.kernels.latents import flat_tokens


@dataclass(frozen=True)
class Encoding:
    """One batch on its way through a coder: what ``backward`` needs."""

    x_BI: Tensor
    """The input as the encoder saw it, ``b_dec`` already subtracted where the coder does so."""
    raw_BI: Tensor
    """The input as it came, tokens flattened."""
    pre_BF: Tensor
    """Pre-activations; the memory is reused by the next batch when a workspace is given."""
    selection: Selection
    """What the activation chose."""

    @property
    def latents(self) -> Latents:
        return self.selection.latents


@dataclass(frozen=True)
class ExtraEntries:
    """Entries outside the selection that a policy trains as well (AuxK): ``g_out`` reaches them only."""

    latents: Latents
    """Entries and their activations."""
    g_out_BO: Tensor
    """∂loss with respect to the decode of these entries."""


@final
class SparseCoder(nn.Module):
    """A dictionary that reads activations, encodes them sparsely and writes predicted activations.

    ``pre = (x - b_dec) W_enc + b_enc``, ``f = activation(pre)``, ``ŷ = f W_dec + b_dec [+ x W_skip]``; ``b_dec`` is
    subtracted only with ``b_dec="input_and_output"``. An SAE writes what it reads (Bricken et al. 2023); a transcoder
    writes an MLP's output from its input (Dunefsky et al. 2024, arXiv 2406.11944).

    Attributes: ``W_enc [d_in, d_sae]``, ``b_enc [d_sae]`` (absent for Gated), ``W_dec [d_sae, d_out]``,
    ``b_dec [d_out]``, ``W_skip [d_in, d_out]`` or None, ``activation`` with its own parameters. ``W_enc`` is a view
    of latent-major storage: a latent's encoder row is contiguous, as its gradient is. ``is_trained`` says whether the
    weights are those of raw activations (trained or loaded) rather than a fresh start.
    """

    def __init__(self, config: CoderConfig, *, metadata: Mapping[str, Any] | None = None):
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.is_trained = False
        dtype = parse_dtype(config.dtype)
        decoder = _unit_rows(config.d_sae, config.d_out, config.seed, "W_dec")
        if config.d_in == config.d_out:
            encoder = decoder.clone()
        else:
            encoder = _unit_rows(config.d_sae, config.d_in, config.seed, "W_enc")
        self.activation: Activation = config.activation.build(config.d_sae).to(dtype)
        self.W_enc_rows = nn.Parameter(encoder.to(dtype))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae, dtype=dtype)) if self.activation.has_encoder_bias else None
        self.W_dec = nn.Parameter(decoder.to(dtype))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out, dtype=dtype)) if config.b_dec != "none" else None
        skip = torch.zeros(config.d_in, config.d_out, dtype=dtype) if config.skip else None
        self.W_skip = nn.Parameter(skip) if skip is not None else None

    # -- what it is

    @property
    def W_enc(self) -> Tensor:
        """``[d_in, d_sae]``, a view."""
        return self.W_enc_rows.T

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_out(self) -> int:
        return self.config.d_out

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def hook_name(self) -> str | None:
        """Site read."""
        return self.config.hook_name

    @property
    def hook_name_out(self) -> str | None:
        """Site written; the site read for an SAE."""
        return self.config.hook_name_out

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def bind(self, hook_name: str, hook_name_out: str, metadata: Mapping[str, Any]) -> None:
        """Record in place which sites the coder reads and writes, and where they came from."""
        self.config = replace(self.config, hook_name=hook_name, hook_name_out=hook_name_out)
        self.metadata.update(metadata)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseCoder:
        super()._apply(fn, recurse)
        self.config = replace(self.config, dtype=dtype_name(self.dtype))
        return self

    # -- what people call

    def encode(self, x: Tensor) -> Tensor:
        """Activations ``[..., d_sae]`` of ``x [..., d_in]`` under the inference rule; autograd passes through."""
        flat = flat_tokens(x, self.d_in, "encode")
        return self.activation.infer_dense(self._pre(flat)[1]).reshape(*x.shape[:-1], self.d_sae)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> Latents:
        """The same activations as ``Latents``, never built densely."""
        latents = self.activation.infer(self._pre(flat_tokens(x, self.d_in, "encode_sparse"))[1])
        return replace(latents, leading_shape=tuple(x.shape[:-1]))

    def decode(self, latents: Latents | Tensor, x: Tensor | None = None) -> Tensor:
        """``f W_dec + b_dec [+ x W_skip]``: ``[..., d_out]``.

        ``x`` is the coder's input and needed by a coder with a skip connection only.
        """
        if isinstance(latents, Latents):
            out = decode(latents, self.W_dec).reshape(*latents.leading_shape, self.d_out)
        else:
            if latents.shape[-1] != self.d_sae:
                raise ShapeError(f"decode: expected [..., {self.d_sae}] activations, got {list(latents.shape)}")
            out = latents @ self.W_dec
        if self.b_dec is not None:
            out = out + self.b_dec
        if self.W_skip is not None:
            if x is None:
                raise ShapeError("decode: this coder has a skip connection; pass its input as decode(latents, x)")
            out = out + x.to(self.dtype) @ self.W_skip
        return out

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction or prediction ``ŷ [..., d_out]`` of ``x [..., d_in]``."""
        if torch.is_grad_enabled() and (x.requires_grad or self.W_dec.requires_grad):
            return self.decode(self.encode(x), x)
        return self.decode(self.encode_sparse(x), x)

    # -- the core operation: three calls

    @torch.no_grad()
    def encode_select(self, x_BI: Tensor, workspace: Tensor | None = None) -> Encoding:
        """Encode ``x [B, d_in]`` under the training rule.

        ``workspace`` is a ``[≥ B, d_sae]`` tensor for the pre-activations, reused from batch to batch.
        """
        flat = flat_tokens(x_BI, self.d_in, "encode_select")
        inner, pre = self._pre(flat, workspace)
        return Encoding(inner, flat, pre, self.activation.select(pre))

    @torch.no_grad()
    def backward(
        self,
        encoding: Encoding,
        g_out_BO: Tensor,
        *,
        g_latents: Tensor | None = None,
        g_near: Tensor | None = None,
        near_step: Tensor | None = None,
        g_gate: Tensor | None = None,
        extra: ExtraEntries | None = None,
        unit_norm: bool = False,
    ) -> dict[str, Tensor]:
        """∂loss/∂parameter for every parameter, by its name in ``named_parameters``.

        Args:
            g_out_BO: ∂loss/∂(output of ``decode``), from any objective.
            g_latents: [E] ∂loss/∂activation beyond what comes through the output (a sparsity loss).
            g_near: [N] the same on near-threshold entries, active or not; JumpReLU's threshold needs it whenever
                ``g_latents`` is given (``∂f/∂θ`` is not zero there).
            near_step: [N] ∂loss/∂1[pre > θ] on near-threshold entries (an L0 loss on JumpReLU).
            g_gate: [G] ∂loss/∂gate value on open-gate entries (Gated).
            extra: entries outside the selection with an output gradient of their own.
            unit_norm: decoder rows have norm one and keep it: leave out the part of their gradient along themselves,
                ``⟨∂loss/∂W_i, W_i⟩ W_i`` with ``⟨∂loss/∂W_i, W_i⟩ = Σ_e f_e ⟨g_out[t_e], W_i⟩`` over its entries.
        """
        selection = encoding.selection
        g_through = sampled_products(selection.latents, g_out_BO, self.W_dec)
        g_active = g_through if g_latents is None else g_through + g_latents
        g_near = self._near_gradient(selection, g_out_BO, g_near, needed=g_latents is not None)
        gate = selection.gate
        if gate is not None and g_gate is None:
            g_gate = torch.zeros_like(gate.values)
        activation = self.activation.backward(selection, ChannelGradients(g_active, g_near, near_step, g_gate))

        columns = to_columns(selection.latents)
        gradients = {f"activation.{name}": value for name, value in activation.parameters.items()}
        gradients["W_dec"] = weight_gradient(columns, selection.latents.values, g_out_BO)
        along = self.W_dec.new_zeros(self.d_sae)
        along.index_add_(0, selection.latents.indices, selection.latents.values * g_through)
        encoder, b_enc = torch.zeros((), dtype=self.dtype, device=self.device), self.W_dec.new_zeros(self.d_sae)
        for entries in activation.pre:
            shared = columns if entries.indices is selection.latents.indices else to_columns(entries)
            part = weight_gradient(shared, entries.values, encoding.x_BI)
            encoder = part if encoder.ndim == 0 else encoder.add_(part)
            b_enc.index_add_(0, entries.indices, entries.values)
        if extra is not None:
            g_extra = sampled_products(extra.latents, extra.g_out_BO, self.W_dec)
            shared = to_columns(extra.latents)
            gradients["W_dec"].add_(weight_gradient(shared, extra.latents.values, extra.g_out_BO))
            encoder.add_(weight_gradient(shared, g_extra, encoding.x_BI))
            b_enc.index_add_(0, extra.latents.indices, g_extra)
            along.index_add_(0, extra.latents.indices, extra.latents.values * g_extra)
        if unit_norm:
            gradients["W_dec"].addcmul_(along.unsqueeze(1), self.W_dec, value=-1)
        gradients["W_enc_rows"] = encoder
        if self.b_enc is not None:
            gradients["b_enc"] = b_enc
        if self.b_dec is not None:
            gradients["b_dec"] = g_out_BO.sum(0)
            if self.config.b_dec == "input_and_output":  # through the input: sum over tokens first, then one product
                gradients["b_dec"] -= b_enc @ self.W_enc_rows
        if self.W_skip is not None:
            gradients["W_skip"] = encoding.raw_BI.to(self.dtype).T @ g_out_BO
        return gradients

    def _near_gradient(self, selection: Selection, g_out: Tensor, given: Tensor | None, needed: bool) -> Tensor | None:
        if selection.near is None:
            assert given is None, "g_near was given, but this activation has no near-threshold entries"
            return None
        assert given is not None or not needed, "a loss on the activations must give g_near where there is a threshold"
        through_output = sampled_products(selection.near, g_out, self.W_dec)
        return through_output if given is None else through_output + given

    def _pre(self, x_BI: Tensor, workspace: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = x_BI.to(self.dtype)
        if self.config.b_dec == "input_and_output" and self.b_dec is not None:
            inner = inner - self.b_dec
        if workspace is None:
            pre = inner @ self.W_enc_rows.T
            return inner, pre if self.b_enc is None else pre + self.b_enc
        out = workspace[: inner.shape[0]]
        if self.b_enc is None:
            return inner, torch.mm(inner, self.W_enc_rows.T, out=out)
        return inner, torch.addmm(self.b_enc, inner, self.W_enc_rows.T, out=out)

    # -- equivalent forms

    @torch.no_grad()
    def fold_W_dec_norm(self) -> Tensor:
        """Make decoder rows unit norm in place, the function unchanged; returns the norms ``[d_sae]`` divided out.

        ``W_dec_i /= n_i``, ``W_enc_i *= n_i``, ``b_enc_i *= n_i``, thresholds too; ``unfold_W_dec_norm`` undoes it.
        """
        norms = self.W_dec.norm(dim=1).clamp(min=1e-8)
        self._scale_latents(norms)
        return norms

    @torch.no_grad()
    def unfold_W_dec_norm(self, norms_F: Tensor) -> None:
        """Undo ``fold_W_dec_norm`` given the norms it returned."""
        self._scale_latents(1 / norms_F)

    @torch.no_grad()
    def fold_input_scaling(self, input_scale: float, output_scale: float) -> None:
        """Turn a coder of scaled activations into one of raw activations, in place.

        If ``g(u)`` predicts ``output_scale · y`` from ``u = input_scale · x``, the folded coder computes
        ``g(input_scale · x) / output_scale``. Calling it with the reciprocals undoes it.
        """
        if not (0 < input_scale < math.inf and 0 < output_scale < math.inf):
            raise ConfigError(f"input scaling must be positive and finite, got {input_scale} and {output_scale}")
        if self.config.b_dec == "input_and_output" and input_scale != output_scale:
            raise ConfigError("a coder that subtracts b_dec from its input needs equal input and output scaling")
        self.W_enc_rows.mul_(input_scale)
        self.W_dec.div_(output_scale)
        if self.b_dec is not None:
            self.b_dec.div_(output_scale)
        if self.W_skip is not None:
            self.W_skip.mul_(input_scale / output_scale)

    def _scale_latents(self, factors_F: Tensor) -> None:
        self.activation.scale_latents_(factors_F)
        self.W_dec.div_(factors_F.unsqueeze(1))
        self.W_enc_rows.mul_(factors_F.unsqueeze(1))
        if self.b_enc is not None:
            self.b_enc.mul_(factors_F)

    def extra_repr(self) -> str:
        sites = self.hook_name if self.hook_name == self.hook_name_out else f"{self.hook_name} -> {self.hook_name_out}"
        return f"d_in={self.d_in}, d_sae={self.d_sae}, d_out={self.d_out}, {self.config.activation}, site={sites}"


def _unit_rows(n_rows: int, width: int, seed: int, name: str) -> Tensor:
    # float32 whatever torch's default dtype is: the same seed must draw the same numbers
    rows = torch.randn(n_rows, width, generator=random_stream(seed, "coder", name), dtype=torch.float32)
    return rows / rows.norm(dim=1, keepdim=True)
