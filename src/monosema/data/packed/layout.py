"""What other libraries find in a folder of packed tokens: ``datasets``' files, sae-lens' metadata, the hub's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monosema.core.files import write_atomically, write_json
from monosema.core.peers import SAELENS_VERSION
from monosema.data.packed.manifest import Manifest, TokenPlan

SAELENS_FILE, CARD = "sae_lens.json", "README.md"


def write_layout(folder: Path, manifest: Manifest) -> None:
    """Make ``folder`` a ``datasets.DatasetDict`` on disk, for ``load_from_disk``, ``load_dataset`` and sae-lens."""
    for name, side in manifest.sides.items():
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard.file} for shard in side.shards],
            "_fingerprint": side.fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        # no features: every version of datasets reads them from the Arrow files, in its own words
        write_json(folder / name / "dataset_info.json", {"description": "", "citation": "", "license": ""})
        write_json(folder / name / "state.json", state)
    write_json(folder / SAELENS_FILE, _saelens(manifest.plan))
    write_atomically(folder / CARD, _card(manifest))
    write_json(folder / "dataset_dict.json", {"splits": list(manifest.sides)})


def files(manifest: Manifest) -> list[str]:
    """All that belongs to the folder, the manifest apart."""
    own = [
        f"{name}/{file}"
        for name, side in manifest.sides.items()
        for file in (*(shard.file for shard in side.shards), "dataset_info.json", "state.json")
    ]
    return [*own, SAELENS_FILE, CARD, "dataset_dict.json"]


def _saelens(plan: TokenPlan) -> dict[str, Any]:
    """``sae_lens.json``, as its ``PretokenizeRunner`` writes it."""
    options, packing = plan.text.get("options", {}), plan.packing
    return {
        "sae_lens_version": SAELENS_VERSION,
        "tokenizer_name": plan.tokenizer.name,
        "original_dataset": plan.source,
        "original_dataset_name": options.get("config_name"),
        "original_split": options.get("split"),
        "original_data_files": options.get("data_files"),
        "original_column_name": plan.text.get("column"),
        "context_size": plan.context_size,
        "shuffled": False,
        "seed": None,
        "begin_batch_token": plan.marks["begin_context"],
        "begin_sequence_token": plan.marks["begin_document"],
        "sequence_separator_token": plan.marks["separator"],
        "disable_concat_sequences": packing.mode != "packed",
        "use_chat_formatting": False,
    }


def _card(manifest: Manifest) -> str:
    plan, text, marks = manifest.plan, manifest.text, manifest.plan.marks
    assert text is not None
    splits = "\n".join(f"  - split: {name}\n    path: {name}/*.arrow" for name in manifest.sides)
    counts = " and ".join(f"{side.n_contexts:,} ({name})" for name, side in manifest.sides.items())
    return f"""---
configs:
- config_name: default
  data_files:
{splits}
tags:
- tokenized
- monosema
---

# Packed tokens

{counts} contexts of {plan.context_size} tokens in `input_ids`, from {text.n_documents:,} documents of `{plan.source}`,
tokenised with `{plan.tokenizer.name}`. Of the documents {text.n_heldout_documents:,} are held out, chosen by a hash of
each, in contexts of their own.

The mode of packing is `{plan.packing.mode}`. Every context begins with token {marks["begin_context"]}, every document
with {marks["begin_document"]}; between documents stands {marks["separator"]}, and a context ends with
{marks["end_context"]} (None: no such token).

Written by `monosema pretokenize`. A copy of the repository in a folder is read by
`monosema.load_tokens(folder, tokenizer)`; `datasets.load_dataset(..., split="train")` reads the training side.
"""
