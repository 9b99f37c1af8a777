"""A sparse-connection term is lowered by fewer connections, not by shorter decoder rows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import monosema as ms
from monosema.training import SparseConnection, Trainer
from monosema.training.resolve import has_unit_norm

D, F, B = 6, 16, 64
DIRECTIONS = torch.nn.functional.normalize(torch.randn(10, D, generator=torch.Generator().manual_seed(3)), dim=1)


def transcoder(activation: Any, **options: Any) -> ms.SparseCoder:
    return ms.Transcoder(D, D, F, activation=activation, **options)


def trained(decoder: Any, coefficient: float | None) -> ms.SparseCoder:
    connection = None if coefficient is None else SparseConnection(path="an SAE", coefficient=coefficient)
    config = ms.TrainingConfig(tokens=40 * B, decoder=decoder, sparse_connection=connection)
    coder = transcoder(ms.TopK(k=3, weight_by_decoder_norm=False))
    trainer = Trainer(coder, config, B, None if coefficient is None else DIRECTIONS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        x = torch.randn(B, D, generator=generator)
        trainer.step(torch.cat([x, x.roll(1, dims=1)], 1))
    return coder


def test_rows_have_norm_one_by_default() -> None:
    coder = trained("auto", 10.0)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(F))
    plain = trained("unit_norm", None)
    connections = [float((each.W_dec.detach() @ DIRECTIONS.T).abs().sum(1).mean()) for each in (coder, plain)]
    assert connections[0] < 0.9 * connections[1], "the term itself is lowered"


def test_a_free_decoder_shrinks_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="monosema.training"):
        norms = [float(trained("free", coefficient).W_dec.detach().norm(dim=1).mean()) for coefficient in (None, 10.0)]
    assert norms[1] < 0.8 * norms[0]
    assert [record.getMessage()[:19] for record in caplog.records] == ["the decoder is free"]


@pytest.mark.parametrize("activation", [ms.TopK(k=2), ms.BatchTopK(k=2), ms.ReLU(), ms.JumpReLU(), ms.Gated()])
def test_auto_is_unit_norm_wherever_it_can_be(activation: Any) -> None:
    config = ms.TrainingConfig(sparse_connection=SparseConnection(path="an SAE"))
    assert has_unit_norm(transcoder(activation), config)
    assert not has_unit_norm(transcoder(activation, decoder_init="zeros"), config)
    assert has_unit_norm(transcoder(activation), ms.TrainingConfig()) == isinstance(activation, ms.Gated)
