"""``SiteRef``: one activation site that a dictionary reads or writes. Several are joined into one text on disk only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_BETWEEN = "+"
_PATH_ENDS = ("in", "out")
"""What follows the colon of a module's path, which names no model."""


@dataclass(frozen=True)
class SiteRef:
    """A site of a model. ``str`` gives its name as a stream takes it: ``hook_name``, or ``model:hook_name``."""

    model: str
    """Name of the model, where a dictionary reads several by name; empty for a single model."""
    hook_name: str
    """Hook name or module path inside the model."""

    def __str__(self) -> str:
        return f"{self.model}:{self.hook_name}" if self.model else self.hook_name

    @classmethod
    def parse(cls, text: str) -> SiteRef:
        """The site that ``text`` names: ``base:blocks.0.hook_mlp_out``, or ``model.layers.5.mlp:in`` of one model."""
        model, colon, hook_name = text.partition(":")
        if not colon or hook_name in _PATH_ENDS:
            return cls("", text)
        return cls(model, hook_name) if model else cls("", text)


@lru_cache(maxsize=256)
def parse_sites(text: str | None) -> tuple[SiteRef, ...]:
    """The sites of the joined names ``a+b``, in their order; none for None and for an empty text."""
    return tuple(SiteRef.parse(name) for name in split_names(text))


def split_names(text: str | None) -> tuple[str, ...]:
    """The names in the joined text ``a+b``; none for None and for an empty text."""
    return tuple(text.split(_BETWEEN)) if text else ()


def join_names(sites: Iterable[SiteRef | str]) -> str:
    """The names as one text, ``a+b``, as files and reports hold them."""
    return _BETWEEN.join(map(str, sites))


def is_one_name(text: str) -> bool:
    """Whether ``text`` is the name of one site, not of several joined ones, and not empty."""
    return bool(text) and _BETWEEN not in text
