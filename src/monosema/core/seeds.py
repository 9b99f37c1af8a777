"""Named random streams: every draw in the library comes from a generator keyed by a seed and a purpose.

The global generator is never used, so adding a draw in one place never changes the numbers of another.
"""

from __future__ import annotations

import hashlib

import torch


def random_stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator whose state depends on ``seed`` and ``names`` only.

    >>> a, b = random_stream(0, "coder", "W_dec"), random_stream(0, "coder", "W_dec")
    >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
    True
    """
    key = "\x1f".join([str(int(seed)), *(str(name) for name in names)])
    digest = hashlib.sha256(key.encode()).digest()
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return generator
