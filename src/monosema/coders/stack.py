"""``CrossLayerTranscoder``: a stack of coders, one for each layer, whose writes are summed per site.

Shape letters: B tokens, I input width, O output width, F latents of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from monosema.coders.coder import SparseCoder
from monosema.coders.config import StackConfig, TokenScaling
from monosema.coders.dictionary import LatentNumbers, latent_tensor
from monosema.coders.names import OF_ACTIVATION, unknown_names
from monosema.coders.parts import Part
from monosema.coders.scaling import Scaling
from monosema.coders.site_transform import replace_records
from monosema.coders.sites import SiteRef
from monosema.coders.token_scaling import scale_tokens
from monosema.coders.trainable import TrainableDictionary
from monosema.core.devices import dtype_name, parse_dtype
from monosema.core.errors import ConfigError, ShapeError
from monosema.core.peers_attributes import OF_DICTIONARY, hints_attributes
from monosema.kernels import Latents, decode
from monosema.kernels.latents import concatenate, flat_tokens, split


@final
@hints_attributes(OF_DICTIONARY)
class CrossLayerTranscoder(TrainableDictionary):
    """Latents of layer l read site l and write sites l, l+1, …: ``ŷ^t = Σ_{l ≤ t} f^l W_dec^{l→t} + b_dec^t``.

    ``f^l = activation(x^l W_enc^l + b_enc^l)``; each layer has its own latents and its own threshold. The input is the
    sites read side by side ``[..., Σ d_in]``, the output the sites written; latents of all layers are numbered through.
    Sources: Lindsey et al. 2024 (crosscoders), Ameisen et al. 2025 (circuit tracing).

    ``tied="per_source"`` gives each layer one decoder for all sites it writes; ``"per_target"`` each site one decoder
    for all layers (their gradients are summed, so equal starting values stay equal).
    """

    saved_kind: ClassVar[Literal["stack"]] = "stack"
    config: StackConfig
    b_dec: nn.Parameter
    b_dec_in: None
    W_skip: None

    def __init__(self, config: StackConfig, *, metadata: Mapping[str, Any] | None = None):
        super().__init__(metadata)
        self.config = config
        self.layers = nn.ModuleList(SparseCoder(layer) for layer in config.layers())
        self.b_dec = nn.Parameter(torch.zeros(config.d_out, dtype=parse_dtype(config.dtype)))
        self.b_dec_in = self.W_skip = None
        if config.tied == "per_target":
            with torch.no_grad():
                self._copy_first_decoder()

    # -- what it is

    @property
    def members(self) -> list[SparseCoder]:
        """The coders of the layers."""
        return [layer for layer in self.layers if isinstance(layer, SparseCoder)]

    @property
    def parts(self) -> tuple[Part[SparseCoder], ...]:
        """The layers' coders and their columns."""
        reads, writes = _slices(self.config.read_widths), _slices(self.config.write_widths)
        parts, width = [], self.config.d_sae
        for number, coder in enumerate(self.members):
            later = writes[number:]
            if self.config.tied != "per_source":
                later = (slice(later[0].start, later[-1].stop),)
            latents = range(number * width, (number + 1) * width)
            parts.append(Part(f"layers.{number}.", coder, reads[number], later, latents))
        return tuple(parts)

    @property
    def variant(self) -> str:
        return "CrossLayerTranscoder"

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
        """Latents of all layers together."""
        return self.config.d_sae * len(self.layers)

    @property
    def token_scaling(self) -> TokenScaling:
        return self.config.token_scaling

    @property
    def has_skip(self) -> bool:
        return False

    @property
    def n_active(self) -> float | None:
        """That of each layer."""
        return getattr(self.config.activation, "k", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.b_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.b_dec.device

    def bind(self, hook_name: str, hook_name_out: str, metadata: Mapping[str, Any]) -> None:
        """Record in place which sites are read and written, and where they came from."""
        self.config = replace(self.config, hook_name=hook_name, hook_name_out=hook_name_out)
        replace_records(self.metadata, metadata)

    def set_token_scaling(self, kind: TokenScaling) -> None:
        """From now on scale the tokens of every site read as ``kind`` says, in place; see ``SparseCoder``."""
        self.config = replace(self.config, token_scaling=kind)
        for coder in self.members:
            coder.set_token_scaling(kind)

    def scale_tokens(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` as the weights see it: ``x`` itself without ``token_scaling``."""
        kind = self.config.token_scaling
        return x if kind == "none" else scale_tokens(x, kind, self.config.read_widths).u

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("W_enc", "W_dec", "b_enc", *OF_ACTIVATION):
            raise AttributeError(f"a stack has no {name} of its own: assign that of coder.layers[number]")
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Names as in ``SparseCoder``, below ``layers.NUMBER.``; names of no layer are refused."""
        layers = prefix + "layers."
        of_stack = {key: value for key, value in state_dict.items() if not key.startswith(layers)}
        of_layers = {key.removeprefix(prefix).split(".")[1] for key in state_dict if key.startswith(layers)}
        others[-1].extend(unknown_names(of_stack, prefix, self))
        others[-1].extend(
            f"unknown layer {number}; expected layers.0 to layers.{len(self.layers) - 1}"
            for number in sorted(of_layers - {str(index) for index in range(len(self.layers))})
        )
        super()._load_from_state_dict(state_dict, prefix, *others)
        is_brought_in = any(key.startswith(layers) and key.endswith(".W_enc") for key in state_dict)
        self.is_trained = self.is_trained or is_brought_in

    def _apply(self, fn: Any, recurse: bool = True) -> CrossLayerTranscoder:
        super()._apply(fn, recurse)
        self.config = replace(self.config, dtype=dtype_name(self.dtype))
        return self

    # -- what people call

    def encode(self, x: Tensor) -> Tensor:
        """Activations ``[..., d_sae]`` of all layers under the inference rule; autograd passes through."""
        flat = flat_tokens(x, self.d_in, "encode")
        return torch.cat([p.coder.encode(flat[:, p.read]) for p in self.parts], 1).reshape(*x.shape[:-1], self.d_sae)

    @torch.no_grad()
    def encode_sparse(self, x: Tensor) -> Latents:
        """The same as ``Latents``."""
        flat = flat_tokens(x, self.d_in, "encode_sparse")
        joined = concatenate([part.coder.encode_sparse(flat[:, part.read]) for part in self.parts])
        return replace(joined, leading_shape=tuple(x.shape[:-1]))

    def decode(self, latents: Latents | Tensor, x: Tensor | None = None) -> Tensor:
        """The sites written ``[..., d_out]``, side by side."""
        shape = latents.leading_shape if isinstance(latents, Latents) else tuple(latents.shape[:-1])
        widths = [part.coder.d_sae for part in self.parts]
        if not isinstance(latents, Latents) and latents.shape[-1] != self.d_sae:
            raise ShapeError(f"decode: expected [..., {self.d_sae}] activations, got {list(latents.shape)}")
        groups = (
            split(latents, widths) if isinstance(latents, Latents) else latents.reshape(-1, self.d_sae).split(widths, 1)
        )
        columns: list[Tensor | None] = [None] * len(self.config.write_widths)
        for number, (part, group) in enumerate(zip(self.parts, groups, strict=True)):
            weight = part.coder.W_dec
            written = decode(group, weight) if isinstance(group, Latents) else group @ weight
            later = self.config.write_widths[number:]
            blocks = [written] * len(later) if self.config.tied == "per_source" else written.split(later, 1)
            for site, block in enumerate(blocks, start=number):
                before = columns[site]
                columns[site] = block if before is None else before + block
        out = torch.cat([column for column in columns if column is not None], 1) + self.b_dec
        return out.reshape(*shape, self.d_out)

    def forward(self, x: Tensor) -> Tensor:
        """The prediction ``ŷ [..., d_out]`` of ``x [..., d_in]``."""
        if torch.is_grad_enabled() and (x.requires_grad or self.b_dec.requires_grad):
            return self.decode(self.encode(x))
        return self.decode(self.encode_sparse(x))

    # -- its latents

    def encoder_rows(self, latents: LatentNumbers) -> Tensor:
        """``[n, width]``: rows of their layers' ``W_encᵀ``, over the site that each layer reads."""
        numbers = latent_tensor(latents, self.d_sae).to(self.device)
        owners = self.places_of(numbers).parts
        widths = {self.config.read_widths[owner] for owner in owners.unique().tolist()}
        if len(widths) > 1:
            raise ShapeError(
                f"these latents read sites that are {sorted(widths)} wide, so their encoder rows have no common width; "
                "ask for the latents of one layer at a time (coder.parts[number].latents)"
            )
        rows = self.b_dec.new_empty(len(numbers), widths.pop() if widths else self.config.read_widths[0])
        for number, part in enumerate(self.parts):
            own = owners == number
            if not bool(own.any()):
                continue  # the width of its rows may be another
            rows[own] = part.coder.encoder_rows(numbers[own] - part.latents.start)
        return rows

    def encoder_biases(self, latents: LatentNumbers) -> Tensor | None:
        """``[n]``: entries of their layers' ``b_enc``."""
        numbers = latent_tensor(latents, self.d_sae).to(self.device)
        owners, biases = self.places_of(numbers).parts, self.b_dec.new_zeros(len(numbers))
        for number, part in enumerate(self.parts):
            own = owners == number
            found = part.coder.encoder_biases(numbers[own] - part.latents.start)
            if found is None:
                return None
            biases[own] = found
        return biases

    def decoder_rows(self, latents: LatentNumbers, site: SiteRef | int | None = None) -> Tensor:
        """``[n, d_out]``: rows of their layers' ``W_dec`` in the columns that the layer writes, zero in the others;
        ``[n, width]`` of them for one site."""
        numbers = latent_tensor(latents, self.d_sae).to(self.device)
        asked = slice(0, self.d_out) if site is None else self.columns_of(site)
        rows = self.b_dec.new_zeros(len(numbers), asked.stop - asked.start)
        for part in self.parts:
            own = (numbers >= part.latents.start) & (numbers < part.latents.stop)
            if not bool(own.any()):
                continue
            written = part.coder.decoder_rows(numbers[own] - part.latents.start)
            for write in part.writes:
                start, stop = max(write.start, asked.start), min(write.stop, asked.stop)
                if start < stop:
                    block = written[:, start - write.start : stop - write.start]
                    rows[own, start - asked.start : stop - asked.start] = block
        return rows

    # -- equivalent forms

    @torch.no_grad()
    def fold_input_scaling(self, input_scaling: Scaling, output_scaling: Scaling) -> None:
        """Turn a stack of scaled activations into one of raw activations, in place; see ``SparseCoder``."""
        if self.config.tied != "none" and not output_scaling.is_uniform:
            raise ConfigError(
                f"tied={self.config.tied!r} decoders cannot take another scaling for each site; train with "
                "input_scaling='none', or tied='none'"
            )
        for number, part in enumerate(self.parts):
            sites = output_scaling.sites[number : number + 1 if self.config.tied == "per_source" else None]
            inputs = Scaling(input_scaling.sites[number : number + 1])
            part.coder.fold_input_scaling(inputs, Scaling(sites).without_mean())
        folded = output_scaling.vector_right_inverse(self.b_dec) + output_scaling.mean_vector().to(self.b_dec)
        self.b_dec.copy_(folded)

    @torch.no_grad()
    def fold_selection_weights(self) -> None:
        """``SparseCoder.fold_selection_weights`` of every layer."""
        if any(coder.selection_weights() is not None for coder in self.members):
            for coder in self.members:
                coder.fold_selection_weights()
            self.config = replace(self.config, activation=self.members[0].config.activation)

    @torch.no_grad()
    def fold_W_dec_norm(self) -> Tensor:
        """Make every layer's decoder rows unit norm in place, the function unchanged; the norms ``[d_sae]``."""
        if self.config.tied == "per_target":
            raise ConfigError("decoders tied per target cannot have rows of norm one; use decoder='free'")
        return torch.cat([coder.fold_W_dec_norm() for coder in self.members])

    def add_own_gradients_(self, gradients: dict[str, Tensor], g_out: Tensor) -> None:
        """The gradient of ``b_dec``; and with ``tied="per_target"``, of what the layers' decoders share."""
        gradients["b_dec"] = g_out.reshape(-1, self.d_out).sum(0)
        self.tie_gradients_(gradients)

    @torch.no_grad()
    def tie_gradients_(self, gradients: dict[str, Tensor]) -> None:
        """With ``tied="per_target"``, give each layer's copy of a site's decoder the sum of all their gradients."""
        if self.config.tied != "per_target":
            return
        total = torch.zeros_like(gradients["layers.0.W_dec"])
        starts = [part.writes[0].start for part in self.parts]
        for number, start in enumerate(starts):
            total[:, start:] += gradients[f"layers.{number}.W_dec"]
        for number, start in enumerate(starts):
            gradients[f"layers.{number}.W_dec"] = total[:, start:].contiguous()

    def _copy_first_decoder(self) -> None:
        first = self.members[0].W_dec
        for part in self.parts[1:]:
            part.coder.W_dec.copy_(first[:, part.writes[0]])

    def extra_repr(self) -> str:
        return f"sites={len(self.layers)}, d_sae={self.config.d_sae} each, tied={self.config.tied}"


def _slices(widths: tuple[int, ...]) -> tuple[slice, ...]:
    stops = [sum(widths[: i + 1]) for i in range(len(widths))]
    return tuple(slice(stop - width, stop) for stop, width in zip(stops, widths, strict=True))
