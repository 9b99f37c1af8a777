"""Several corpora as one, in shares of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from monosema.data.config import WhenDry
from monosema.data.tokenise import TokenisedDocument


@dataclass(frozen=True)
class MixedDocument:
    """A document and where it comes from."""

    part: str
    """Name of the part."""
    tokenised: TokenisedDocument
    """The document with its tokens."""


def mix(
    parts: Mapping[str, Iterator[TokenisedDocument]], weights: Mapping[str, float], when_dry: WhenDry = "stop"
) -> Iterator[MixedDocument]:
    """Documents of all ``parts``: the next one is of the part with the least (tokens so far) / (weight).

    Equal parts take turns in their order. So after any document every part's tokens are within one document of its
    share. Where the part whose turn it is has no more documents, ``stop`` ends; ``go_on`` leaves it out from there on.
    """
    used = dict.fromkeys(parts, 0)
    going = dict(parts)
    while going:
        name = min(going, key=lambda each: used[each] / weights[each])
        document = next(going[name], None)
        if document is None:
            if when_dry == "stop":
                return
            del going[name]
            continue
        used[name] += len(document.tokens)
        yield MixedDocument(name, document)
