"""SAELens' ``ActivationsStore`` under ``mixing.py``: its own buffer, fed with made-up activations.

The store is made without a language model or text; the size of its buffer is what its own ``get_data_loader`` makes of
its settings.
"""

from __future__ import annotations

from collections.abc import Iterator

import sae_lens
from mixing_protocol import Case, Source, answer
from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig, StandardTrainingSAEConfig
from torch import Tensor

TUTORIAL = 64
"""``n_batches_in_buffer`` of its tutorial, with contexts of 256."""


class FedStore(ActivationsStore):
    """A store whose forward passes are ``harvests``."""

    def __init__(self, n_batches_in_buffer: int, context_size: int, mixing_fraction: float, case: Case):
        self.n_batches_in_buffer, self.training_context_size = n_batches_in_buffer, context_size
        self.train_batch_size_tokens, self.activations_mixing_fraction = case.batch_size, mixing_fraction
        self._case, self._dataloader = case, None

    def _iterate_filtered_activations(self) -> Iterator[Tensor]:
        for block in self._case.harvests():
            yield block.flatten(0, 1)


def prepare(case: Case) -> Source:
    defaults = LanguageModelSAERunnerConfig(sae=StandardTrainingSAEConfig(d_in=case.width, d_sae=case.width))
    n_batches, context_size = case.pool_rows // case.context_size, case.context_size
    if case.settings == "default":
        n_batches, context_size = defaults.n_batches_in_buffer, defaults.context_size
    elif case.settings == "tutorial":
        n_batches = TUTORIAL
    store = FedStore(n_batches, context_size, defaults.activations_mixing_fraction, case)
    return Source({"sae-lens": sae_lens.__version__}, n_batches * context_size, store)


if __name__ == "__main__":
    answer(prepare)
