"""A source of text, or a mixture of several, as tokenised documents that are counted on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from monosema.core.errors import DataError
from monosema.data.config import Mixture, TextSource, TokenOptions
from monosema.data.document_reader import DocumentReader
from monosema.data.documents import Document, TextFingerprint, is_dataset_dict, open_source
from monosema.data.mixture import mix
from monosema.data.tokenise import TokenisedDocument, tokenise
from monosema.data.workers import Workers

TOKEN_COLUMNS = ("tokens", "input_ids")
"""Where datasets keep text that is tokenised already."""

_ALONE = ""
"""The name of the one part where there is no mixture."""


class Corpus:
    """The tokenised documents of one opened source or of a mixture, in order; blank ones are passed over.

    It is read once. ``fingerprint`` and the counts are of what was read so far. Of one source, documents that are not
    wanted come without tokens.
    """

    def __init__(
        self,
        source: TextSource | Mixture,
        opened: Mapping[str, Any],
        options: TokenOptions,
        tokenizer: Any,
        workers: Workers | None = None,
        is_wanted: Callable[[Document], bool] | None = None,
    ) -> None:
        assert is_wanted is None or isinstance(source, TextSource), "a mixture's order needs the tokens of all"
        mixture = source if isinstance(source, Mixture) else Mixture(parts={_ALONE: source}, when_dry="stop")
        self._mixture = mixture
        readers = {
            name: DocumentReader(source=part, opened=opened[name], options=options, tokenizer=tokenizer)
            for name, part in mixture.parts.items()
        }
        self._documents = {
            name: tokenise(_with_text(reader), tokenizer, workers=workers, is_wanted=is_wanted)
            for name, reader in readers.items()
        }
        self.fingerprint = TextFingerprint()
        self.n_documents = dict.fromkeys(mixture.parts, 0)
        self.n_tokens = dict.fromkeys(mixture.parts, 0)

    def __iter__(self) -> Iterator[TokenisedDocument]:
        weights = {name: part.weight for name, part in self._mixture.parts.items()}
        for mixed in mix(self._documents, weights, self._mixture.when_dry):
            self.fingerprint.add(mixed.tokenised.document)
            self.n_documents[mixed.part] += 1
            self.n_tokens[mixed.part] += len(mixed.tokenised.tokens)
            yield mixed.tokenised

    def record(self) -> dict[str, Any]:
        """What was read, JSON-able."""
        counts = {
            name: {"n_documents": self.n_documents[name], "n_tokens": self.n_tokens[name]}
            for name in self._documents
            if name != _ALONE
        }
        return {
            "text_sha256": self.fingerprint.hexdigest(),
            "n_documents": sum(self.n_documents.values()),
            **({"parts": counts} if counts else {}),
        }


def open_parts(source: TextSource | Mixture) -> dict[str, Any]:
    """Each part of ``source`` opened, by name. ``DataError`` for a part of a mixture that is tokenised already."""
    if isinstance(source, TextSource):
        return {_ALONE: open_source(source)}
    opened = {name: open_source(part) for name, part in source.parts.items()}
    for name, part in opened.items():
        if token_column(part, source.parts[name].column) is not None:
            raise DataError(f"part {name!r} is tokenised already; mixtures are made of text")
    return opened


def token_column(dataset: Any, column: str | None) -> str | None:
    """The column of tokens that ``dataset`` has in place of text, or None."""
    names = () if is_dataset_dict(dataset) else getattr(dataset, "column_names", None) or ()
    wanted = TOKEN_COLUMNS if column is None else (column,)
    return next((name for name in wanted if name in names and name in TOKEN_COLUMNS), None)


def _with_text(reader: DocumentReader) -> Iterator[Document]:
    return (document for document in reader.all() if document.text.strip())
