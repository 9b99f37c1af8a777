"""Opening a folder of packed tokens: what it holds is held against what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monosema.core.config import to_plain
from monosema.core.errors import ConfigError, FileError
from monosema.core.words import counted
from monosema.data.packed.contexts import StoredShards
from monosema.data.packed.manifest import Manifest, read_manifest
from monosema.data.packing_config import Packing


@dataclass(frozen=True)
class StoredTokens:
    """An opened folder."""

    folder: Path
    """Where it lies."""
    manifest: Manifest
    """What it says about itself; finished."""

    def shards(self, side: str) -> StoredShards:
        """Of ``train`` or ``heldout``, memory-mapped."""
        plan, shards = self.manifest.plan, getattr(self.manifest, side).shards
        return StoredShards(self.folder / side, shards, plan.context_size, keeps_documents=plan.keeps_documents)

    def record(self) -> dict[str, Any]:
        """What a dictionary trained on it records, but for how its rows are chosen."""
        plan, text = self.manifest.plan, self.manifest.text
        assert text is not None
        found = asdict(text)
        if not found["parts"]:
            del found["parts"]
        return {
            "source": str(self.folder),
            "column": None,
            "max_documents": None,
            "context_size": plan.context_size,
            "heldout_fraction": plan.heldout_fraction,
            "packing": to_plain(plan.packing),
            "attend_across_documents": plan.attend_across_documents,
            "in_memory": True,
            **plan.marks,
            **found,
            **({} if self.manifest.heldout_rule is None else {"heldout_rule": to_plain(self.manifest.heldout_rule)}),
            "pretokenized": {**plan.text, "tokenizer": plan.tokenizer.name},
        }


def open_packed(
    folder: Path, tokenizer: Any, asked: Mapping[str, Any], *, packing: Packing, attend_across_documents: bool
) -> StoredTokens:
    """Open ``folder``; what is asked for beside it are ``load_tokens``' options, None or default where left out.

    Raises:
        FileError: it is not finished, or damaged; the file is named.
        ConfigError: made for another tokenizer, or with other options.
    """
    manifest = read_manifest(folder)
    plan = manifest.plan
    if manifest.text is None:
        n_contexts = manifest.train.n_contexts + manifest.heldout.n_contexts
        raise FileError(
            f"the tokens in {folder} are not finished ({counted(n_contexts, 'context')} so far); run the command that "
            "writes "
            "them again, it goes on from there"
        )
    decided = {"context_size": plan.context_size, "heldout_fraction": plan.heldout_fraction}
    for name, value in asked.items():
        if value is not None and value != decided.get(name):
            there = f"is {decided[name]} there" if name in decided else "was decided when it was written"
            raise ConfigError(f"{folder} holds packed tokens: {name} {there}, not {value!r}; leave it out")
    if packing.resolved() not in (Packing().resolved(), plan.packing):
        raise ConfigError(f"{folder} holds tokens packed as {plan.packing}; leave packing out")
    if not attend_across_documents and plan.attend_across_documents:
        raise ConfigError(
            f"{folder} does not hold which documents its tokens belong to; write them with "
            "attend_across_documents=False, or leave it out"
        )
    if tokenizer is not None:
        plan.tokenizer.refuse_other(tokenizer, folder)
    return StoredTokens(folder, manifest)
