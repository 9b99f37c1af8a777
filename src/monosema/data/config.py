"""The text as a config without torch, and the functions that take its options as keywords.

``TokenOptions`` declares every option of text once. Code that needs one takes it from there, and ``load_tokens`` and
``pretokenize`` make one of their keywords.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monosema.core.errors import ConfigError
from monosema.core.foreign import (
    are_sources,
    are_tokens,
    is_mapping,
    is_mixture,
    is_number,
    is_source,
    is_switch,
    is_text,
    is_whole,
)
from monosema.core.option_fields import by_caller, chosen, from_file, recorded
from monosema.core.peers import explains_options
from monosema.data.packing_config import PADDED_MODES, Packing, Positions

if TYPE_CHECKING:
    from monosema.data.tokens import Tokens

WhenDry = Literal["stop", "go_on"]
"""What a mixture does when a part has no more documents: end there, or go on with the other parts."""

IN_MEMORY = "text in memory"
"""Recorded as the source of text that has no name to load it by again."""

SHARD_BYTES = 2**26
"""About the size of a shard of packed tokens: seconds of work to lose at most, and few enough files."""

MIXTURE = "mixture"
"""Recorded as the source where several are mixed."""


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
            raise ConfigError(f"the weight of a part must be positive, got {self.weight}; leave out what has no share")
        if self.max_documents is not None and self.max_documents < 1:
            raise ConfigError(f"max_documents must be at least 1, got {self.max_documents}")

    def chosen(self) -> dict[str, Any]:
        """The ``SOURCE_OPTIONS`` that are not at their defaults, by name."""
        return chosen(self, SOURCE_OPTIONS)

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


SOURCE_OPTIONS = tuple(each.name for each in fields(TextSource) if each.name not in ("source", "weight"))
"""What chooses among the documents of a source; the same for a source alone and for a part of a mixture."""


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


CHOSEN_WHERE_READ = ("exclude_special_tokens", "positions", "in_memory")
"""Options that are given where packed tokens are read, and not where they are written."""

_ALWAYS_RECORDED = (
    "context_size",
    "heldout_fraction",
    "exclude_special_tokens",
    "positions",
    "packing",
    "attend_across_documents",
    "in_memory",
)
_RECORDED_APART = ("source", *SOURCE_OPTIONS, "mixture", "when_dry", "n_processes")
"""A text records its own options, and the number of processes changes nothing."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """The text; see ``load_tokens``."""

    source: str = from_file(
        "the text: stdlib, a local file or folder, a dataset on the hub", is_source, default="stdlib"
    )
    """``stdlib``, a file, a folder, a glob, a URL of these, or the name of a Hugging Face dataset."""
    context_size: int | None = from_file("tokens in a context", is_whole, default=None)
    """Tokens in a context; the model's own, at most 256, by default."""
    heldout_fraction: float | None = from_file("share held out", is_number, default=None)
    """Share of documents held out; 0.02, and 0.05 for ``stdlib``, by default."""
    exclude_special_tokens: bool | tuple[int, ...] = from_file("positions that are no rows", are_tokens, default=True)
    """Whether positions of special tokens are left out, or which ids."""
    column: str | None = from_file("the column that is read", is_text, default=None)
    """Name of the column of text or conversations."""
    max_documents: int | None = from_file("how many documents are read", is_whole, default=None)
    """Read only the first so many documents."""
    split: str | None = from_file("which split of a dataset", is_text, default=None)
    """Split of a dataset that has several."""
    config_name: str | None = from_file("which configuration of a dataset", is_text, default=None)
    """Configuration of a dataset loaded by name."""
    data_files: tuple[str, ...] | None = from_file("which of its files", are_sources, default=None)
    """Which files of a dataset loaded by name are read."""
    data_dir: str | None = from_file("which of its folders", is_source, default=None)
    """Which of its folders."""
    streaming: bool = from_file("whether it is read as needed", is_switch, default=False)
    """Whether a dataset loaded by name is read over the network as needed, without a copy on disk."""
    mixture: dict[str, TextSource] = from_file("several sources", is_mixture, default_factory=dict)
    """Several sources by name, mixed by ``weight``, in place of ``source``. Named in the config file or the
    environment; the command line can change those named there."""
    when_dry: WhenDry = from_file("how a mixture ends", is_text, default="stop")
    """Whether a mixture ends with the first part that has no more documents, or goes on with the others."""
    n_processes: int = by_caller(default=1)
    """Worker processes that tokenise, for tokenizers that are pure Python; the result is the same."""
    packing: Packing = from_file("how documents become contexts", is_mapping, default=Packing())
    """How documents become contexts."""
    positions: Positions = from_file("positions that are rows", is_mapping, default=Positions())
    """The positions of each context that become rows; all by default."""
    attend_across_documents: bool = from_file("whether documents see each other", is_switch, default=True)
    """Whether documents of one context attend to each other, as in plain packing; else each is computed as if it stood
    alone at the start of a context."""
    in_memory: bool = from_file("whether all text is kept", is_switch, default=True)
    """Whether all of the text is tokenised at once and kept; else it is read as the run needs it, in flat memory."""
    shuffle_documents: int | None = from_file("order of the documents", is_whole, default=None)
    """Seed of a shuffled order in which documents are packed, each run of 8192 of a source by itself; the source's own
    order by default."""

    def __post_init__(self) -> None:
        if isinstance(self.shuffle_documents, bool):
            raise ConfigError(
                f"shuffle_documents is the seed of the order, got {self.shuffle_documents}; give a whole number, such "
                "as 0, or leave it out for the order of the source"
            )
        own = chosen(self, ("source", *SOURCE_OPTIONS)) if self.mixture else {}
        if own:
            raise ConfigError(f"tokens.mixture has its parts' own {', '.join(own)}; leave out tokens.{next(iter(own))}")

    def text(self) -> TextSource | Mixture:
        """What is read. ``ConfigError`` for text that was recorded without a name."""
        own = {name: getattr(self, name) for name in SOURCE_OPTIONS}
        text = (
            Mixture(parts=self.mixture, when_dry=self.when_dry)
            if self.mixture
            else TextSource(source=self.source, **own)
        )
        refuse_unnamed(text)
        return text

    def build(self, tokenizer: Any) -> Tokens:
        """``load_tokens`` with these options."""
        from monosema.data.loading import make_tokens

        return make_tokens(self.text(), self, tokenizer)

    @property
    def keeps_documents(self) -> bool:
        """Whether contexts come with their documents, for models to keep apart or for padding."""
        return not self.attend_across_documents or self.packing.resolved().mode in PADDED_MODES

    def record(self) -> dict[str, Any]:
        """What is recorded of them beside the text, JSON-able."""
        values = recorded(self, _ALWAYS_RECORDED, _RECORDED_APART)
        if not isinstance(self.exclude_special_tokens, bool):
            values["exclude_special_tokens"] = sorted(self.exclude_special_tokens)
        return values

    def record_of_documents(self) -> dict[str, Any]:
        """The options in ``record`` that are there only where they are chosen.

        They go with the text into the manifest of packed tokens, and rows of token ids do not have them.
        """
        return recorded(self, (), (*_RECORDED_APART, *_ALWAYS_RECORDED))


def refuse_unnamed(text: TextSource | Mixture) -> None:
    """Raise ``ConfigError`` where ``text``, or a part of it, was recorded without a name."""
    parts = text.parts.values() if isinstance(text, Mixture) else [text]
    if any(isinstance(part.source, str) and part.source == IN_MEMORY for part in parts):
        raise ConfigError("it was trained on text in memory; hand the tokens in, or name a text")


def text_source(source: Any, *, data_files: Any = None, **options: Any) -> TextSource | Mixture:
    """``load_tokens``' source and ``SOURCE_OPTIONS`` as one config; ``ConfigError`` for options beside a mixture."""
    options["data_files"] = _file_names(data_files)
    if not isinstance(source, Mixture):
        return TextSource(source=source, **options)
    given = TextSource(source=MIXTURE, **options).chosen()
    if given:
        raise ConfigError(f"a mixture's parts have their own {', '.join(given)}; set them in TextSource(...)")
    return source


def _file_names(data_files: Any) -> tuple[str, ...] | None:
    if isinstance(data_files, Mapping):
        raise ConfigError("data_files must be a name or a list of names; of several splits, give the files of one")
    return (data_files,) if isinstance(data_files, str) else None if data_files is None else tuple(data_files)


@explains_options
def load_tokens(
    source: Any,
    tokenizer: Any,
    context_size: int | None = None,
    *,
    heldout_fraction: float | None = None,
    exclude_special_tokens: bool | Collection[int] = True,
    column: str | None = None,
    max_documents: int | None = None,
    split: str | None = None,
    config_name: str | None = None,
    data_files: Any = None,
    data_dir: str | None = None,
    streaming: bool = False,
    n_processes: int = 1,
    packing: Packing | None = None,
    positions: Positions | None = None,
    attend_across_documents: bool = True,
    in_memory: bool = True,
    shuffle_documents: int | None = None,
) -> Tokens:
    """Tokenise ``source``, make contexts of exactly ``context_size`` of it, and hold part of its documents out.

    Args:
        source: ``"stdlib"``; a file (.txt, .md, .rst, .py, .json, .jsonl, .ndjson, .parquet; also .gz and .zst), a
            folder of them, a glob, a URL of these that fsspec knows (``s3://bucket/*.jsonl.zst``); an iterable of
            strings, of records or of ``pathlib.Path``, or a function that returns one; a Hugging Face dataset, one
            saved on disk, or its name; a dataset with a ``tokens`` or ``input_ids`` column, whose
            ``attention_mask``, where there is one, says what is padding; a ``Mixture``; a
            folder that ``pretokenize`` wrote, which is memory-mapped and says how text was read and packed.
        tokenizer: a transformers tokenizer (``model.tokenizer``).
        context_size: tokens in a context. May be left out for pretokenised data, whose first row then decides.
        heldout_fraction: share of the documents held out, chosen by a hash of the text (of the module's name for
            ``"stdlib"``); 0 for none. Default 0.02, and 0.05 for ``"stdlib"``. At least one context is held out where
            the text has two; see ``HeldoutRule`` and ``choose_heldout``.
        exclude_special_tokens: positions holding these tokens never become training rows: True for the tokenizer's
            special tokens, False for none, or a list of ids.
        column: name of the column of text, of conversations (lists of {role, content} or {from, value}, written by the
            tokenizer's chat template), or of tokens.
        max_documents: read only the first so many documents.
        split: split of a dataset that has several.
        config_name, data_files (a name or several), data_dir, streaming: passed on when a dataset is loaded by name.
        n_processes: worker processes that tokenise, for tokenizers that are pure Python; the result is the same.
        packing: how documents become contexts; one after another, without padding, by default.
        positions: the positions of each context that become rows; all by default.
        attend_across_documents: False cuts attention between the documents of a context: each is computed as if it
            stood alone at the start of one. What precedes a document (BOS, separator) is its first token; in
            pretokenised rows every BOS (EOS where there is none) begins one.
        in_memory: False reads text as a run needs it, in flat memory whatever its length: contexts are drawn from a
            pool of at least eight chunks, a streamed dataset's shards are taken in an order of the seed's, and a run
            is resumed to the bit. The held-out side is then of the first documents only, 262,144 tokens of it.
        shuffle_documents: seed of a shuffled order in which documents are packed, so that neighbors in a context are
            not neighbors in the source. Each run of 8,192 documents of a source is shuffled by itself. The order is the
            same in memory, as needed and on disk, and a run is resumed to the bit.

    Raises:
        ConfigError: options that are out of range or contradict each other or the source (also other ones than a folder
            of ``pretokenize``'s was written with), or a token that the tokenizer lacks.
        DataError: no text, text that cannot be read, or too little for one training context.
        FileError: a file that is missing or damaged; a folder of ``pretokenize``'s that is not finished.
    """
    text = text_source(
        source,
        column=column,
        max_documents=max_documents,
        split=split,
        config_name=config_name,
        data_files=data_files,
        data_dir=data_dir,
        streaming=streaming,
    )
    exclude = exclude_special_tokens
    options = TokenOptions(
        context_size=context_size,
        heldout_fraction=heldout_fraction,
        exclude_special_tokens=exclude if isinstance(exclude, bool) else tuple(sorted(exclude)),
        n_processes=n_processes,
        packing=packing or Packing(),
        positions=positions or Positions(),
        attend_across_documents=attend_across_documents,
        in_memory=in_memory,
        shuffle_documents=shuffle_documents,
    )
    from monosema.data.loading import make_tokens

    return make_tokens(text, options, tokenizer)


def pretokenize(
    source: Any,
    tokenizer: Any,
    context_size: int,
    out: str | os.PathLike[str],
    *,
    heldout_fraction: float | None = None,
    column: str | None = None,
    max_documents: int | None = None,
    split: str | None = None,
    config_name: str | None = None,
    data_files: Any = None,
    data_dir: str | None = None,
    streaming: bool = False,
    n_processes: int = 1,
    packing: Packing | None = None,
    attend_across_documents: bool = True,
    shuffle_documents: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool | float = True,
) -> Tokens:
    """Write what ``load_tokens`` makes of ``source`` into the folder ``out``, and open it: the same contexts on the
    same sides, memory-mapped.

    The folder is a Hugging Face ``DatasetDict`` (``train``, ``heldout``; column ``input_ids``, and ``documents`` where
    contexts are padded or documents do not attend to each other) with sae-lens' metadata; the same options write the
    same bytes. Every file is written whole or not at all: after a kill at any moment the same call goes on behind the
    last shard, and reads the documents before it without tokenising them (but those of a mixture, whose tokens decide
    its order).

    Args:
        source: text as of ``load_tokens``; not what is tokenised already.
        tokenizer: a transformers tokenizer.
        context_size: tokens in a context.
        out: the folder; a finished one of the same options is opened.
        heldout_fraction, column, max_documents, split, config_name, data_files, data_dir, streaming, n_processes,
            packing, attend_across_documents, shuffle_documents: as of ``load_tokens``; the other options are given
            where it is read.
        shard_bytes: about the size of a file.
        progress: whether to show it, or seconds between lines.

    Raises:
        ConfigError: options out of range; tokens in ``out`` that were begun with others; a source already tokenised.
        FileError: not enough room on the disk (the same call goes on later), another process writes there, or it cannot
            be written.
        DataError: no text, too little for one training context, or other text than ``out`` was begun with.
    """
    text = text_source(
        source,
        column=column,
        max_documents=max_documents,
        split=split,
        config_name=config_name,
        data_files=data_files,
        data_dir=data_dir,
        streaming=streaming,
    )
    options = TokenOptions(
        context_size=context_size,
        heldout_fraction=heldout_fraction,
        n_processes=n_processes,
        packing=packing or Packing(),
        attend_across_documents=attend_across_documents,
        shuffle_documents=shuffle_documents,
    )
    from monosema.data.packed.write import write_tokens

    return write_tokens(text, options, tokenizer, out, shard_bytes=shard_bytes, progress=progress)
