"""sae-lens and SAEBench under ``evaluation.py``: the model and the dictionary are loaded once, then timed when asked.

Runs in the environment of SAEBench, which holds both; a line on standard input names one, its seconds are answered.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))

import torch
from peer_saebench import adapted, hooked, run_saebench, run_saelens, version  # type: ignore[import-not-found]
from safetensors.torch import load_file

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
case = json.loads(sys.argv[1])
torch.set_num_threads(case["n_threads"])
contexts = load_file(case["tokens"])["tokens"]
given = adapted(case["coder"]), hooked(case["model"]), contexts, case["batch"], len(contexts) // case["batch"]


def saebench() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_saebench(*given, folder, restore_special=False)


def answer(value: object) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


answer(version())
runs: dict[str, Callable[[], Any]] = {"sae-lens": partial(run_saelens, *given), "SAEBench": saebench}
for line in sys.stdin:
    begun = time.perf_counter()
    runs[line.strip()]()
    answer(time.perf_counter() - begun)
