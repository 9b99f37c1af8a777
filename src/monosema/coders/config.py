"""What a sparse coder is made of, without torch: its activation, widths and sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monosema.coders.activations.configs import *  # noqa: F403  the built-in activations, under this name too
from monosema.coders.activations.family import ActivationConfig, FixedCount
from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options

BDecMode = Literal["input_and_output", "output", "separate", "none"]
DecoderInit = Literal["random", "orthogonal", "zeros"]
TokenScaling = Literal["none", "constant_norm", "layer_norm"]
EncoderInit = Literal["auto", "transpose", "independent"]


@explains_options
@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """Shapes, activation and sites of one sparse coder."""

    d_in: int
    """Width of what is read (the sum over the sites read)."""
    d_sae: int
    """Number of latents."""
    d_out: int
    """Width of what is written (the sum over the sites written)."""
    activation: ActivationConfig
    """How pre-activations become sparse latents."""
    b_dec: BDecMode = "input_and_output"
    """Where decoder biases act: one subtracted from the input and added to the output; one only added; one added and
    another, ``b_dec_in``, subtracted from the input; or none."""
    skip: bool = False
    """Whether a linear map ``W_skip [d_in, d_out]`` from input to output is added (skip transcoder)."""
    token_scaling: TokenScaling = "none"
    """Scale each token of each site read by its own size, as a part of the coder: to norm √d, or centred to deviation
    one. What is read is also what is written in an SAE or crosscoder, and is scaled back there; what a transcoder
    writes is left as it is. Equations: ``token_scaling``."""
    read_widths: tuple[int, ...] = ()
    """Widths of the sites read; one site of ``d_in`` by default."""
    write_widths: tuple[int, ...] = ()
    """Widths of the sites written; one site of ``d_out`` by default."""
    causal: bool = False
    """Whether latents, in as many equal groups as sites, read only sites up to their own and write only from their own
    on (weakly causal crosscoder)."""
    decoder_init: DecoderInit = "random"
    """Starting directions of the decoder rows: random, orthogonal in blocks of ``d_out`` rows, or zero."""
    decoder_init_norm: float | None = None
    """Starting norm of the decoder rows: by default what the activation declares, 0.1 and for tanh-ReLU 1."""
    encoder_init: EncoderInit = "auto"
    """Encoder rows start as the decoder's, or drawn anew (norm one). ``auto``: the former where input and output are
    one site; a transcoder's directions of input and output have nothing to do with each other."""
    hook_name: str | None = None
    """Sites read, joined by ``+``; set from the stream when training starts."""
    hook_name_out: str | None = None
    """Sites written; equal to ``hook_name`` for an SAE or crosscoder."""
    dtype: str = "float32"
    """Floating-point type of the parameters."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("d_in", "d_sae", "d_out"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        if self.decoder_init_norm is None:
            object.__setattr__(self, "decoder_init_norm", self.activation.decoder_init_norm)
        k = self.activation.k if isinstance(self.activation, FixedCount) else None
        _require(k is None or k <= self.d_sae, f"k={k} exceeds d_sae={self.d_sae}; lower k or widen the dictionary")
        _require(
            self.b_dec != "input_and_output" or self.d_in == self.d_out,
            f"b_dec='input_and_output' needs d_in == d_out, got {self.d_in} and {self.d_out}; use b_dec='output'",
        )
        _require(self.norm_at_start > 0, f"decoder_init_norm must be positive, got {self.decoder_init_norm}")
        _require(
            self.encoder_init != "transpose" or self.d_in == self.d_out,
            f"encoder_init='transpose' needs d_in == d_out, got {self.d_in} and {self.d_out}; use 'independent'",
        )
        _require(
            not (self.encoder_init == "transpose" and self.decoder_init == "zeros"),
            "encoder_init='transpose' of decoder_init='zeros' would stay at zero; use encoder_init='independent'",
        )
        for name, width in (("read_widths", self.d_in), ("write_widths", self.d_out)):
            if not getattr(self, name):
                object.__setattr__(self, name, (width,))
            total = sum(getattr(self, name))
            _require(min(getattr(self, name)) >= 1, f"{name} must be at least 1 each, got {getattr(self, name)}")
            _require(total == width, f"{name} add up to {total}, not to {width}")
        _require(
            not self.causal or (self.read_widths == self.write_widths and self.d_sae >= len(self.read_widths)),
            "causal=True needs the same sites read and written, and at least one latent for each",
        )
        self._check_token_scaling()

    def _check_token_scaling(self) -> None:
        if self.token_scaling == "none":
            return
        for met, what, why in (
            (
                self.skip,
                "skip=True",
                "the skip connection would read tokens that are not scaled; leave one of them out",
            ),
            (
                self.causal,
                "causal=True",
                "a later site would be scaled back by its own size, which earlier latents may not read; leave one out",
            ),
            (
                self.b_dec == "input_and_output" and not self.reconstructs,
                "b_dec='input_and_output'",
                "one bias would serve a scaled input and an output that is not; use b_dec='output'",
            ),
            (
                self.token_scaling == "layer_norm" and min(self.read_widths) < 2,
                "a site of width 1",
                "one number has no deviation; use 'constant_norm'",
            ),
        ):
            _require(not met, f"token_scaling={self.token_scaling!r} cannot be used with {what}: {why}")

    @property
    def reconstructs(self) -> bool:
        """Whether what is written is what is read (SAE, crosscoder)."""
        return self.hook_name == self.hook_name_out and self.d_in == self.d_out

    @property
    def norm_at_start(self) -> float:
        """``decoder_init_norm`` as it is, whether given or not."""
        assert self.decoder_init_norm is not None
        return self.decoder_init_norm


@explains_options
@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A cross-layer transcoder: as many coders as sites read, each writing its own site and all later ones."""

    read_widths: tuple[int, ...]
    """Widths of the sites read, one for each layer."""
    write_widths: tuple[int, ...]
    """Widths of the sites written, as many."""
    d_sae: int
    """Latents of each layer."""
    activation: ActivationConfig
    """How pre-activations become sparse latents."""
    tied: Literal["none", "per_source", "per_target"] = "none"
    """Whether the decoders of a layer, or those into a site, are one."""
    token_scaling: TokenScaling = "none"
    """Scale each token of each site read by its own size; see ``CoderConfig``."""
    hook_name: str | None = None
    """Sites read, joined by ``+``; set from the stream when training starts."""
    hook_name_out: str | None = None
    """Sites written."""
    dtype: str = "float32"
    """Floating-point type of the parameters."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_types(self)
        n, m = len(self.read_widths), len(self.write_widths)
        _require(n >= 1 and n == m, f"a cross-layer transcoder writes as many sites as it reads, got {n} and {m}")
        equal = self.tied == "none" or len(set(self.write_widths)) == 1
        _require(equal, f"tied={self.tied!r} needs sites of one width, got {self.write_widths}; use tied='none'")
        _require(
            self.token_scaling == "none" or self.hook_name != self.hook_name_out,
            f"token_scaling={self.token_scaling!r} of a cross-layer transcoder needs other sites written than read "
            f"(hook_name_out, hook_name), got {self.hook_name!r} for both: its output is not scaled back",
        )
        self.layers()

    @property
    def d_in(self) -> int:
        return sum(self.read_widths)

    @property
    def d_out(self) -> int:
        return sum(self.write_widths)

    def layers(self) -> tuple[CoderConfig, ...]:
        """The coders of the layers."""
        return tuple(
            CoderConfig(
                d_in=width,
                d_sae=self.d_sae,
                d_out=sum(self.write_widths[n : n + 1 if self.tied == "per_source" else None]),
                write_widths=self.write_widths[n : n + 1 if self.tied == "per_source" else None],
                activation=self.activation,
                b_dec="none",
                token_scaling=self.token_scaling,
                encoder_init="independent",
                hook_name="input",
                hook_name_out="target",
                dtype=self.dtype,
                seed=self.seed + n,
            )
            for n, width in enumerate(self.read_widths)
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
