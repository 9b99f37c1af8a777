"""Where the Triton programs run."""

from __future__ import annotations

import functools
import importlib.util
import os

from torch import Tensor


def runs_triton(tensor: Tensor) -> bool:
    """Whether ``tensor`` is for the Triton programs: on CUDA, with triton installed, unless ``MONOSEMA_TRITON=0``."""
    return tensor.is_cuda and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return os.environ.get("MONOSEMA_TRITON") != "0" and importlib.util.find_spec("triton") is not None
