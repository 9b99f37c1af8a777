"""What an activation says of itself is all that the library needs: one of another package, from training to files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from squared_relu import SquaredReLU, registered, rows

import monosema as ms
from monosema import hub
from monosema.coders import CoderConfig, SparseCoder
from monosema.coders.activations.base import ChannelGradients
from monosema.coders.activations.family import ActivationConfig, Equivariance, SavedRule, register_activation
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.activations.registry import activation_kinds, activation_named, activation_of
from monosema.compat import saebench
from monosema.core.errors import ConfigError, FileError
from monosema.training import L0, L1, Trainer
from monosema.training.allowed import combinations, resolve_sparsity
from monosema.training.resolve import has_unit_norm

SITE = "blocks.1.hook_resid_post"
BUILT_IN = (ms.ReLU(), ms.TanhReLU(), ms.TopK(3), ms.AbsTopK(3), ms.BatchTopK(2.5), ms.JumpReLU(), ms.Gated())


@pytest.fixture(autouse=True)
def _squared_relu() -> Iterator[None]:
    with registered():
        yield


def trained(activation: ActivationConfig, **options: object) -> SparseCoder:
    coder = ms.SAE(8, 24, activation=activation, dtype="float64", seed=1)
    config = ms.TrainingConfig(tokens=320, lr=0.01, **{"sparsity": L1(coefficient=0.05), **options})
    trainer = Trainer(coder, config, 32)
    x = rows(320)
    trainer.initialise(x[:64])
    for batch in x.split(32):
        trainer.step(batch)
    trainer.check_finite()
    return trainer.inference_coder()


def test_it_is_known_by_its_name() -> None:
    assert activation_kinds()["SquaredReLU"] is SquaredReLU
    assert activation_named("squared_relu", most=4) == SquaredReLU()
    assert ms.SAE(8, 24, activation="SquaredReLU").config.activation == SquaredReLU()


def test_what_it_declares_is_used() -> None:
    coder = ms.SAE(8, 24, activation=SquaredReLU(slope=2.0))
    assert coder.config.decoder_init_norm == 0.5
    assert torch.allclose(coder.W_dec.norm(dim=1), torch.full((24,), 0.5))
    assert resolve_sparsity(coder.config.activation, None) == L1(target_l0=6.0)
    assert not has_unit_norm(coder, ms.TrainingConfig(tokens=64))
    with pytest.raises(ConfigError, match="decoder='unit_norm' cannot be used with SquaredReLU"):
        has_unit_norm(coder, ms.TrainingConfig(tokens=64, decoder="unit_norm"))
    assert any(each.activation == "SquaredReLU" and each.refusal is None for each in combinations())


def test_its_gradients_are_those_of_autograd() -> None:
    coder, x = ms.SAE(8, 24, activation=SquaredReLU(slope=2.0), dtype="float64", seed=1), rows(16)
    pre = coder.pre_activations(x).requires_grad_()
    dense = coder.activation.infer_dense(pre)
    selection = coder.activation.select(pre.detach())
    assert torch.allclose(selection.latents.to_dense(), dense.detach())
    (expected,) = torch.autograd.grad(dense.square().sum() / 2, pre)
    (found,) = coder.activation.backward(selection, ChannelGradients(selection.latents.values)).pre
    assert torch.allclose(found.to_dense(), expected)


@pytest.mark.parametrize("revive", [None, ms.AuxK(dead_after_tokens=32, k=3), ms.PreActivationLoss(coefficient=0.01)])
def test_it_trains(revive: object) -> None:
    x = rows(320)
    before = ms.SAE(8, 24, activation=SquaredReLU(), dtype="float64", seed=1)
    after = trained(SquaredReLU(), revive=revive)
    assert (after(x) - x).square().sum() < 0.8 * (before(x) - x).square().sum()


def test_it_is_saved_in_our_layout_and_loaded_and_evaluated(tmp_path: Path) -> None:
    coder = trained(SquaredReLU(slope=2.0))
    hub.save(coder, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "cfg.json").read_text())["architecture"] == "monosema"
    loaded = ms.load(tmp_path / "saved")
    assert loaded.config == coder.config and loaded.config.activation == SquaredReLU(slope=2.0)
    x = rows(64)
    assert torch.equal(loaded(x), coder(x))
    report = ms.evaluate(loaded, activations=x, progress=False)
    assert report.fve == pytest.approx(float(1 - (coder(x) - x).square().sum() / (x - x.mean(0)).square().sum()))


def test_it_is_refused_in_the_layout_of_saelens(tmp_path: Path) -> None:
    coder = ms.SAE(8, 24, activation=SquaredReLU())
    with pytest.raises(ConfigError, match="it has no architecture of an SAE for the activation SquaredReLU, which"):
        hub.save(coder, tmp_path / "saved", format="saelens")
    assert not (tmp_path / "saved").exists()


def test_a_file_is_refused_while_it_is_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.save(ms.SAE(8, 24, activation=SquaredReLU()), tmp_path / "saved")
    kinds = {name: kind for name, kind in activation_kinds().items() if name != "SquaredReLU"}
    monkeypatch.setattr(ActivationConfig, "_kinds", kinds)
    with pytest.raises(FileError, match="got kind 'SquaredReLU'"):
        ms.load(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"Gated \(or another ActivationConfig that is registered\), got SquaredReLU"):
        CoderConfig(d_in=8, d_sae=24, d_out=8, activation=SquaredReLU())


def test_saebench_groups_it_by_its_name() -> None:
    coder = ms.SAE(8, 24, activation=SquaredReLU())
    coder.bind(SITE, SITE, {})
    assert saebench.adapter(coder, model_name="gpt2").cfg.architecture == "SquaredReLU"


def test_what_cannot_be_registered_is_refused() -> None:
    class Plain(ActivationConfig):
        def build(self, d_sae: int) -> None: ...

        def scale_equivariance(self) -> Equivariance:
            return "none"

    with pytest.raises(ConfigError, match="Plain cannot be registered: expected a subclass of ActivationConfig that"):
        register_activation(Plain)
    same_name = dataclass(frozen=True)(type("Topk", (Plain,), {"__module__": __name__}))
    with pytest.raises(ConfigError, match=r"Topk cannot be registered: TopK of monosema\.coders\.activations"):
        register_activation(same_name)
    register_activation(SquaredReLU)  # the same class again is no other
    again = dataclass(frozen=True)(type("SquaredReLU", (Plain,), {"__module__": SquaredReLU.__module__}))
    register_activation(again)  # its module was run again
    assert activation_kinds()["SquaredReLU"] is again


@pytest.mark.parametrize("config", BUILT_IN, ids=lambda config: type(config).__name__)
def test_a_rule_gives_the_activation_that_infers_by_it(config: ActivationConfig) -> None:
    own = config.build(24)
    if isinstance(own, FixedCountActivation):
        own.set_threshold(0.25)
    rule = own.saved_rule(torch.float32)
    assert rule is not None
    assert activation_of(rule, config) == config
    plain = activation_of(rule, None)
    expected = ms.JumpReLU() if isinstance(config, ms.BatchTopK) else config
    assert plain == expected
    other = ms.TopK(3) if isinstance(config, ms.Gated) else ms.Gated()
    assert activation_of(rule, other) == plain  # what a file says it was trained with infers otherwise


def test_a_rule_of_no_activation_is_refused() -> None:
    with pytest.raises(FileError, match=r"rule 'softplus', by which no activation infers .*Gated, SquaredReLU\)"):
        activation_of(SavedRule(name="softplus"), None)
    with pytest.raises(FileError, match="a topk dictionary must state k as a whole number, got None"):
        activation_of(SavedRule(name="topk"), None)


@torch.no_grad()
@pytest.mark.parametrize("config", BUILT_IN, ids=lambda config: type(config).__name__)
def test_scale_equivariance_is_what_the_module_does(config: ActivationConfig) -> None:
    pre = torch.randn(6, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    factors = {"none": torch.ones(24), "common": torch.full((24,), 3.0), "each": torch.linspace(0.5, 2, 24)}
    c = factors[config.scale_equivariance()].double()
    own = config.build(24).double()
    before = own.infer(pre, weights).to_dense()
    own.scale_latents_(c)
    assert torch.allclose(own.infer(c * pre, weights / c).to_dense(), c * before)
    if config.scale_equivariance() == "none":
        with pytest.raises(ConfigError, match="cannot be folded"):
            own.scale_latents_(factors["common"].double())


@pytest.mark.parametrize("config", [ms.TopK(3), ms.AbsTopK(3), ms.BatchTopK(3, inference="topk")])
def test_a_schedule_sets_k_and_gives_it_back(config: ActivationConfig) -> None:
    pre = torch.rand(4, 24, generator=torch.Generator().manual_seed(0)) + 0.1
    own = config.build(24)
    assert isinstance(own, FixedCountActivation)
    counts = []
    for k in (None, 7.0, None):
        own.use_k_(k)
        own.candidates(pre)  # looks at more, and leaves k as it is
        counts.append((own.k, own.select(pre).latents.nnz))
    assert counts == [(3, 12), (7.0, 28), (3, 12)]
    with pytest.raises(AttributeError):
        own.k = 5
    with pytest.raises(ConfigError, match=r"ReLUActivation selects no fixed number of latents, so its k cannot be 7"):
        ms.ReLU().build(24).use_k_(7.0)
    ms.ReLU().build(24).use_k_(None)


def test_a_loss_on_counts_is_refused_for_what_fixes_them() -> None:
    for config in BUILT_IN:
        name = type(config).__name__
        refused = {each.sparsity for each in combinations() if each.activation == name and each.refusal is not None}
        fixes = name in ("TopK", "AbsTopK", "BatchTopK")
        assert {"L0", "QuadraticL0", "RatioL0"} <= refused if fixes else "L0" not in refused
    assert resolve_sparsity(ms.JumpReLU(), None) == L0(target_l0=32)
