"""How OpenMP's threads wait at the end of a parallel region; without torch, as its runtime reads this when it loads.

By default threads spin for milliseconds. Beside another busy process they spin in the place of the thread that they
wait for, and a training step of hundreds of small regions takes three times as long.
"""

from __future__ import annotations

import os
import sys

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Where a user says how threads wait."""

_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""GNU's runtime, which torch brings on Linux, spins some microseconds and then sleeps; others sleep at once."""

_late = False


def let_threads_sleep() -> None:
    """Have threads that wait sleep, unless the user said how they wait or torch is loaded already."""
    global _late
    if any(name in os.environ for name in VARIABLES):
        return
    _late = "torch" in sys.modules
    if not _late:
        os.environ.update(_SLEEP)


def threads_spin() -> bool:
    """Whether threads spin because torch was loaded before monosema."""
    return _late
