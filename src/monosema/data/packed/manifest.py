"""What a folder of packed tokens says about itself: ``monosema.json``.

It is written first, with the plan alone, again behind every shard, and last with what was found in the whole text,
which makes the folder one that can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monosema.core.config import from_plain, to_plain
from monosema.core.errors import ConfigError, FileError, first_line
from monosema.core.files import read_json, write_json
from monosema.core.plain import brief, require_version
from monosema.data.heldout import HeldoutRule
from monosema.data.packed.tokenizer import TokenizerIdentity
from monosema.data.packing_config import PADDED_MODES, Packing

FORMAT, VERSION, MANIFEST = "monosema-tokens", 1, "monosema.json"
_MOST_TOKENS = 2**31 - 1
"""In a context: lists of a fixed size have no more in Arrow."""
_SHARD_NAME = re.compile(r"data-\d{5,}\.arrow")


@dataclass(frozen=True, kw_only=True)
class TokenPlan:
    """What is read and how it is packed, decided before the first document is."""

    text: dict[str, Any]
    """``record()`` of the ``TextSource`` or ``Mixture``."""
    context_size: int
    """Tokens in a context."""
    heldout_fraction: float
    """Share of documents held out."""
    packing: Packing
    """How documents become contexts, with every value said."""
    attend_across_documents: bool
    """False where models are to keep the documents of a context apart."""
    marks: dict[str, int | None]
    """``PackingRule.record()``: the tokens that frame text."""
    padding: int
    """What stands where a context has no token."""
    special_token_ids: tuple[int, ...]
    """The tokenizer's, as far as they frame text."""
    tokenizer: TokenizerIdentity
    """Whose token ids these are."""
    shard_contexts: int
    """Contexts after which a shard is written."""

    def __post_init__(self) -> None:
        if not 1 <= self.context_size <= _MOST_TOKENS:
            raise ConfigError(f"context_size must be 1 to {_MOST_TOKENS:,}, got {self.context_size:,}")
        if not isinstance(self.text.get("source"), str):
            raise ConfigError(f"text.source must be text, got {brief(self.text.get('source'))}")

    @property
    def source(self) -> str:
        """Where the text comes from."""
        return str(self.text["source"])

    @property
    def keeps_documents(self) -> bool:
        """Whether the number of each position's document is stored."""
        return not self.attend_across_documents or self.packing.mode in PADDED_MODES


@dataclass(frozen=True, kw_only=True)
class StoredShard:
    """One Arrow file."""

    file: str
    """Its name in the folder of its side."""
    n_contexts: int
    """Contexts it holds."""
    n_bytes: int
    """Its size."""
    crc32: int
    """Of its bytes, looked at when it is first read."""

    def __post_init__(self) -> None:
        if not _SHARD_NAME.fullmatch(self.file) or self.n_contexts < 1 or self.n_bytes < 1:
            raise ConfigError(f"{self} is no shard")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a side stands behind its last shard; from here it goes on."""

    n_documents: int
    """Documents of the text that were read."""
    carried: tuple[int, ...]
    """Tokens that begin the side's next context."""
    carried_documents: tuple[int, ...]
    """The number of each one's document."""
    text_sha256: str
    """Of the documents read, so that another text is noticed."""


@dataclass(frozen=True, kw_only=True)
class StoredSide:
    """The training or the held-out side."""

    shards: tuple[StoredShard, ...] = ()
    """In order."""
    position: Position | None = None
    """Behind the last shard; None before the first."""
    fingerprint: str = ""
    """``TokenSplit.fingerprint``, once all is there."""

    def __post_init__(self) -> None:
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ConfigError("it lists one shard twice")

    @property
    def n_contexts(self) -> int:
        return sum(shard.n_contexts for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class FoundText:
    """What the whole text turned out to be."""

    text_sha256: str
    """Of its documents."""
    n_documents: int
    """Documents that are not empty."""
    n_heldout_documents: int
    """Of these, held out."""
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of a mixture: ``n_documents`` and ``n_tokens`` of each part."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A folder of packed tokens."""

    plan: TokenPlan
    """What was asked for."""
    heldout_rule: HeldoutRule | None = None
    """Which documents are held out; None before the first ones were read, and in folders of older versions."""
    train: StoredSide = StoredSide()
    """What dictionaries are trained on."""
    heldout: StoredSide = StoredSide()
    """What they are evaluated on."""
    text: FoundText | None = None
    """None while the folder is not finished."""

    @property
    def sides(self) -> Mapping[str, StoredSide]:
        """By name, as their folders are called; an empty held-out side has none."""
        return {"train": self.train, **({"heldout": self.heldout} if self.heldout.shards else {})}

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **to_plain(self)})


def is_packed(source: Any) -> bool:
    """Whether ``source`` is the path of a folder that this package has written, or has begun to."""
    return isinstance(source, (str, Path)) and os.path.isfile(os.path.join(source, MANIFEST))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``, finished or not; ``FileError`` where it is none or damaged."""
    path = folder / MANIFEST
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise FileError(f"{path} does not describe packed tokens")
    require_version(values, VERSION, path)
    try:
        plain: dict[str, Any] = {key: value for key, value in values.items() if key not in ("format", "version")}
        manifest = from_plain(Manifest, plain)
        if manifest.text is not None and not (manifest.train.fingerprint and manifest.heldout.fingerprint):
            raise ConfigError("it is finished, but has no fingerprints")
    except ConfigError as error:
        raise FileError(f"{path} is damaged ({first_line(error)}); write the tokens again") from error
    return manifest
