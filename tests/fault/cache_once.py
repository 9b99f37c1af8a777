"""Writes a cache slowly enough to be killed: says each file that it is about to write."""

import os
import sys
import time

import monosema as ms
from monosema.data import ActivationStream, write_cache
from monosema.data.cache import write

model_path, corpus, out = sys.argv[1:4]
written = write.write_shard


def slow(folder: object, file: str, *arguments: object) -> object:
    os.write(1, f"writing {file}\n".encode())  # a whole line, whichever thread says it
    time.sleep(0.02)
    return written(folder, file, *arguments)  # type: ignore[arg-type]


write.write_shard = slow  # type: ignore[assignment]
model = ms.load_model(model_path)
tokens = ms.load_tokens(corpus, model.tokenizer, 16)
stream = ActivationStream(model, tokens, "blocks.0.hook_resid_post", batch_size=32, chunk_contexts=12, seed=1)
manifest = write_cache(stream, out, shard_bytes=32000, dtype="bfloat16")
assert manifest is not None
print(f"done {manifest.fingerprint}", flush=True)
