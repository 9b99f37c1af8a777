"""``PromptReading``: which latents are active on each token of a prompt, as plain values."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TokenLatent:
    """A latent that is active on a token."""

    index: int
    """The latent, as ``encode`` numbers it; those of a cross-layer transcoder's layers are numbered through."""
    activation: float
    """Its activation."""
    share: float
    """``|activation|`` divided by the largest on this token; of a cross-layer transcoder, on this token in this
    layer."""
    layer: int | None = None
    """Of a cross-layer transcoder, the place of the site that the latent reads in ``PromptReading.layers``."""
    label: tuple[str, ...] = ()
    """The tokens that the latent responds to most, where a feature store was given."""


@dataclass(frozen=True, kw_only=True)
class TokenReading:
    """A token of the prompt."""

    position: int
    """Its place in the prompt, tokens that were put before it included."""
    token_id: int
    """Its id."""
    text: str
    """Printable text; empty for a token that ends a character which the one before begins."""
    is_special: bool
    """Whether it is a special token that training left out: it is not read."""
    is_outlier: bool
    """Whether its norm is so far above the median that training left such tokens out."""
    norm: float | None
    """Euclidean norm of what is read; None for a special token."""
    n_active: int
    """Latents that are active on it; 0 for a special token."""
    latents: tuple[TokenLatent, ...]
    """The strongest of them, by layer and then by activation."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptReading:
    """The strongest latents of each token: text in a terminal, a table in a notebook. Made by ``read_prompt``."""

    model: str
    """The language model, or all of them by name."""
    site: str
    """The site read; several are joined by ``+``."""
    d_sae: int
    """Latents of the dictionary."""
    n_latents: int
    """How many are listed of each token (of a cross-layer transcoder, in each layer)."""
    layers: tuple[str, ...]
    """The sites that the layers of a cross-layer transcoder read; empty for other dictionaries."""
    tokens: tuple[TokenReading, ...]
    """The tokens in order."""
    notes: tuple[str, ...] = ()
    """What a reader must know of dictionary and model."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one page that works offline and has no scripts. Raises ``FileError`` where it cannot be written."""
        from monosema.core.files import write_atomically
        from monosema.features.render_prompt import prompt_page

        write_atomically(path, prompt_page(self))
        return Path(path)

    def __str__(self) -> str:
        from monosema.features.render_prompt import prompt_text

        return prompt_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The reading in a notebook: static HTML without scripts, everything from text escaped."""
        from monosema.features.render_prompt import prompt_html

        return prompt_html(self)
