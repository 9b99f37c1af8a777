"""Writes packed tokens slowly enough to be killed: says each file that it is about to write."""

import os
import sys
import time
from pathlib import Path

import monosema as ms
from monosema.core import files
from monosema.data import tokenise
from monosema.models.load import load_tokenizer

model_path, corpus, out = sys.argv[1:4]
replaced = os.replace


def slow(temporary: Path, target: Path) -> None:
    print(f"writing {target.parent.name}/{target.name}", flush=True)
    time.sleep(0.02)
    replaced(temporary, target)


files.os.replace = slow  # type: ignore[attr-defined]
tokenise.BATCH_DOCUMENTS = 2
tokens = ms.pretokenize(corpus, load_tokenizer(model_path), 64, out, heldout_fraction=0.2, shard_bytes=8000)
print(f"done {tokens.train.fingerprint} {tokens.heldout.fingerprint}", flush=True)
