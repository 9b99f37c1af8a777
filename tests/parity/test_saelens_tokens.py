"""Packed tokens against sae-lens 6.54.12: its ``PretokenizeRunner`` writes the same rows, and it reads our folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peer import Peer
from tiny_language import END_OF_TEXT, TEXT, byte_tokenizer

from monosema.data import pretokenize

LINES = TEXT.splitlines(keepends=True)
TEXTS = [
    *("".join(LINES[i : i + 1 + i % 4]) for i in range(0, 200, 4)),
    "a",
    f"{END_OF_TEXT}brings its own mark",
    "ends with one" + END_OF_TEXT,
]


@pytest.mark.parametrize("context_size", [7, 64])
def test_rows_are_those_of_saelens_runner_and_it_reads_the_folder(
    saelens: Peer, tmp_path: Path, context_size: int
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    theirs = saelens.call(
        "pretokenize",
        texts=str(texts),
        tokenizer=str(tmp_path / "tokenizer"),
        folder=str(tmp_path / "theirs"),
        options={"context_size": context_size},
    )
    folder = tmp_path / "ours"
    tokens = pretokenize(texts, tokenizer, context_size, folder, heldout_fraction=0.0, shard_bytes=2000, progress=False)
    assert tokens.train.contexts[:].tolist() == theirs["rows"]
    n = tokens.train.n_contexts
    assert saelens.call("read_tokens", folder=str(folder), context_size=context_size, n=n)["rows"] == theirs["rows"]
    assert json.loads((folder / "sae_lens.json").read_text()).keys() == theirs["metadata"].keys()
