"""Trains a tiny run whose rows ask for more memory than the process may have, and says how it ended.

usage: memory_once.py OUT BATCH_THAT_NEEDS_TOO_MUCH (0 for none)
"""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import monosema as ms

N_BATCHES = 600
"""The first of them are looked at before the first step."""


def rows(too_much_at: int) -> Iterator[torch.Tensor]:
    for number in range(1, N_BATCHES + 1):
        if number == too_much_at:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 2**28
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            np.ones(2**28)  # 2 GiB
        yield torch.randn(64, 16, generator=torch.Generator().manual_seed(number))


def main() -> None:
    out, too_much_at = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    config = ms.TrainingConfig(tokens=64 * N_BATCHES, checkpoint_every=0)
    try:
        ms.train(ms.SAE(16, 32, activation=ms.TopK(k=4)), rows(too_much_at), config, out=out, progress=False)
    except ms.UserError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(2)
    print("done")


if __name__ == "__main__":
    main()
