"""``CoderSpec``: the one currency between file formats and coders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Rule = Literal["relu", "topk", "abstopk", "jumprelu", "gated"]
TokenScaling = Literal["none", "constant_norm", "layer_norm"]


@dataclass(frozen=True, kw_only=True)
class CoderSpec:
    """A trained dictionary as plain values: what it computes at inference and where it belongs."""

    rule: Rule
    """How latents become active at inference."""
    tensors: Mapping[str, Tensor]
    """``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_out]``, ``b_dec [d_out]``, and by rule ``b_enc``, ``threshold`` or
    ``b_gate``, ``r_mag``, ``b_mag`` (all ``[d_sae]``); ``W_skip [d_in, d_out]`` for skip transcoders."""
    is_transcoder: bool
    """Whether it writes another site than it reads."""
    subtracts_b_dec: bool
    """Whether ``b_dec`` is subtracted from the input."""
    dtype: str
    """Floating-point type, ``float32``."""
    token_scaling: TokenScaling = "none"
    """What each token is scaled by before the encoder; an output that is the site read is scaled back."""
    k: int | None = None
    """Active latents per token (rules ``topk`` and ``abstopk``)."""
    hook_name: str | None = None
    """Site read."""
    hook_name_out: str | None = None
    """Site written."""
    training_activation: Mapping[str, Any] | None = None
    """The activation it was trained with, as a plain config, where the file says so."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: model, tokens, stream, training options, figures."""
    log10_density: Tensor | None = None
    """[d_sae] log10 of the firing density, where known."""

    @property
    def d_in(self) -> int:
        return self.tensors["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        return self.tensors["W_enc"].shape[1]

    @property
    def d_out(self) -> int:
        return self.tensors["W_dec"].shape[1]
