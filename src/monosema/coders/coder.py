"""``SparseCoder``: SAE, transcoder, skip transcoder and crosscoder in one module.

Shape letters: B tokens, I input width, F latents, O output width, E active entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from monosema.coders.activations.base import Activation
from monosema.coders.activations.family import FixedCount
from monosema.coders.backward import parameter_gradients
from monosema.coders.config import CoderConfig, TokenScaling
from monosema.coders.dictionary import LatentNumbers, rows_of, whole_part
from monosema.coders.encoder_product import EncoderProduct, encoder_product, rescore_
from monosema.coders.encoding import Contribution, Encoding
from monosema.coders.initial import initial_weights
from monosema.coders.names import OF_ACTIVATION, translate_, unknown_names, view_of, write_
from monosema.coders.parts import Part
from monosema.coders.scaling import Scaling
from monosema.coders.site_transform import replace_records
from monosema.coders.sites import SiteRef
from monosema.coders.token_scaling import ScaledTokens, scale_tokens
from monosema.coders.trainable import TrainableDictionary
from monosema.core.devices import dtype_name, parse_dtype
from monosema.core.errors import ConfigError, ShapeError
from monosema.core.peers_attributes import OF_DICTIONARY, hints_attributes
from monosema.kernels import Latents, Levels, decode, decode_levels
from monosema.kernels.latents import flat_tokens
from monosema.kernels.precision import autocast_dtype, product, shadow


@final
@hints_attributes(OF_DICTIONARY)
class SparseCoder(TrainableDictionary):
    """A dictionary that reads activations, encodes them sparsely and writes predicted activations.

    ``pre = (x - b_dec) W_enc + b_enc``, ``f = activation(pre)``, ``ŷ = f W_dec + b_dec [+ x W_skip]``; ``b_dec`` is
    subtracted only with ``b_dec="input_and_output"``, and ``b_dec_in`` in its place with ``b_dec="separate"``. An SAE
    writes what it reads (Bricken et al. 2023); a transcoder writes an MLP's output from its input (Dunefsky et al.
    2024, arXiv 2406.11944).

    With ``token_scaling``, x above is each token scaled by its own size, and ŷ of an SAE or crosscoder is scaled back:
    its ``decode`` needs the input, as that of a skip connection does. Latents, and what the decoder rows add, are then
    in scaled units.

    Attributes: ``W_enc [d_in, d_sae]``, ``b_enc [d_sae]`` (absent for Gated), ``W_dec [d_sae, d_out]``,
    ``b_dec [d_out]``, ``b_dec_in [d_in]`` and ``W_skip [d_in, d_out]``, each or None, ``activation`` with its own
    parameters. ``W_enc`` is a view of latent-major storage: a latent's encoder row is contiguous, as its gradient is.
    Weights of one's own are brought in by assigning ``W_enc``, by ``W_enc.data = ...`` or in place, and by
    ``load_state_dict``, which takes the names above, with or without ``activation.`` before a parameter of the
    activation. It refuses names that the coder does not have, also with ``strict=False``.
    """

    saved_kind: ClassVar[Literal["coder"]] = "coder"
    config: CoderConfig

    def __init__(self, config: CoderConfig, *, metadata: Mapping[str, Any] | None = None):
        super().__init__(metadata)
        self.config = config
        dtype = parse_dtype(config.dtype)
        encoder, decoder = initial_weights(config)
        self.activation: Activation = config.activation.build(config.d_sae).to(dtype)
        self.W_enc_rows = nn.Parameter(encoder.to(dtype))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae, dtype=dtype)) if self.activation.has_encoder_bias else None
        self.W_dec = nn.Parameter(decoder.to(dtype))
        self.b_dec = nn.Parameter(torch.zeros(config.d_out, dtype=dtype)) if config.b_dec != "none" else None
        self.b_dec_in = nn.Parameter(torch.zeros(config.d_in, dtype=dtype)) if config.b_dec == "separate" else None
        skip = torch.zeros(config.d_in, config.d_out, dtype=dtype) if config.skip else None
        self.W_skip = nn.Parameter(skip) if skip is not None else None

    # -- what it is

    @property
    def W_enc(self) -> Tensor:
        """``[d_in, d_sae]``, a view; what is assigned to it or to its ``.data`` is copied into the stored rows."""
        return view_of(self.W_enc_rows)

    @W_enc.setter
    def W_enc(self, value: Tensor) -> None:
        write_(self.W_enc_rows.T, value, "W_enc")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "W_enc":  # torch would take an nn.Parameter for a further one
            object.__setattr__(self, name, value)
        elif name in OF_ACTIVATION:
            raise AttributeError(
                f"{name} is kept in coder.activation: use coder.activation.{name}, or "
                "coder.activation.set_threshold() of TopK, AbsTopK and BatchTopK"
            )
        else:
            super().__setattr__(name, value)

    @property
    def variant(self) -> str:
        if len(self.write_widths) > 1 or len(self.read_widths) > 1:
            return "Crosscoder"
        if self.has_skip:
            return "SkipTranscoder"
        return "SAE" if self.reconstructs else "Transcoder"

    @property
    def architecture(self) -> str:
        return f"{type(self.config.activation).__name__} {self.variant_words}"

    @property
    def hook_name(self) -> str | None:
        return self.config.hook_name

    @property
    def hook_name_out(self) -> str | None:
        return self.config.hook_name_out

    @property
    def read_widths(self) -> tuple[int, ...]:
        return self.config.read_widths

    @property
    def write_widths(self) -> tuple[int, ...]:
        return self.config.write_widths

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def parts(self) -> tuple[Part[SparseCoder], ...]:
        """The coder itself, as the one part of a dictionary."""
        return whole_part(self)

    @property
    def token_scaling(self) -> TokenScaling:
        return self.config.token_scaling

    @property
    def has_skip(self) -> bool:
        return self.W_skip is not None

    @property
    def n_active(self) -> float | None:
        return getattr(self.config.activation, "k", None)

    @property
    def input_bias(self) -> Tensor | None:
        """``[d_in]``: what is subtracted from the input."""
        return self.b_dec if self.config.b_dec == "input_and_output" else self.b_dec_in

    def site_norms(self) -> Tensor:
        """``[d_sae, sites written]``: norms of the decoder rows' slices."""
        return torch.stack([part.norm(dim=1) for part in self.W_dec.split(self.config.write_widths, dim=1)], dim=1)

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def bind(self, hook_name: str, hook_name_out: str, metadata: Mapping[str, Any]) -> None:
        """Record in place which sites the coder reads and writes, and where they came from."""
        self.config = replace(self.config, hook_name=hook_name, hook_name_out=hook_name_out)
        replace_records(self.metadata, metadata)

    def set_token_scaling(self, kind: TokenScaling) -> None:
        """From now on scale tokens as ``kind`` says, in place; the weights stay and mean something else."""
        self.config = replace(self.config, token_scaling=kind)

    def scale_tokens(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` as the weights see it: ``x`` itself without ``token_scaling``."""
        return x if self.config.token_scaling == "none" else self._scaled_tokens(x).u

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Also takes the field's names; ``W_enc`` among them says that the weights are those of raw activations."""
        is_brought_in = prefix + "W_enc" in state_dict
        errors: list[str] = others[-1]
        errors += translate_(state_dict, prefix, self.W_enc_rows, self.activation)
        errors += unknown_names(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *others)
        self.is_trained = self.is_trained or is_brought_in

    def _apply(self, fn: Any, recurse: bool = True) -> SparseCoder:
        super()._apply(fn, recurse)
        self.config = replace(self.config, dtype=dtype_name(self.dtype))
        return self

    # -- what people call

    def encode(self, x: Tensor) -> Tensor:
        """Activations ``[..., d_sae]`` of ``x [..., d_in]`` under the inference rule; autograd passes through."""
        flat = flat_tokens(x, self.d_in, "encode")
        dense = self.activation.infer_dense(self._pre(self._read(flat)), self.selection_weights())
        return dense.reshape(*x.shape[:-1], self.d_sae)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> Latents:
        """The same activations as ``Latents``, never built densely."""
        pre = self._pre(self._read(flat_tokens(x, self.d_in, "encode_sparse")))
        return replace(self.activation.infer(pre, self.selection_weights()), leading_shape=tuple(x.shape[:-1]))

    def decode(self, latents: Latents | Tensor, x: Tensor | None = None) -> Tensor:
        """``f W_dec + b_dec [+ x W_skip]``: ``[..., d_out]``; scaled back where ``token_scaling`` says so.

        ``x`` is the coder's input. A coder with a skip connection needs it, and one that scales its output back by each
        token's size, which latents do not hold: nothing is remembered from an earlier ``encode``. ``ShapeError``
        without it.
        """
        if isinstance(latents, Latents):
            out = decode(latents, self.W_dec).reshape(*latents.leading_shape, self.d_out)
        else:
            if latents.shape[-1] != self.d_sae:
                raise ShapeError(f"decode: expected [..., {self.d_sae}] activations, got {list(latents.shape)}")
            out = latents @ self.W_dec
        return self._scaled_back(self._add_offset(out, x), x)

    def decode_levels(self, levels: Levels, x_BI: Tensor) -> Tensor:
        """The nested reconstructions ``[B, G, d_out]`` of entries grouped into levels."""
        offset = self._add_offset(self.W_dec.new_zeros(len(x_BI), self.d_out), x_BI)
        return self._scaled_back(decode_levels(levels, self.W_dec).add_(offset.unsqueeze(1)), x_BI.unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction or prediction ``ŷ [..., d_out]`` of ``x [..., d_in]``."""
        if torch.is_grad_enabled() and (x.requires_grad or self.W_dec.requires_grad):
            return self.decode(self.encode(x), x)
        return self.decode(self.encode_sparse(x), x)

    # -- its latents

    def encoder_rows(self, latents: LatentNumbers) -> Tensor:
        """``[n, d_in]``: rows of ``W_encᵀ``."""
        return rows_of(self.W_enc_rows, latents)

    def encoder_biases(self, latents: LatentNumbers) -> Tensor | None:
        """``[n]``: entries of ``b_enc``."""
        return None if self.b_enc is None else rows_of(self.b_enc, latents)

    def decoder_rows(self, latents: LatentNumbers, site: SiteRef | int | None = None) -> Tensor:
        """``[n, d_out]``: rows of ``W_dec``, or ``[n, width]`` of them for one site."""
        return rows_of(self.W_dec if site is None else self.W_dec[:, self.columns_of(site)], latents)

    # -- the core operation: three calls

    @torch.no_grad()
    def encode_select(
        self,
        x_BI: Tensor,
        workspace: Tensor | None = None,
        *,
        window: float | None = None,
        noise_BF: Tensor | None = None,
        product: EncoderProduct | None = None,
        scaled: bool = False,
        pre_BF: Tensor | None = None,
    ) -> Encoding:
        """Encode ``x [B, d_in]`` under the training rule.

        Under ``torch.autocast`` the product runs in low precision and finds candidates; those are rescored in float32.

        Args:
            scaled: x is as ``scale_tokens`` gives it, and so is the output that ``backward`` is given a gradient for.
            workspace: ``[n, d_sae]`` for the pre-activations of n tokens at a time, reused from batch to batch; all
                tokens at once without it, with ``product`` and under ``torch.autocast``.
            window: also collect the entries this near their threshold (a loss on L0 needs them).
            noise_BF: added to the pre-activations.
            product: computes the pre-activations in place of ``encoder_product``, compiled for example.
            pre_BF: they themselves, where they were made together with those of other coders; changed in place.
        """
        flat, weights, spread = flat_tokens(x_BI, self.d_in, "encode_select"), self.selection_weights(), None
        if self.config.token_scaling != "none" and not scaled:
            tokens = self._scaled_tokens(flat.to(self.dtype))
            flat, spread = tokens.u, tokens.spread if self.config.reconstructs else None
        dtype = autocast_dtype(self.W_enc_rows)
        if product is None and dtype is None and pre_BF is None:
            inner = self.inner(flat)
            selection = self.activation.select_parts(
                lambda: self._parts(inner, workspace, noise_BF), len(inner), weights, window
            )
            return Encoding(inner, flat, selection, spread, noise_BF)
        if pre_BF is not None:
            inner, pre = self.inner(flat), pre_BF
        else:
            product = encoder_product if product is None else product
            weight = self.W_enc_rows if dtype is None else shadow(self.W_enc_rows, dtype)
            inner, pre = product(flat.to(self.dtype), self.input_bias, weight, self.b_enc, dtype)
        if noise_BF is not None:
            pre.add_(noise_BF)
        if dtype is not None:
            parameters = (self.activation, inner, self.W_enc_rows, self.b_enc)
            rescore_(pre, *parameters, weights_F=weights, window=window, noise_BF=noise_BF)
        return Encoding(inner, flat, self.activation.select(pre, weights, window), spread, noise_BF)

    @torch.no_grad()
    def backward(
        self,
        encoding: Encoding,
        g_out: Tensor,
        *contributions: Contribution,
        levels: Levels | None = None,
        unit_norm: bool = False,
    ) -> dict[str, Tensor]:
        """∂loss/∂parameter for every parameter, by its name in ``named_parameters``.

        Args:
            g_out: ``[B, d_out]`` ∂loss/∂(output of ``decode``), from any objective; with ``levels``,
                ``[B, G, d_out]`` with respect to the output of ``decode_levels``.
            contributions: what terms ask beyond that, in any number: ``LatentGradients`` (∂loss/∂latents beyond what
                comes through the output), ``ExtraEntries`` (entries outside the selection with an output gradient of
                their own) and ``Everywhere`` (a gradient on the pre-activations of all entries but some). They add up.
            levels: how the entries were grouped.
            unit_norm: decoder rows have norm one and keep it: leave out the part of their gradient along themselves,
                ``⟨∂loss/∂W_i, W_i⟩ W_i`` with ``⟨∂loss/∂W_i, W_i⟩ = Σ_e f_e ⟨g_out[t_e], W_i⟩`` over its entries.
        """
        return parameter_gradients(self, encoding, g_out, contributions, levels, unit_norm)

    def add_own_gradients_(self, gradients: dict[str, Tensor], g_out: Tensor) -> None:
        """Nothing: all of the coder's gradients are those of its one part."""

    def inner(self, x_BI: Tensor) -> Tensor:
        """The scaled input ``x [B, d_in]`` less what is subtracted from it: what the encoder's product is of."""
        inner = x_BI.to(self.dtype)
        return inner if self.input_bias is None else inner - self.input_bias

    def _pre(self, x_BI: Tensor) -> Tensor:
        pre = self.inner(x_BI) @ self.W_enc_rows.T
        return pre if self.b_enc is None else pre + self.b_enc

    def _parts(self, inner_BI: Tensor, workspace: Tensor | None, noise_BF: Tensor | None) -> Iterator[Tensor]:
        """Pre-activations of as many tokens at a time as ``workspace`` holds."""
        if workspace is None:
            workspace = inner_BI.new_empty(len(inner_BI), self.d_sae)
        size = max(1, len(workspace))
        for start in range(0, max(1, len(inner_BI)), size):
            inner = inner_BI[start : start + size]
            out = workspace[: len(inner)]
            if self.b_enc is None:
                torch.mm(inner, self.W_enc_rows.T, out=out)
            else:
                torch.addmm(self.b_enc, inner, self.W_enc_rows.T, out=out)
            yield out if noise_BF is None else out.add_(noise_BF[start : start + size])

    @torch.no_grad()
    def pre_activations_of(self, encoding: Encoding, latents: Tensor) -> Tensor:
        """Pre-activations ``[B, len(latents)]`` of some latents only, in the weights' own precision, noise included."""
        with torch.autocast(self.device.type, enabled=False):
            pre = encoding.x_BI @ self.W_enc_rows[latents].T
        if self.b_enc is not None:
            pre += self.b_enc[latents]
        return pre if encoding.noise_BF is None else pre.add_(encoding.noise_BF[:, latents])

    def pre_activations(self, x: Tensor, *, scaled: bool = False) -> Tensor:
        """``(x - b) W_enc + b_enc``: ``[..., d_sae]``; ``scaled`` as in ``encode_select``."""
        flat = flat_tokens(x, self.d_in, "pre_activations")
        return self._pre(flat if scaled else self._read(flat)).reshape(*x.shape[:-1], self.d_sae)

    def selection_weights(self) -> Tensor | None:
        """``[d_sae]`` decoder norms, summed over sites, where latents compete by them."""
        return self.site_norms().sum(1).detach() if self.activation.weights_by_decoder_norm else None

    def _add_offset(self, out: Tensor, x: Tensor | None) -> Tensor:
        if self.b_dec is not None:
            out = out + self.b_dec
        if self.W_skip is not None:
            if x is None:
                raise ShapeError("decode: this coder has a skip connection; pass its input as decode(latents, x)")
            out = out + product(x.to(self.dtype), self.W_skip)
        return out

    def _read(self, x: Tensor) -> Tensor:
        return x if self.config.token_scaling == "none" else self._scaled_tokens(x.to(self.dtype)).u

    def _scaled_tokens(self, x: Tensor) -> ScaledTokens:
        return scale_tokens(x, self.config.token_scaling, self.config.read_widths)

    def _scaled_back(self, out: Tensor, x: Tensor | None) -> Tensor:
        if self.config.token_scaling == "none" or not self.config.reconstructs:
            return out
        if x is None:
            raise ShapeError(
                f"decode: this coder scales each token by its own size (token_scaling={self.config.token_scaling!r}), "
                "which latents do not hold; pass its input as decode(latents, x)"
            )
        if x.shape[-1] != self.d_in:
            raise ShapeError(f"decode: expected its input x [..., {self.d_in}], got {list(x.shape)}")
        return self._scaled_tokens(x.to(self.dtype)).undo(out)

    # -- equivalent forms

    @torch.no_grad()
    def fold_W_dec_norm(self) -> Tensor:
        """Make decoder rows unit norm in place, the function unchanged; returns the norms ``[d_sae]`` divided out.

        ``W_dec_i /= n_i``, ``W_enc_i *= n_i``, ``b_enc_i *= n_i``, thresholds too; ``unfold_W_dec_norm`` undoes it.
        """
        norms = self.W_dec.norm(dim=1).clamp(min=1e-8)
        self.scale_latents_(norms)
        return norms

    @torch.no_grad()
    def unfold_W_dec_norm(self, norms_F: Tensor) -> None:
        """Undo ``fold_W_dec_norm`` given the norms it returned."""
        self.scale_latents_(1 / norms_F)

    @torch.no_grad()
    def scale_latents_(self, factors_F: Tensor) -> None:
        """Multiply activations by ``factors_F > 0`` in place and divide decoder rows by them; the function stays.

        Which latents are active stays too where the factors are equal, or where latents do not compete unweighted.
        """
        self.activation.scale_latents_(factors_F)
        self.W_dec.div_(factors_F.unsqueeze(1))
        self.W_enc_rows.mul_(factors_F.unsqueeze(1))
        if self.b_enc is not None:
            self.b_enc.mul_(factors_F)

    @torch.no_grad()
    def fold_selection_weights(self) -> None:
        """Scale latents by the decoder norms that weight their selection, and weight it no more; for this coder's
        decoder the function and the selection are unchanged."""
        weights, activation = self.selection_weights(), self.config.activation
        if weights is not None and isinstance(activation, FixedCount):
            self.scale_latents_(weights.clamp(min=1e-8))
            self.activation.weights_by_decoder_norm = False
            self.config = replace(self.config, activation=activation.weighted(False))

    @torch.no_grad()
    def fold_input_scaling(self, input_scaling: Scaling | float, output_scaling: Scaling | float) -> None:
        """Turn a coder of scaled activations into one of raw activations, in place.

        If ``g(u)`` predicts ``v = (y - μ_y) A_y`` from ``u = (x - μ_x) A_x``, the folded coder predicts y from x: with
        ``W_enc ← A_x W_enc``, ``W_dec ← W_dec A_y⁻¹``, ``b_dec ← b_dec A_y⁻¹ + μ_y``, an input bias
        ``← b A_x⁻¹ + μ_x`` or else ``b_enc ← b_enc - μ_x A_x W_enc``, ``W_skip ← A_x W_skip A_y⁻¹`` with
        ``b_dec ← b_dec - μ_x W_skip``. A number s stands for ``A = s``. Calling it with the inverses undoes it. With
        ``token_scaling``, x (and y, where it is what is read) are the tokens as scaled by it.
        """
        inputs, outputs = self._scaling(input_scaling, self.d_in), self._scaling(output_scaling, self.d_out)
        if self.config.b_dec == "input_and_output" and not inputs.equals(outputs):
            raise ConfigError("a coder that subtracts b_dec from its input needs equal input and output scaling")
        if outputs.has_mean and self.b_dec is None:
            raise ConfigError("a scaling that centres needs an output bias to hold the mean; use b_dec='output'")
        if inputs.has_mean and self.W_skip is not None and self.config.b_dec == "input_and_output":
            raise ConfigError("a scaling that centres cannot be folded with a skip connection and one shared bias")
        if self.activation.weights_by_decoder_norm:
            if not outputs.is_uniform:
                raise ConfigError(
                    "weight_by_decoder_norm=True cannot be kept under another scaling for each site; train with "
                    "input_scaling='none', or without it"
                )
            self.activation.scale_weights_(1 / outputs.sites[0].factor)
        self.W_enc_rows.copy_(inputs.left(self.W_enc_rows.T).T)
        self.W_dec.copy_(outputs.right_inverse(self.W_dec))
        if self.b_dec is not None:
            self.b_dec.copy_(outputs.vector_right_inverse(self.b_dec) + outputs.mean_vector().to(self.b_dec))
        if self.b_dec_in is not None:
            self.b_dec_in.copy_(inputs.vector_right_inverse(self.b_dec_in) + inputs.mean_vector().to(self.b_dec_in))
        if inputs.has_mean and self.input_bias is None:
            offset = -(inputs.mean_vector().to(self.W_enc_rows) @ self.W_enc_rows.T)
            rest = self.activation.shift_latents_(offset)
            if self.b_enc is not None:
                self.b_enc.add_(rest)
        if self.W_skip is not None:
            self.W_skip.copy_(outputs.right_inverse(inputs.left(self.W_skip)))
            if inputs.has_mean and self.b_dec is not None:
                self.b_dec.sub_(inputs.mean_vector().to(self.W_skip) @ self.W_skip)

    def _scaling(self, scaling: Scaling | float, width: int) -> Scaling:
        if isinstance(scaling, Scaling):
            return scaling
        if not 0 < scaling < math.inf:
            raise ConfigError(f"input scaling must be positive and finite, got {scaling}")
        return Scaling.uniform(scaling, (width,))

    def extra_repr(self) -> str:
        sites = self.hook_name if self.hook_name == self.hook_name_out else f"{self.hook_name} -> {self.hook_name_out}"
        return f"d_in={self.d_in}, d_sae={self.d_sae}, d_out={self.d_out}, {self.config.activation}, site={sites}"
