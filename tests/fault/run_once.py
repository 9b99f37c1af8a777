"""Trains a tiny run to its end, saying each step; started, killed and started again by ``test_resume``.

usage: run_once.py MODEL_FOLDER TEXT_FILE OUT [SLOW_CHECKPOINT_STEP]
"""

import os
import sys
import time
from pathlib import Path

import torch

import monosema as ms
from monosema.core import files


def say(text: str) -> None:
    """A whole line at once: checkpoints are written by another thread."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


def main() -> None:
    model_folder, text_file, out = sys.argv[1:4]
    slow_step = int(sys.argv[4]) if len(sys.argv) > 4 else None
    torch.set_num_threads(1)
    if slow_step is not None:
        replace_folder = files._replace_folder

        def slowly(temporary: Path, target: Path) -> None:
            if target.name == f"step_{slow_step:09d}":
                say(f"writing {slow_step}")
                time.sleep(60)  # the files are there, under their temporary name; the test kills us here
            replace_folder(temporary, target)

        files._replace_folder = slowly
    model = ms.load_model(model_folder)
    tokens = ms.load_tokens(text_file, model.tokenizer, 32, heldout_fraction=0.1)
    stream = ms.ActivationStream(model, tokens, "blocks.1.hook_resid_post", batch_size=128, chunk_contexts=40)
    coder = ms.SAE(16, 64, activation=ms.BatchTopK(k=4))
    config = ms.TrainingConfig(tokens=128 * 100, checkpoint_every=7, log_every=10)
    ms.train(
        coder,
        stream,
        config,
        out=out,
        evaluation=False,
        progress=False,
        on_step=lambda trainer: say(f"step {trainer.step_number}"),
    )
    say("done")


if __name__ == "__main__":
    main()
