"""How documents become contexts and which positions become rows, as configs without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options

PackingMode = Literal["packed", "one_document", "truncate", "windows"]
PackingPreset = Literal["sae_lens", "dictionary_learning", "transcoder_circuits", "e2e"]
Mark = Literal["auto", "own", "bos", "eos", "cls", "sep", "none"] | int
"""A token that frames text: ``auto`` is BOS, or EOS where there is none, and for encoders [CLS] and [SEP]; ``own`` is
what the tokenizer itself puts there; otherwise the tokenizer's token of that name, an id, or nothing."""

PADDED_MODES: tuple[PackingMode, ...] = ("truncate", "windows")
"""Modes whose contexts may end in padding."""

NO_MARKS = ("auto", "none")
"""Marks that ask for nothing in particular."""


@explains_options
@dataclass(frozen=True, kw_only=True)
class Packing:
    """How documents become contexts of one size.

    ``Packing(preset="sae_lens")`` takes a peer's values for whatever is not given; ``resolved`` has them all. A token
    that is there already is not written a second time.
    """

    preset: PackingPreset | None = None
    """Whose values stand for what is not given; ours by default."""
    mode: PackingMode | None = None
    """``packed`` (default): documents one after another, each going on in the next context, no padding.
    ``one_document``: the start of each document alone, shorter ones dropped. ``truncate``: the same, shorter ones
    padded. ``windows``: all of a document, cut into windows, the last one padded. Padding never becomes a row."""
    begin_context: Mark | None = None
    """First token of every context, also where a document goes on (SAELens' begin_batch); ``auto`` by default."""
    begin_document: Mark | None = None
    """First token of every document (SAELens' begin_sequence); ``none`` by default."""
    separator: Mark | None = None
    """Token between two documents of a packed context; ``auto`` by default."""
    end_context: Mark | None = None
    """Last token of every context; ``auto`` by default: [SEP] of encoders."""
    document_tokens: int | None = None
    """Of each document the first so many tokens, without the framing; all by default."""

    def __post_init__(self) -> None:
        check_types(self)
        values = self.resolved()
        if values.mode != "packed" and values.separator not in NO_MARKS:
            raise ConfigError(
                f"separator={values.separator!r} parts the documents of a packed context; with mode={values.mode!r} a "
                "context has one document: leave it out"
            )
        if values.separator == "own":
            raise ConfigError("separator='own': a tokenizer puts nothing between documents; use 'bos', 'eos' or an id")
        if self.document_tokens is not None and self.document_tokens < 1:
            raise ConfigError(f"document_tokens must be at least 1, got {self.document_tokens}")

    def resolved(self) -> Packing:
        """The same with every value said: those given, then the preset's, then ours."""
        base = _VALUES[self.preset]
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "preset"}
        values = {**base, **{name: value for name, value in own.items() if value is not None}}
        if all(own[name] == value for name, value in values.items()):
            return self
        return replace(self, **values)


_OURS: Mapping[str, Any] = {
    "mode": "packed",
    "begin_context": "auto",
    "begin_document": "none",
    "separator": "auto",
    "end_context": "auto",
}
_VALUES: Mapping[PackingPreset | None, Mapping[str, Any]] = MappingProxyType(
    {
        None: _OURS,
        # SAELens 6.54, ActivationsStore with prepend_bos: concat_and_batch_sequences with BOS for both.
        "sae_lens": {**_OURS, "begin_context": "bos", "separator": "bos", "end_context": "none"},
        # dictionary_learning, ActivationBuffer.tokenized_batch: tokenizer(texts, max_length, truncation, padding).
        "dictionary_learning": {**_OURS, "mode": "truncate", "begin_context": "own", "end_context": "own"},
        # transcoder_circuits, ActivationsStore.get_batch_tokens: every document and every continuation begins with BOS.
        "transcoder_circuits": {
            **_OURS,
            "begin_context": "bos",
            "begin_document": "bos",
            "separator": "none",
            "end_context": "none",
        },
        # The end-to-end trainer's WindowedTextDataset with prepend_bos=False.
        "e2e": {**_OURS, "mode": "windows", "begin_context": "none", "separator": "none", "end_context": "none"},
    }
)


@explains_options
@dataclass(frozen=True, kw_only=True)
class Positions:
    """The positions of each context that become rows: those of ``range(context_size)[start:stop:step]``."""

    start: int | None = None
    """The first one; negative counts from the end."""
    stop: int | None = None
    """The one after the last; negative counts from the end."""
    step: int | None = None
    """Every so many."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.step is not None and self.step < 1:
            raise ConfigError(f"positions.step must be at least 1, got {self.step}")

    def of(self, context_size: int) -> range:
        """The positions chosen of a context; ``ConfigError`` where there is none."""
        chosen = range(context_size)[self.start : self.stop : self.step]
        if not chosen:
            raise ConfigError(
                f"positions {self.start}:{self.stop}:{self.step} choose none of the {context_size} positions of a "
                "context; widen them"
            )
        return chosen

    @property
    def is_everything(self) -> bool:
        """Whether no position of any context is left out."""
        return self.start in (None, 0) and self.stop is None and self.step in (None, 1)
