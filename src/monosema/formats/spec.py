"""``DictionarySpec``: the one currency between file formats and dictionaries.

Shape letters in the docs: d_in and d_out are widths of what a part reads and writes, d_sae its latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

BiasMode = Literal["input_and_output", "output", "separate", "none"]
Kind = Literal["coder", "stack"]
Tied = Literal["none", "per_source", "per_target"]
TokenScaling = Literal["none", "constant_norm", "layer_norm"]
_JOINT = "+"
"""Between the names of several sites in one text."""


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """An activation site."""

    name: str | None
    """Its hook name, behind the name of its model and a colon where there are several models; None where unknown."""
    width: int
    """Values in one row."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How pre-activations ``pre`` become latents ``f`` at inference."""

    name: str
    """``relu``: ``f = max(pre, 0)``. ``tanhrelu``: ``f = tanh(max(pre, 0))``. ``topk``: the k largest positive ones of
    each token. ``abstopk``: the k of each token that are largest in magnitude. ``batchtopk``: the k·B largest positive
    ones of the B tokens at hand. ``jumprelu``: ``f = pre · 1[pre > threshold]``. ``absthreshold``:
    ``f = pre · 1[|pre| > threshold]``. ``gated``: ``f = 1[pre + b_gate > 0] · max(exp(r_mag) · pre + b_mag, 0)``.
    An activation may give any other name. A format refuses a name that it does not know."""
    k: float | None = None
    """Active latents per token, of rules that fix a number."""
    by_decoder_norm: bool = False
    """Whether latents are compared by ``pre_i · ‖W_dec_i‖`` rather than by ``pre_i``."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """``threshold``, or ``b_gate``, ``r_mag`` and ``b_mag``: each ``[d_sae]``."""


@dataclass(frozen=True, kw_only=True)
class TrainedActivation:
    """The activation that a part was trained with, which may infer by another rule than it trains by."""

    config: Mapping[str, Any]
    """Its plain config: its ``kind`` and options."""
    tensors: Mapping[str, Tensor] | None = None
    """Its parameters and running statistics by name; None where the file has only what the rule needs."""
    threshold: float | None = None
    """Its running threshold, of activations that select a fixed number and where one is known."""


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """One group of latents: ``f = rule((x - bias) W_enc + b_enc)``, ``ŷ = f W_dec + b_dec [+ x W_skip]``.

    The bias subtracted is ``b_dec``, ``b_dec_in`` or none.
    """

    W_enc: Tensor
    """[d_in, d_sae]"""
    W_dec: Tensor
    """[d_sae, d_out]; the columns of all sites written, or of one where ``tied`` is ``per_source``."""
    b_enc: Tensor | None = None
    """[d_sae]; None for gated latents, whose rule has biases."""
    b_dec: Tensor | None = None
    """[d_out]; None for none, and in a stack, whose bias is that of the dictionary."""
    b_dec_in: Tensor | None = None
    """[d_in] subtracted from the input, where it is another bias than ``b_dec``."""
    W_skip: Tensor | None = None
    """[d_in, d_out]; None without a skip connection."""
    subtracts_b_dec: bool = False
    """Whether ``b_dec`` is also subtracted from the input."""
    rule: Rule | None = None
    """How latents become active at inference; None where the file says it by the trained activation alone, and for an
    activation that names no rule."""
    trained: TrainedActivation | None = None
    """The activation it was trained with; None where the file does not say."""
    token_scaling: TokenScaling = "none"
    """What each token is scaled by before the encoder; an output that is the site read is scaled back."""
    causal: bool = False
    """Whether latents, in as many equal groups as sites, read only sites up to their own and write from it on."""
    reads: tuple[int, ...] = (0,)
    """The sites read, by their place in ``DictionarySpec.reads``; their values lie side by side."""
    writes: tuple[int, ...] = (0,)
    """The sites written, by their place in ``DictionarySpec.writes``."""

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def bias_mode(self) -> BiasMode:
        """Where decoder biases act: one subtracted from the input and added to the output; one only added; one added
        and another subtracted; or none."""
        if self.b_dec is None:
            return "none"
        if self.b_dec_in is not None:
            return "separate"
        return "input_and_output" if self.subtracts_b_dec else "output"


@dataclass(frozen=True, kw_only=True)
class DictionarySpec:
    """A trained dictionary as plain values and tensors: what it computes, where it belongs, where it came from.

    An SAE is one part that writes the site it reads, a transcoder one part that writes another site, a crosscoder one
    part of several sites. A cross-layer transcoder is a stack: its parts' outputs are summed per site.
    """

    kind: Kind
    """``coder``: one part reads and writes all sites. ``stack``: part n reads site n and writes site n and all later
    ones."""
    parts: tuple[PartSpec, ...]
    """Groups of latents, numbered through in this order."""
    reads: tuple[SiteSpec, ...]
    """Sites read, side by side in the input."""
    writes: tuple[SiteSpec, ...]
    """Sites written, side by side in the output."""
    dtype: str
    """Floating-point type, ``float32``."""
    b_dec: Tensor | None = None
    """Of a stack: added to the sum, as wide as the output."""
    tied: Tied = "none"
    """Of a stack: whether the decoders of a part, or those into a site, are one."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Options that the weights started from (``decoder_init``, ``decoder_init_norm``, ``encoder_init``, ``seed``), as
    far as the file says them. Training a dictionary further reads them."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: model, tokens, stream, training options, figures. What a foreign format recorded is a mapping
    under the format's name."""
    log10_density: Tensor | None = None
    """[d_sae of all parts] log10 of the firing density, where known."""


def sites_of(names: str | None, widths: tuple[int, ...]) -> tuple[SiteSpec, ...]:
    """Sites of these ``widths``, given their joined ``names``. ``joined`` of the sites is ``names`` again.

    One site keeps the whole text. Where there are fewer names than widths, the last sites have none.
    """
    given: list[str | None] = [] if names is None else [*names.split(_JOINT, max(len(widths) - 1, 0))]
    given += [None] * (len(widths) - len(given))
    return tuple(SiteSpec(name=name, width=width) for name, width in zip(given, widths, strict=True))


def joined(sites: tuple[SiteSpec, ...]) -> str | None:
    """The names of ``sites`` as one text; None where they have none."""
    names = [site.name for site in sites if site.name is not None]
    return _JOINT.join(names) if names else None
