"""Which documents are held out: chosen by a hash of each one's name, which is a hash of its text.

The rule is fixed by the first documents of a text, so a text that is read once, as it is needed or onto disk has the
sides that it has in memory. Its cost is to hold those first documents.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from monosema.core.errors import ConfigError
from monosema.data.file_formats import Document
from monosema.data.packing import PackedBlock, Packer, PackingRule, pack_blocks
from monosema.data.packing_config import PackingMode
from monosema.data.stdlib import is_heldout_name, name_hash
from monosema.data.tokenise import TokenisedDocument

WINDOW_DOCUMENTS = 256
WINDOW_CHARACTERS = 2**24
"""The first documents of a text end with the document that reaches either."""

_DIVIDED_MODES: tuple[PackingMode, ...] = ("packed", "windows")
"""Modes whose contexts need not be the start of a document."""


@final
@dataclass(frozen=True, kw_only=True)
class HeldoutRule:
    """Which documents are held out, of which one the last part."""

    below: float
    """Documents with ``name_hash`` / 2^64 below this are held out."""
    names: tuple[str, ...] = ()
    """Further ones, by name."""
    divided: str | None = None
    """The name of a document of which only a part is held out."""
    start: int = 0
    """The first token of that part."""
    stop: int | None = None
    """The token behind it; None for the end of the document."""

    def __post_init__(self) -> None:
        if not 0 <= self.below <= 1 or self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise ConfigError(f"{self} holds out no share of documents")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held out."""
        return self.below == 0 and not self.names and self.divided is None

    def concerns(self, name: str, *, heldout: bool) -> bool:
        """Whether any of the document ``name`` is on that side."""
        if name == self.divided:
            return True
        return (name in self.names or is_heldout_name(name, self.below)) == heldout

    def part(self, name: str, tokens: np.ndarray, *, heldout: bool) -> np.ndarray:
        """The tokens of the document ``name`` that are on that side; none where it is on the other."""
        if name == self.divided:
            return tokens[self.start : self.stop] if heldout else tokens[: self.start]
        return tokens if self.concerns(name, heldout=heldout) else tokens[:0]


def choose_heldout(
    documents: Sequence[TokenisedDocument],
    fraction: float,
    packing: PackingRule,
    *,
    is_whole: bool,
    is_counted: bool,
) -> HeldoutRule:
    """The rule for a text that begins with ``documents``, in contexts as of ``packing``.

    Documents are held out in the order of their hashes: those below ``fraction``, or, where the text is whole and
    ``is_counted``, as many as come closest to that share, one at least; more where these fill no context. Where no such
    choice leaves both sides a context, the last part of the longest document is held out. Nothing is where that does
    not help, or where ``fraction`` is 0. Equal documents are on one side.

    Args:
        documents: the first ones, with their tokens.
        fraction: share of documents to hold out.
        packing: how they become contexts.
        is_whole: whether there are no more documents.
        is_counted: whether documents of a whole text are counted, or only their hashes compared.
    """
    if fraction == 0:
        return HeldoutRule(below=0.0)
    tokens_of = defaultdict[str, list[np.ndarray]](list)
    for each in documents:
        tokens_of[each.document.name].append(each.tokens)
    packer = Packer(packing, block_contexts=1)

    def fills(name: str) -> bool:
        return any(_fills_one(packer.add(tokens)) for tokens in tokens_of[name])

    names = [each.document.name for each in documents]
    rule = choose_by_hash(names, fraction, is_whole=is_whole, is_counted=is_counted, fills=fills)
    if not is_whole or _both_fill(documents, rule, packing):
        return rule
    return _divided(documents, fraction, packing)


def choose_by_hash(
    names: Sequence[str], fraction: float, *, is_whole: bool, is_counted: bool, fills: Callable[[str], bool]
) -> HeldoutRule:
    """The rule of ``choose_heldout`` that divides no document.

    ``fills`` is asked about one name after another: whether these documents and those before fill a context.
    """
    counts = Counter(names)
    ordered = sorted(counts, key=name_hash)
    n_below = sum(is_heldout_name(name, fraction) for name in ordered)
    most = max(0, len(ordered) - 1) if is_whole else max(n_below, (len(ordered) + 1) // 2)
    n = min(n_below, most)
    if is_whole and is_counted and most > 0:
        held = [*itertools.accumulate(counts[name] for name in ordered[:most])]
        n = 1 + min(range(most), key=lambda i: abs(held[i] - fraction * len(names)))
    is_filled = any(fills(name) for name in ordered[:n])
    for name in ordered[n:most]:
        if is_filled:
            break
        is_filled = fills(name)
        n += 1
    if n == n_below or (not is_whole and not is_filled):
        return HeldoutRule(below=float(fraction))
    if not is_whole:
        return HeldoutRule(below=float(fraction), names=tuple(ordered[n_below:n]))
    return HeldoutRule(below=0.0 if n == 0 else (name_hash(ordered[n - 1]) + name_hash(ordered[n])) / 2**65)


@final
class Window:
    """Counts the first documents of a text."""

    def __init__(self) -> None:
        self._n_documents = self._n_characters = 0

    def add(self, document: Document) -> None:
        """Count one more."""
        self._n_documents += 1
        self._n_characters += len(document.text)

    @property
    def is_full(self) -> bool:
        """Whether these are all that the rule is chosen by."""
        return self._n_documents >= WINDOW_DOCUMENTS or self._n_characters >= WINDOW_CHARACTERS


@final
@dataclass(frozen=True)
class DividedDocument:
    """A document, and what of it is on each side."""

    document: Document
    """What was divided."""
    train: np.ndarray
    """[n] int32."""
    heldout: np.ndarray
    """[n] int32."""


@final
class Divider:
    """Divides documents as they come; ``rule`` is there once the first ones were read, or was given."""

    def __init__(self, fraction: float, packing: PackingRule, *, is_counted: bool, rule: HeldoutRule | None = None):
        self._fraction, self._packing, self._is_counted = fraction, packing, is_counted
        self.rule = HeldoutRule(below=0.0) if fraction == 0 else rule
        self.n_heldout = 0
        """Documents of which something is held out, so far."""

    def __call__(self, documents: Iterable[TokenisedDocument]) -> Iterator[DividedDocument]:
        documents = iter(documents)
        first: list[TokenisedDocument] = []
        if self.rule is None:
            window = Window()
            for each in documents:
                first.append(each)
                window.add(each.document)
                if window.is_full:
                    break
            self.rule = choose_heldout(
                first, self._fraction, self._packing, is_whole=not window.is_full, is_counted=self._is_counted
            )
        for each in itertools.chain(first, documents):
            name = each.document.name
            self.n_heldout += self.rule.concerns(name, heldout=True)
            train, heldout = (self.rule.part(name, each.tokens, heldout=side) for side in (False, True))
            yield DividedDocument(each.document, train, heldout)


def _divided(documents: Sequence[TokenisedDocument], fraction: float, packing: PackingRule) -> HeldoutRule:
    """The last part of the longest document: its share of all tokens, or one context where that leaves too few."""
    nothing = HeldoutRule(below=0.0)
    if packing.mode not in _DIVIDED_MODES or not documents:
        return nothing
    longest = max(documents, key=lambda each: (len(each.tokens), each.document.name))
    tokens, stop = longest.tokens[: packing.document_tokens], packing.document_tokens
    sizes = range(min(len(tokens), packing.context_size) + 1)
    least = next((n for n in sizes if n and _fills([tokens[-n:]], packing)), None)
    if least is None:
        return nothing
    share = round(fraction * sum(len(each.tokens) for each in documents))
    for n in (max(least, min(share, len(tokens))), least):
        rule = HeldoutRule(below=0.0, divided=longest.document.name, start=len(tokens) - n, stop=stop)
        if _both_fill(documents, rule, packing):
            return rule
    return nothing


def _both_fill(documents: Sequence[TokenisedDocument], rule: HeldoutRule, packing: PackingRule) -> bool:
    return all(
        _fills([rule.part(each.document.name, each.tokens, heldout=side) for each in documents], packing)
        for side in (False, True)
    )


def _fills(documents: Iterable[np.ndarray], packing: PackingRule) -> bool:
    """Whether ``documents`` fill a context."""
    return _fills_one(pack_blocks(documents, packing, 1))


def _fills_one(blocks: Iterator[PackedBlock]) -> bool:
    return any(len(block.ids) for block in blocks)
