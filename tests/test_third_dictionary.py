"""A dictionary of another package: every room takes it through the interface alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn

import monosema as ms
from monosema.coders import Dictionary, Latents
from monosema.coders.dictionary import LatentNumbers, rows_of, whole_part
from monosema.coders.parts import Part
from monosema.coders.sites import SiteRef
from monosema.core.errors import CapabilityError
from monosema.evaluation.benchmarks.meta import decoder_directions
from monosema.kernels.latents import latents_from_pairs
from monosema.training import Trainer

SITE = "blocks.1.hook_resid_post"


@dataclass(frozen=True)
class TwoLayerConfig:
    width: int
    d_sae: int


@final
class TwoLayer(Dictionary):
    """``f = ReLU(W_2 ReLU(W_1 x))``: latents without encoder rows. ``ŷ = f W_dec + b``."""

    has_encoder_rows = False
    read_widths = write_widths = (0,)
    token_scaling, has_skip, n_active, d_sae = "none", False, None, 0
    hook_name = hook_name_out = None

    def __init__(self, config: TwoLayerConfig) -> None:
        super().__init__()
        self.config = config
        self.read_widths = self.write_widths = (config.width,)
        self.d_sae = config.d_sae
        generator = torch.Generator().manual_seed(0)
        shapes = {"W_1": (config.width, 8), "W_2": (8, config.d_sae), "W_dec": (config.d_sae, config.width)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator) / shape[0] ** 0.5))
        self.b = nn.Parameter(torch.randn(config.width, generator=generator))

    @property
    def variant(self) -> str:
        return "two-layer dictionary"

    @property
    def architecture(self) -> str:
        return "ReLU two-layer dictionary"

    @property
    def parts(self) -> tuple[Part[TwoLayer], ...]:
        return whole_part(self)

    @property
    def dtype(self) -> torch.dtype:
        return self.b.dtype

    @property
    def device(self) -> torch.device:
        return self.b.device

    def bind(self, hook_name: str, hook_name_out: str, metadata: Mapping[str, Any]) -> None:
        self.hook_name, self.hook_name_out = hook_name, hook_name_out
        self.metadata.update(metadata)

    def encode(self, x: Tensor) -> Tensor:
        return ((x @ self.W_1).relu() @ self.W_2).relu()

    def encode_sparse(self, x: Tensor) -> Latents:
        dense = self.encode(x.reshape(-1, self.d_in))
        tokens, indices = dense.nonzero(as_tuple=True)
        return latents_from_pairs(tokens, indices, dense[tokens, indices], len(dense), self.d_sae)

    def decode(self, latents: Latents | Tensor, x: Tensor | None = None) -> Tensor:
        dense = latents.to_dense() if isinstance(latents, Latents) else latents
        return dense @ self.W_dec + self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def encoder_rows(self, latents: LatentNumbers) -> Tensor:
        raise CapabilityError("a two-layer dictionary has no encoder rows")

    def encoder_biases(self, latents: LatentNumbers) -> Tensor | None:
        return None

    def decoder_rows(self, latents: LatentNumbers, site: SiteRef | int | None = None) -> Tensor:
        return rows_of(self.W_dec, latents)


@pytest.fixture(scope="module")
def model() -> ms.LanguageModel:
    return ms.load_model("builtin", device="cpu")


@pytest.fixture(scope="module")
def tokens(model: ms.LanguageModel) -> Tensor:
    return torch.randint(5, 4000, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def toy(model: ms.LanguageModel) -> TwoLayer:
    coder = TwoLayer(TwoLayerConfig(model.site(SITE).width, 24))
    coder.bind(SITE, SITE, {})
    return coder.requires_grad_(False)


def test_it_is_evaluated_with_and_without_a_model(toy: TwoLayer, model: ms.LanguageModel, tokens: Tensor):
    report = ms.evaluate(toy, model, tokens, progress=False)
    rows = model.capture(tokens, SITE)[SITE].flatten(0, 1)
    x_hat = toy(rows)
    fve = 1 - (rows - x_hat).square().sum() / (rows - rows.mean(0)).square().sum()
    assert report.n_tokens == len(rows) == 4 * 32
    assert report.fve == pytest.approx(float(fve), rel=1e-4)
    assert report.l0 == pytest.approx(float((toy.encode(rows) > 0).sum(1).double().mean()))
    assert report.ce_clean is not None and report.ce_spliced not in (None, report.ce_clean)
    assert report.latents is not None and bool(report.latents.encoder_norm.isnan().all())
    torch.testing.assert_close(report.latents.decoder_norm, toy.W_dec.double().norm(dim=1))
    alone = ms.evaluate(toy, activations=rows)
    assert alone.fve == pytest.approx(report.fve, rel=1e-6)


def test_it_takes_its_sites_place(toy: TwoLayer, model: ms.LanguageModel, tokens: Tensor):
    later = "blocks.2.hook_resid_pre"
    rows = model.capture(tokens, SITE)[SITE]
    with model.edits({SITE: toy}):
        seen = model.capture(tokens, later)[later]
    torch.testing.assert_close(seen, toy(rows))
    report = ms.evaluate_replacement(toy, model, tokens, progress=False)
    assert report.layers[0].d_sae == 24 and report.layers[0].hook_name == SITE


def test_its_features_are_collected(toy: TwoLayer, model: ms.LanguageModel, tokens: Tensor):
    features = ms.collect_features(toy, model, tokens, n_tokens=None, progress=False)
    dense = toy.encode(model.capture(tokens, SITE)[SITE]).flatten(0, 1)
    assert features.d_sae == 24 and features.provenance.architecture == "ReLU two-layer dictionary"
    latent = int(dense.max(0).values.argmax())
    assert features[latent].maximum == pytest.approx(float(dense[:, latent].max()), rel=1e-5)
    assert features[latent].top_logits, "its decoder rows are directions of the residual stream"
    read = ms.read_prompt(model, toy, tokens[0])
    assert read.layers == () and len(read.tokens) == 32


def test_its_decoder_directions_are_read(toy: TwoLayer):
    rows, latents = decoder_directions(toy)
    torch.testing.assert_close(rows, toy.W_dec / toy.W_dec.norm(dim=1, keepdim=True))
    assert latents.tolist() == list(range(24))


def test_training_and_saving_it_are_refused_and_change_nothing(toy: TwoLayer, tmp_path: Path):
    toy.hook_name = toy.hook_name_out = None
    config = ms.TrainingConfig(tokens=64)
    with pytest.raises(CapabilityError, match=r"two-layer dictionary: it cannot be trained .* ms.SAE"):
        Trainer(toy, config, 32)
    with pytest.raises(CapabilityError, match="cannot be trained"):
        ms.train(toy, torch.randn(64, toy.d_in), config, out=tmp_path / "run", batch_size=32, progress=False)
    assert toy.hook_name is None and not (tmp_path / "run").exists()
    with pytest.raises(CapabilityError, match="cannot be saved"):
        ms.save(toy, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_a_class_must_define_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Dictionary()  # type: ignore[abstract]
