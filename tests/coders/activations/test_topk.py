"""TopK: selection of a hand-written batch."""

import pytest
import torch

from monosema.coders import TopK
from monosema.coders.activations.topk import TopKActivation
from monosema.core.errors import ConfigError


def test_each_token_keeps_its_own_largest_positive_ones() -> None:
    pre = torch.tensor([[3.0, 5.0, 1.0, -1.0], [-2.0, 0.0, 4.0, -3.0], [2.0, 2.0, 2.0, 1.0]])
    latents = TopKActivation(TopK(k=2, weight_by_decoder_norm=False), 4).select(pre).latents
    assert latents.to_dense().tolist() == [[3.0, 5.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0], [2.0, 2.0, 0.0, 0.0]]
    assert latents.nnz == 5  # an entry of zero was not active (peers count it as fired)


def test_refused_options() -> None:
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        TopK(k=0)
