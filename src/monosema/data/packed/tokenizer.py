"""Which tokenizer token ids belong to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from monosema.core.errors import ConfigError
from monosema.core.words import counted


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """Enough of a tokenizer to tell it from another."""

    name: str
    """Hub id or folder, as far as it knows its own."""
    vocab_size: int
    """Tokens it has, added ones included."""
    vocab_sha256: str
    """Of the tokens and their ids: equal where ids mean the same."""
    sha256: str
    """Of all that decides how it cuts text: equal where text becomes the same ids."""

    @staticmethod
    def of(tokenizer: Any) -> TokenizerIdentity:
        """Of a transformers tokenizer."""
        vocab = tokenizer.get_vocab()
        vocab_sha256 = _sha256(sorted(vocab.items(), key=lambda item: (item[1], item[0])))
        inner: Any = getattr(tokenizer, "backend_tokenizer", None)
        serialised = {} if inner is None else json.loads(inner.to_str())
        # what the last call asked for, not what the tokenizer is
        rules = {key: value for key, value in serialised.items() if key not in ("truncation", "padding")}
        return TokenizerIdentity(
            name=str(getattr(tokenizer, "name_or_path", "")) or type(tokenizer).__name__,
            vocab_size=len(vocab),
            vocab_sha256=vocab_sha256,
            sha256=_sha256([type(tokenizer).__name__ if inner is None else "", vocab_sha256, rules]),
        )

    def refuse_other(self, tokenizer: Any, where: object) -> None:
        """Raise ``ConfigError`` where the ids of ``tokenizer`` mean something else."""
        other = TokenizerIdentity.of(tokenizer)
        if other.vocab_sha256 != self.vocab_sha256:
            raise ConfigError(
                f"{where} was made with the tokenizer {self.name} ({counted(self.vocab_size, 'token')}), the model's "
                "is "
                f"{other.name} ({counted(other.vocab_size, 'token')}, "
                f"{'another' if other.name == self.name else 'its own'} "
                "vocabulary); use the model it was made for, or tokenise the text for this one"
            )


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
