"""``Feature``: everything known about one latent, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TokenSpan:
    """A token of a context, or the tokens that share a character (see ``texts``)."""

    text: str
    """Printable text."""
    start: int
    """Position of its first token in the context."""
    stop: int
    """Position after its last token."""
    value: float
    """The latent's largest activation on these tokens; 0 where it does not fire."""


@dataclass(frozen=True)
class FeatureContext:
    """One context on which the latent fires."""

    context_id: int
    """Number of the context in its split."""
    position: int
    """Where the latent's activation is largest; the first position among equals."""
    maximum: float
    """Its activation there."""
    token_ids: Tensor = field(repr=False, compare=False)
    """[T] int32: the whole context."""
    values: Tensor = field(repr=False, compare=False)
    """[T] float32: the latent's activation on every token; 0 at special positions, which are left out."""
    spans: tuple[TokenSpan, ...] = field(repr=False)
    """The context as text."""

    def window(self, before: int, after: int) -> tuple[TokenSpan, ...]:
        """The spans that hold a token at most ``before`` before or ``after`` after the maximum."""
        first, last = self.position - before, self.position + after
        return tuple(span for span in self.spans if span.stop > first and span.start <= last)


@dataclass(frozen=True)
class LogitEffect:
    """What one token's logit gains from an activation of 1."""

    token_id: int
    """The token."""
    text: str
    """Its printable text."""
    value: float
    """Logit-lens value of the latent's direction (``ExtremeLogits``): the final norm's gain is folded in, its scale is
    left out."""


@dataclass(frozen=True)
class Histogram:
    """How strongly a latent fires where it fires."""

    bin_width: float
    """A power of two, the smallest with which the bins hold every activation; 0 for a latent that never fired."""
    counts: tuple[int, ...]
    """Tokens with an activation from ``j * bin_width`` (0 itself left out) to below ``(j + 1) * bin_width``."""


@dataclass(frozen=True, repr=False)
class Feature:
    """One latent, as a person reads it: text in a terminal, a small table of pictures in a notebook."""

    index: int
    """The latent."""
    site: str
    """Where it reads (and writes, where that is another site), and of which model."""
    count: int
    """Usable (not special) tokens on which its activation is not zero."""
    n_tokens: int
    """Usable tokens read."""
    density: float
    """``count / n_tokens``."""
    maximum: float
    """Largest activation; 0 where it never fired."""
    mean: float
    """Mean activation over the tokens on which it fired; 0 where it never fired."""
    histogram: Histogram
    """Activations over those tokens."""
    top_logits: tuple[LogitEffect, ...] | None
    """Tokens it promotes most, strongest first; None where ``logits_note`` says why."""
    bottom_logits: tuple[LogitEffect, ...] | None
    """Tokens it suppresses most, strongest first."""
    logits_note: str | None
    """Why there are no logits."""
    contexts: tuple[FeatureContext, ...]
    """The contexts with its largest activations, strongest first, each context once."""
    layer: str | None = None
    """The layer of a cross-layer transcoder that it belongs to; None in a dictionary with one group of latents."""

    @property
    def is_alive(self) -> bool:
        """Whether it fired at all."""
        return self.count > 0

    def __str__(self) -> str:
        from monosema.features.render import feature_text

        return feature_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The feature in a notebook: static HTML without scripts, everything from text escaped."""
        from monosema.features.render import feature_html

        return feature_html(self)
