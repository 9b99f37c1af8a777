"""Where text comes from, as configs without torch: one source, or several mixed by weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options

WhenDry = Literal["stop", "go_on"]
"""What a mixture does when a part has no more documents: end there, or go on with the other parts."""

SOURCE_OPTIONS = (
    "column",
    "max_documents",
    "split",
    "config_name",
    "data_files",
    "data_dir",
    "streaming",
)
"""What chooses among the documents of a source; the same for a source alone and for a part of a mixture."""

IN_MEMORY = "text in memory"
"""Recorded as the source of text that has no name to load it by again."""

MIXTURE = "mixture"
"""Recorded as the source where several are mixed."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class TextSource:
    """One source of text, and which of its documents are meant; see ``load_tokens`` for what may be a source."""

    source: Any
    """``stdlib``, a file, a folder, a glob, a URL, or the name of a dataset; from Python also strings and datasets."""
    weight: float = 1.0
    """Its share of a mixture's tokens, relative to the other parts'."""
    column: str | None = None
    """Name of the column of text or conversations."""
    max_documents: int | None = None
    """Read only the first so many documents."""
    split: str | None = None
    """Split of a Hugging Face dataset."""
    config_name: str | None = None
    """Configuration of a dataset loaded by name."""
    data_files: tuple[str, ...] | None = None
    """Which of its files are read."""
    data_dir: str | None = None
    """Which of its folders."""
    streaming: bool = False
    """Whether it is read over the network as needed, without a copy on disk."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"TextSource: weight must be positive, got {self.weight}; leave out what has no share")
        if self.max_documents is not None and self.max_documents < 1:
            raise ConfigError(f"TextSource: max_documents must be at least 1, got {self.max_documents}")

    def chosen(self) -> dict[str, Any]:
        """The ``SOURCE_OPTIONS`` that are not at their defaults, by name."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in SOURCE_OPTIONS}
        return {name: value for name, value in values.items() if value != defaults[name]}

    def plain(self) -> dict[str, Any]:
        """The source by its name and what is chosen of it, JSON-able."""
        name = str(self.source) if isinstance(self.source, (str, Path)) else IN_MEMORY
        chosen = {key: list(value) if isinstance(value, tuple) else value for key, value in self.chosen().items()}
        return {"source": name, **chosen}

    def record(self) -> dict[str, Any]:
        """The same as it is kept with a dictionary, where ``split`` is the side of the text that trained it."""
        plain = self.plain()
        kept = {name: plain.pop(name, None) for name in ("source", "column", "max_documents")}
        return {**kept, **({"options": plain} if plain else {})}


@explains_options
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several sources in one corpus, in shares of its tokens.

    The next document comes from the part whose tokens so far, divided by its weight, are fewest (the first such part
    in the order of ``parts``), so that at any point each share holds to within one document.
    """

    parts: Mapping[str, TextSource]
    """The sources by name."""
    when_dry: WhenDry = "stop"
    """At the first part that has no more documents, ``stop`` ends the corpus, so that the shares hold; ``go_on``
    reads the other parts to their ends."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("a mixture needs at least one part: parts={'name': TextSource(source=..., weight=...)}")
        for name, part in self.parts.items():
            if not isinstance(part, TextSource):
                raise ConfigError(f"part {name!r} of a mixture must be a TextSource, got a {type(part).__name__}")
            if isinstance(part.source, Mixture):
                raise ConfigError(f"part {name!r} is a mixture itself; list its parts in the outer one")
        if self.when_dry not in ("stop", "go_on"):
            raise ConfigError(f"when_dry must be 'stop' or 'go_on', got {self.when_dry!r}")

    def record(self) -> dict[str, Any]:
        """Its parts with their weights, JSON-able."""
        return {
            "source": MIXTURE,
            "mixture": {name: {**part.plain(), "weight": part.weight} for name, part in self.parts.items()},
            "when_dry": self.when_dry,
        }
