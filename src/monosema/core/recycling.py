"""Memory that is lent again once nobody holds it: fresh pages cost the system more than most of what fills them."""

from __future__ import annotations

import weakref
from typing import final

import numpy as np
import torch
from torch import Tensor

_MOST_KEPT = 4


@final
class Recycler:
    """Lends pieces of memory of one size; at most ``_MOST_KEPT`` are kept, others are new and not seen again."""

    def __init__(self) -> None:
        self._kept: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []

    def take(self, n_bytes: int) -> Tensor:
        """``[n_bytes]`` uint8 with any content; its storage, and whatever views it, is nobody else's while it lives."""
        self._kept = [each for each in self._kept if len(each[0]) == n_bytes]
        for place, (memory, holder) in enumerate(self._kept):
            if holder() is None:
                lent = memory[:]
                self._kept[place] = memory, weakref.ref(lent)
                return torch.from_numpy(lent)  # the storage holds ``lent`` as long as it lives
        memory = np.empty(n_bytes, dtype=np.uint8)
        lent = memory[:]
        if len(self._kept) < _MOST_KEPT:
            self._kept.append((memory, weakref.ref(lent)))
        return torch.from_numpy(lent)
