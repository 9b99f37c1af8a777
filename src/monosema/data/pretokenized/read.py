"""Opening a folder of packed tokens: what it holds is held against what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monosema.core.errors import ConfigError, FileError
from monosema.data.pretokenized.contexts import StoredContexts
from monosema.data.pretokenized.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class StoredTokens:
    """An opened folder."""

    folder: Path
    """Where it lies."""
    manifest: Manifest
    """What it says about itself; finished."""

    def contexts(self, side: str) -> StoredContexts:
        """Of ``train`` or ``heldout``, memory-mapped."""
        shards = getattr(self.manifest, side).shards
        return StoredContexts(self.folder / side, shards, self.manifest.plan.context_size)

    def record(self) -> dict[str, Any]:
        """What a dictionary trained on it records, beside what any text's does."""
        plan, text = self.manifest.plan, self.manifest.text
        assert text is not None
        origin: dict[str, Any] = {
            name: getattr(plan, name) for name in ("source", "options", "column", "max_documents")
        }
        return {
            **asdict(text),
            **{name: getattr(plan, name) for name in ("begin_context", "separator", "end_context")},
            "pretokenized": {**origin, "tokenizer": plan.tokenizer.name},
        }


def open_pretokenized(folder: Path, tokenizer: Any, asked: Mapping[str, Any]) -> StoredTokens:
    """Open ``folder``; ``asked`` are ``load_tokens``' options, None where they were left out.

    Raises:
        FileError: it is not finished, or damaged; the file is named.
        ConfigError: made for another tokenizer, or with other options.
    """
    manifest = read_manifest(folder)
    plan = manifest.plan
    if manifest.text is None:
        n_contexts = manifest.train.n_contexts + manifest.heldout.n_contexts
        raise FileError(
            f"the tokens in {folder} are not finished ({n_contexts:,} contexts so far); run the command that writes "
            "them again, it goes on from there"
        )
    decided = {"context_size": plan.context_size, "heldout_fraction": plan.heldout_fraction}
    for name, value in asked.items():
        if value is not None and value != decided.get(name):
            there = f"is {decided[name]} there" if name in decided else "was decided when it was written"
            raise ConfigError(f"{folder} holds packed tokens: {name} {there}, not {value!r}; leave it out")
    if tokenizer is not None:
        plan.tokenizer.refuse_other(tokenizer, folder)
    return StoredTokens(folder, manifest)
