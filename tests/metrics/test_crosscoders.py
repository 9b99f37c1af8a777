"""Shares, cosines, classes and latent scaling against numbers worked out by hand and least squares."""

from __future__ import annotations

import pytest
import torch

from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.kernels import latents_from_dense
from monosema.metrics import (
    BETWEEN,
    NOWHERE,
    SHARED,
    LatentScalingSums,
    decoder_shares,
    site_classes,
    site_cosines,
)

DECODER = torch.tensor(
    [
        [3.0, 4.0, 0.0, 0.0],  # A only
        [0.0, 0.1, 0.0, 1.9],  # B only: shares 0.05, 0.95
        [3.0, 4.0, -4.0, 3.0],  # shared, orthogonal
        [1.0, 0.0, 0.25, 0.0],  # between: shares 0.8, 0.2; parallel
        [0.0, 0.0, 0.0, 0.0],
    ]
)


def test_shares_cosines_and_classes_of_two_sites():
    shares = decoder_shares(DECODER, (2, 2))
    expected = torch.tensor([[1, 0], [0.05, 0.95], [0.5, 0.5], [0.8, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(shares[:4], expected, rtol=1e-6, atol=1e-7)
    assert shares.dtype == torch.float64
    assert shares[4].isnan().all()
    assert site_cosines(DECODER, (2, 2)).squeeze(1).tolist() == pytest.approx([0, 1, 0, 1, 0], abs=1e-12)
    assert site_classes(shares).tolist() == [0, 1, SHARED, BETWEEN, NOWHERE]
    assert site_classes(shares, exclusive=0.7).tolist() == [0, 1, SHARED, 0, NOWHERE]
    assert site_classes(shares, shared=0.2 - 1e-9).tolist()[3] == SHARED


def test_units_divide_a_sites_norms():
    shares = decoder_shares(DECODER, (2, 2), (1.0, 0.25))
    assert shares[3].tolist() == pytest.approx([0.5, 0.5])
    assert shares[2].tolist() == pytest.approx([0.2, 0.8])


def test_three_sites():
    decoder = torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.01, 0.0], [1.0, 1.0, 0.3]])
    shares = decoder_shares(decoder, (1, 1, 1))
    assert site_classes(shares).tolist() == [SHARED, 0, BETWEEN]  # shared needs 0.2 of each
    assert site_cosines(decoder, (1, 1, 1))[0].tolist() == [-1, 1, -1]


def test_latent_scaling_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(40, 5, generator=generator, dtype=torch.float64).relu()
    f[:, 4] = 0
    decoder = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    x, x_hat = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    directions = torch.where(torch.tensor([0, 1, 1, 0, 0])[:, None] == 0, decoder[:, :3], decoder[:, 3:])
    error = x - x_hat

    def sums(rows: slice) -> LatentScalingSums:
        latents = latents_from_dense(f[rows])
        products = [
            torch.stack([(y[rows][latents.rows()] * directions[latents.indices]).sum(1) for y in each.split(3, 1)], 1)
            for each in (error, x_hat)
        ]
        return LatentScalingSums.of(latents, *products)

    total = LatentScalingSums.empty(5, 2) + sums(slice(0, 13)) + sums(slice(13, 40))
    scaling = total.scaling(decoder, (3, 3), directions)
    for latent in range(4):
        for site in range(2):
            columns = slice(3 * site, 3 * site + 3)
            predictor = torch.outer(f[:, latent], directions[latent]).reshape(-1, 1)
            own = torch.outer(f[:, latent], decoder[latent, columns])
            for target, beta in ((error[:, columns] + own, scaling.error), (x_hat[:, columns], scaling.reconstruction)):
                solved = torch.linalg.lstsq(predictor, target.reshape(-1, 1)).solution.item()
                assert beta[latent, site].item() == pytest.approx(solved, rel=1e-10)
    assert scaling.error[4].isnan().all()
    reference = torch.tensor([0, 1, 1, 0, 0])
    nu = scaling.nu_error(reference)
    assert nu[1].tolist() == pytest.approx([(scaling.error[1, 0] / scaling.error[1, 1]).item(), 1.0])
    negative = LatentScalingSums(total.squared, total.error - 1e3, total.reconstruction)
    assert negative.scaling(decoder, (3, 3), directions).nu_error(reference)[:4].isnan().all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match=r"at least two sites whose widths add up to D, got \[5, 4\] and widths \[4\]"):
        decoder_shares(DECODER, (4,))
    with pytest.raises(ShapeError, match=r"sites of one width only, got widths \[1, 3\]"):
        site_cosines(DECODER, (1, 3))
    assert decoder_shares(DECODER, (1, 3)).shape == (5, 2)
    with pytest.raises(ConfigError, match=r"1 - exclusive <= 2 shared \(1 - 1/S\), got exclusive=0.6, shared=0.3"):
        site_classes(decoder_shares(DECODER, (2, 2)), exclusive=0.6)
    with pytest.raises(DataError, match="W_dec must be finite"):
        decoder_shares(DECODER / 0, (2, 2))
    latents = latents_from_dense(torch.ones(1, 2))
    with pytest.raises(DataError, match="products with the error must be finite"):
        LatentScalingSums.of(latents, torch.full((2, 2), torch.inf), torch.zeros(2, 2))
