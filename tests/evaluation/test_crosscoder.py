"""``evaluate_crosscoder``: on activations where it is known which model has what, and on two models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from evaluation_tiny import BOS, SITE, WIDTH, random_sae, tiny_decoder
from torch import Tensor

import monosema as ms
from monosema.coders import CLT, Crosscoder, ReLU, SparseCoder
from monosema.core.errors import ConfigError, DataError, FileError, ShapeError, UnknownNameError
from monosema.evaluation import CrosscoderReport, CrosscoderThresholds, evaluate_crosscoder
from monosema.metrics import BETWEEN, SHARED, fve
from monosema.models import LanguageModel

NAMES = (f"base:{SITE}", f"chat:{SITE}")


def known_coder() -> SparseCoder:
    """Five latents over two sites of width 4, each reading one coordinate.

    0 has a zero decoder at B though B has it at 0.8 (shrunk); 1 is A's alone; 2 and 3 are one direction, split between
    the sites (decoupled); 4 is shared.
    """
    coder = Crosscoder([4, 4], 5, activation=ReLU(), hook_names=("A", "B"), dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.zero_()
        coder.W_dec.zero_()
        for latent, column in enumerate((0, 1, 2, 6, 3)):
            coder.W_enc_rows[latent, column] = 1
            coder.W_dec[latent, column] = 1
        coder.W_dec[4, 7] = 1
    return coder


def known_rows(n: int = 50) -> Tensor:
    a = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    b = a * torch.tensor([0.8, 0.0, 0.6, 1.0])
    return torch.cat([a, b], dim=1)


def test_what_each_model_has_is_found():
    rows = known_rows()
    report = evaluate_crosscoder(known_coder(), activations=rows)
    latents = report.latents
    assert latents.decoder_share[:, 0].tolist() == [1, 1, 1, 0, 0.5]
    assert latents.site_class.tolist() == [0, 0, 0, 1, SHARED]
    assert latents.cosine[4, 0] == 1
    assert latents.reference.tolist()[:4] == [0, 0, 0, 1]
    beta_error = [[1, 0.8], [1, 0], [1, 0], [0, 1], [1, 1]]
    beta_reconstruction = [[1, 0], [1, 0], [1, 0.6], [1 / 0.6, 1], [1, 1]]
    torch.testing.assert_close(latents.beta_error, torch.tensor(beta_error, dtype=torch.float64))
    torch.testing.assert_close(latents.beta_reconstruction, torch.tensor(beta_reconstruction, dtype=torch.float64))
    torch.testing.assert_close(latents.nu_error, latents.beta_error)  # β is 1 at every reference
    assert latents.firing_density.tolist() == [1] * 5
    a, b = report.sites
    assert (a.n_exclusive, a.n_confirmed, a.n_shrunk, a.n_decoupled, a.n_unmeasured) == (3, 1, 1, 1, 0)
    assert (b.n_exclusive, b.n_confirmed, b.n_shrunk, b.n_decoupled, b.n_unmeasured) == (1, 0, 0, 1, 0)
    assert (report.n_shared, report.n_between, report.n_zero, report.mean_cosine_shared) == (1, 0, 0, 1)
    assert report.exclusive("A").tolist() == [0, 1, 2]
    assert report.exclusive("A", confirmed=True).tolist() == [1]
    assert a.fve == 1
    assert b.fve == pytest.approx(fve(rows[:, 4:], rows[:, 4:] * torch.tensor([0, 1, 1, 1])))
    assert a.mean_norm == pytest.approx(rows[:, :4].norm(dim=1).mean().item())


def test_thresholds_move_the_verdicts():
    cuts = CrosscoderThresholds(nu_error=0.9, nu_reconstruction=0.7)
    site = evaluate_crosscoder(known_coder(), activations=known_rows(), thresholds=cuts).sites[0]
    assert (site.n_confirmed, site.n_shrunk, site.n_decoupled) == (3, 0, 0)


def test_batches_do_not_matter_and_silent_latents_are_unmeasured():
    coder, rows = known_coder(), known_rows()
    rows[:, 1] = 0
    whole = evaluate_crosscoder(coder, activations=rows)
    parts = evaluate_crosscoder(coder, activations=list(rows.split(7)), batch_size=3)
    torch.testing.assert_close(parts.latents.beta_error, whole.latents.beta_error, equal_nan=True, rtol=1e-12, atol=0)
    assert whole.latents.nu_error[1].isnan().all()
    assert (whole.sites[0].n_confirmed, whole.sites[0].n_unmeasured) == (0, 1)
    assert evaluate_crosscoder(coder, activations=rows, n_tokens=20).n_tokens == 20


def test_a_given_reference_is_used_for_all_latents():
    coder = known_coder()
    with torch.no_grad():
        coder.W_dec[0, 4] = 0.01
    report = evaluate_crosscoder(coder, activations=known_rows(), reference="B")
    assert report.latents.reference.tolist() == [1] * 5
    assert report.latents.nu_error[0].tolist() == pytest.approx([1.25, 1])  # β is 100 at A, 80 at B
    assert report.latents.beta_error[1].isnan().all()  # latent 1 has no direction at B
    torch.testing.assert_close(report.latents.beta_error[3:], torch.tensor([[0.0, 1], [1, 1]], dtype=torch.float64))
    assert report.sites[0].n_unmeasured == 3
    assert evaluate_crosscoder(known_coder(), activations=known_rows(), reference=1).latents.reference.sum() == 5


def test_units_undo_the_size_of_a_site():
    coder, rows = known_coder(), known_rows()
    small = evaluate_crosscoder(coder, activations=rows)
    with torch.no_grad():
        coder.W_dec[:, 4:] *= 20
        coder.W_enc_rows[:, 4:] /= 20
    rows[:, 4:] *= 20
    large = evaluate_crosscoder(coder, activations=rows)
    assert large.latents.site_class.tolist() == [0, 0, 0, 1, 1]
    assert any("site_units='mean_norm'" in note for note in large.notes)
    undone = evaluate_crosscoder(coder, activations=rows, site_units=(1, 20))
    for name in ("decoder_share", "beta_error", "nu_error", "nu_reconstruction"):
        torch.testing.assert_close(getattr(undone.latents, name), getattr(small.latents, name))
    found = evaluate_crosscoder(coder, activations=rows, site_units="mean_norm")
    by_hand = evaluate_crosscoder(coder, activations=rows, site_units=[site.mean_norm for site in large.sites])
    torch.testing.assert_close(found.latents.nu_error, by_hand.latents.nu_error)
    assert [site.unit for site in found.sites] == pytest.approx([site.mean_norm for site in large.sites])
    assert found.latents.site_class.tolist() == [0, 0, 0, 1, SHARED]
    assert found.notes == ()


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    chat = tiny_decoder()
    with torch.no_grad():
        chat.hf.model.layers[0].mlp.down_proj.weight.mul_(-1.5)
    return {"base": tiny_decoder(), "chat": chat}


def two_models_coder() -> SparseCoder:
    coder = Crosscoder([WIDTH, WIDTH], 24, activation=ReLU(), hook_names=NAMES, dtype="float64")
    with torch.no_grad():
        coder.W_dec[:8, WIDTH:] *= 0.01
        coder.b_dec.normal_(generator=torch.Generator().manual_seed(3))
    return coder


def test_on_two_models_it_is_what_it_is_on_their_activations(
    models: dict[str, LanguageModel], contexts: Tensor, tmp_path: Path
):
    coder = two_models_coder()
    coder.is_trained = True
    report = evaluate_crosscoder(ms.load(ms.save(coder, tmp_path / "coder")), models, contexts, batch_size=4)
    rows = torch.cat([models[key].capture(contexts, [SITE])[SITE][contexts != BOS] for key in models], dim=1)
    same = evaluate_crosscoder(coder, activations=rows)
    for name in ("decoder_share", "beta_error", "beta_reconstruction", "nu_error", "firing_density"):
        torch.testing.assert_close(getattr(report.latents, name), getattr(same.latents, name), equal_nan=True)
    assert report.n_tokens == same.n_tokens == int((contexts != BOS).sum())
    assert report.n_special_positions == int((contexts == BOS).sum())
    assert report.sites[0].n_exclusive == 8
    f, x_hat = coder.encode(rows).detach(), coder(rows).detach()
    latent = int(f.sum(0)[:8].argmax())
    direction = coder.W_dec[latent, :WIDTH].detach()
    for site, columns in enumerate((slice(0, WIDTH), slice(WIDTH, None))):
        own = torch.outer(f[:, latent], coder.W_dec[latent, columns].detach())
        target = rows[:, columns] - x_hat[:, columns] + own
        beta = (f[:, latent] @ target @ direction) / (f[:, latent].square().sum() * direction.square().sum())
        assert report.latents.beta_error[latent, site].item() == pytest.approx(beta.item(), rel=1e-9)


def test_text_table_and_files(models: dict[str, LanguageModel], contexts: Tensor, tmp_path: Path):
    report = evaluate_crosscoder(two_models_coder(), models, contexts)
    for part in (*NAMES, "n_confirmed", "mean_cosine_shared"):
        assert part in str(report)
        assert part in report._repr_html_()
    json.dumps(report.to_dict(), allow_nan=False)
    path = report.save(tmp_path / "report.json")
    again = CrosscoderReport.load(path)
    assert again.to_dict() == report.to_dict()
    assert again.thresholds == report.thresholds
    assert again.sites == report.sites
    for name in ("nu_error", "site_class", "cosine"):
        assert torch.equal(getattr(again.latents, name).nan_to_num(), getattr(report.latents, name).nan_to_num())
    none_shared = evaluate_crosscoder(
        known_coder(), activations=known_rows(), site_units=(1, 3), thresholds=CrosscoderThresholds(shared_share=0.4)
    )
    assert none_shared.latents.site_class[4] == BETWEEN
    assert math.isnan(CrosscoderReport.load(none_shared.save(path)).mean_cosine_shared)
    (tmp_path / "report.safetensors").unlink()
    with pytest.raises(FileError, match=r"no report.safetensors in"):
        CrosscoderReport.load(path)
    path.write_text("{}")
    with pytest.raises(FileError, match="is not a crosscoder report"):
        CrosscoderReport.load(path)


def test_what_is_no_crosscoder_or_does_not_fit_is_refused(models: dict[str, LanguageModel], contexts: Tensor):
    rows, coder = known_rows(), known_coder()
    with pytest.raises(
        ConfigError, match=r"needs a crosscoder over at least two sites; this coder writes one .*: use e"
    ):
        evaluate_crosscoder(random_sae(), models["base"], contexts)
    with pytest.raises(ConfigError, match="a cross-layer transcoder has one set for each layer"):
        evaluate_crosscoder(CLT([4, 4], [4, 4], 8), activations=rows)
    with pytest.raises(ShapeError, match=r"sites are \[3, 5\] wide"):
        evaluate_crosscoder(Crosscoder([3, 5], 8, activation=ReLU()), activations=rows)
    with pytest.raises(ConfigError, match="give either model and tokens, or activations"):
        evaluate_crosscoder(coder)
    with pytest.raises(ConfigError, match="reference must be one of A, B, or its number from 0, got 'C'"):
        evaluate_crosscoder(coder, activations=rows, reference="C")
    with pytest.raises(ConfigError, match="site_units must be 'raw', 'mean_norm' or 2 positive numbers"):
        evaluate_crosscoder(coder, activations=rows, site_units=(1.0,))
    with pytest.raises(ConfigError, match="reads the activations twice"):
        evaluate_crosscoder(coder, activations=iter([rows]), site_units="mean_norm")
    with pytest.raises(DataError, match="mean norms are"):
        evaluate_crosscoder(coder, activations=torch.cat([rows[:, :4], 0 * rows[:, 4:]], 1), site_units="mean_norm")
    with pytest.raises(DataError, match="at least 2 tokens"):
        evaluate_crosscoder(coder, activations=rows[:1])
    with pytest.raises(DataError, match=r"activations read at .* must be finite"):
        evaluate_crosscoder(coder, activations=rows / 0)
    with pytest.raises(ConfigError, match="nu_error must be positive"):
        CrosscoderThresholds(nu_error=0)
    with pytest.raises(UnknownNameError, match="'C'"):
        evaluate_crosscoder(coder, activations=rows).exclusive("C")
