"""dictionary_learning's ``ActivationBuffer`` under ``mixing.py``: its own code on a stand-in model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from dictionary_learning.buffer import ActivationBuffer
from mixing_protocol import PROMPTS, Case, Source, answer
from torch import Tensor

DEFAULT_ROWS = 30_000 * 128
"""``n_ctxs`` times ``ctx_len``."""


class Saved:
    """What nnsight's tracing hands out: something to ``save``, which has a value afterwards."""

    value: Any

    def save(self) -> Saved:
        return self

    def stop(self) -> None:
        """The forward pass ends here."""


class Model:
    """Answers a trace with the next of ``harvests``, once the buffer has said what it wants of it."""

    dtype = torch.float32

    def __init__(self, harvests: Iterator[Tensor]):
        self._harvests = harvests

    def trace(self, texts: list[str], **_: Any) -> Model:
        return self

    def __enter__(self) -> Model:
        self.output, self.inputs = Saved(), Saved()
        return self

    def __exit__(self, *_: object) -> None:
        block = next(self._harvests)
        self.output.value = block
        self.inputs.value = ((), {"attention_mask": torch.ones(block.shape[:2])})


def prepare(case: Case) -> Source:
    rows = DEFAULT_ROWS if case.settings == "default" else case.pool_rows
    model = Model(case.harvests())
    buffer = ActivationBuffer(
        itertools.repeat("text"),
        model,
        model,  # its output is the submodule's
        d_submodule=case.width,
        n_ctxs=rows // case.context_size,
        ctx_len=case.context_size,
        refresh_batch_size=PROMPTS,
        out_batch_size=case.batch_size,
    )
    return Source({"dictionary-learning": version("dictionary-learning")}, buffer.activation_buffer_size, buffer)


if __name__ == "__main__":
    answer(prepare)
