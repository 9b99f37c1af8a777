"""Steps in low precision and compiled: gradients agree with float32's, chosen values are float32's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training_tiny import ACTIVATIONS, SPARSITY, batches

from monosema.coders import SAE, BatchTopK, Transcoder, encoder_product
from monosema.core.errors import ConfigError
from monosema.kernels import (
    decode,
    latents_from_dense,
    sampled_products,
    to_columns,
    weight_gradient,
)
from monosema.kernels.precision import product
from monosema.training import AuxK, Trainer, TrainingConfig

WIDTH, LATENTS, ROWS = 32, 128, 96
LOW = ("bfloat16", "float16")
TOLERANCE = {"bfloat16": 2e-2, "float16": 2e-3}


def distance(a: Tensor, b: Tensor) -> float:
    """``‖a - b‖ / ‖b‖``."""
    return float((a - b).norm() / b.norm())


def autocast(name: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=getattr(torch, name))


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("share", [0.02, 0.5], ids=["sparse", "dense"])
def test_every_product_runs_in_low_precision_and_returns_float32(name: str, share: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    latents = latents_from_dense(random(ROWS, LATENTS).abs() * (torch.rand(ROWS, LATENTS, generator=generator) < share))
    weight, left, g = random(LATENTS, WIDTH), random(ROWS, WIDTH) * 1e-9, random(latents.nnz) * 1e-9
    products = {
        "decode": lambda: decode(latents, weight),
        "sampled": lambda: sampled_products(latents, left, weight),
        "gradient": lambda: weight_gradient(to_columns(latents), g, left * 1e9),
        "product": lambda: product(left, weight.T),
    }
    for which, compute in products.items():
        exact = compute()
        with autocast(name):
            low = compute()
        assert low.dtype == torch.float32, which
        # gradients of 1e-9 would be zero in float16 as they are
        assert 0 < distance(low, exact) < TOLERANCE[name] / 2, which


def first_gradients(trainer: Trainer, rows: Tensor) -> dict[str, Tensor]:
    """Adam's first moments after one step are 0.1 times the gradients."""
    trainer.step(rows)
    trainer.check_finite()
    state = trainer.state_dict()[0]
    return {key: 10 * value for key, value in state.items() if key.startswith("adam.") and key.endswith("exp_avg")}


def make(activation: str, changes: dict[str, object], transcoder: bool = False) -> Trainer:
    options = {"sparsity": SPARSITY[activation], "revive": None, "lr": 0.01, "input_scaling": "none", **changes}
    own = {"activation": ACTIVATIONS[activation], "seed": 1}
    coder = Transcoder(WIDTH, WIDTH, LATENTS, skip=True, **own) if transcoder else SAE(WIDTH, LATENTS, **own)
    return Trainer(coder, TrainingConfig(tokens=20 * ROWS, **options), ROWS)


@pytest.mark.parametrize("transcoder", [False, True], ids=["sae", "skip transcoder"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", LOW)
def test_gradients_of_one_step_agree_with_float32(name: str, activation: str, transcoder: bool) -> None:
    rows = batches(1, width=2 * WIDTH if transcoder else WIDTH, rows=ROWS, dtype=torch.float32)[0]
    exact = first_gradients(make(activation, {}, transcoder), rows)
    low = first_gradients(make(activation, {"autocast": name}, transcoder), rows)
    assert exact.keys() == low.keys()
    changed = 0
    for key, value in exact.items():
        assert low[key].dtype == torch.float32
        if float(value.norm()) > 0:
            assert distance(low[key], value) < TOLERANCE[name], key
            changed += not torch.equal(low[key], value)
    assert changed > 0, "nothing ran in low precision"


@pytest.mark.parametrize("name", LOW)
def test_dead_latents_gradients_agree_too(name: str) -> None:
    rows = batches(1, width=WIDTH, rows=ROWS, dtype=torch.float32)[0]
    found = []
    for changes in ({}, {"autocast": name}):
        trainer = make("BatchTopK", {**changes, "revive": AuxK(k=8)})
        trainer.statistics.tokens_since_fired[: LATENTS // 2] = 10**9
        found.append(first_gradients(trainer, rows))
    for key, value in found[0].items():
        assert distance(found[1][key], value) < 2e-2, key


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_chosen_has_the_values_that_the_saved_weights_give(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = []
    product_in = encoder_product.product_in
    monkeypatch.setattr(encoder_product, "product_in", lambda *args: dtypes.append(args[2]) or product_in(*args))
    coder = make(activation, {}).coder
    rows = batches(1, width=WIDTH, rows=ROWS, dtype=torch.float32)[0]
    noise = 0.01 * torch.randn(ROWS, LATENTS, generator=torch.Generator().manual_seed(3))
    exact = coder.encode_select(rows, noise_BF=noise)
    with autocast("bfloat16"):
        low = coder.encode_select(rows, noise_BF=noise)
    assert dtypes == [torch.bfloat16]
    a, b = low.latents.to_dense(), exact.latents.to_dense()
    both = (a != 0) & (b != 0)
    assert int(both.sum()) > 0.98 * max(low.latents.nnz, exact.latents.nnz)
    torch.testing.assert_close(a[both], b[both], rtol=1e-5, atol=1e-5)


def test_a_run_in_low_precision_ends_where_one_in_float32_does() -> None:
    data = batches(120, width=WIDTH, rows=ROWS, dtype=torch.float32)
    ends = []
    for name in (None, *LOW):
        coder = SAE(WIDTH, LATENTS, activation=BatchTopK(k=8), seed=1)
        trainer = Trainer(coder, TrainingConfig(tokens=len(data) * ROWS, lr=0.01, autocast=name), ROWS)
        trainer.initialise(torch.cat(data[:10]))
        for batch in data:
            trainer.step(batch)
        assert {value.dtype for value in trainer.coder.parameters()} == {torch.float32}
        ends.append(trainer.metrics()["fve"])
    assert ends[0] > 0.3
    assert ends[1:] == pytest.approx([ends[0]] * 2, abs=0.02)


def test_autocast_is_for_float32_weights_and_known_types() -> None:
    coder = SAE(WIDTH, LATENTS, dtype="float64")
    with pytest.raises(ConfigError, match=r"weights are float64: make it with dtype='float32'"):
        Trainer(coder, TrainingConfig(autocast="bfloat16"), ROWS)
    with pytest.raises(ConfigError, match="CUDA graphs need shapes that do not depend"):
        TrainingConfig(compile="reduce-overhead")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", [None, "bfloat16"])
def test_a_compiled_product_gives_the_eager_step(name: str | None) -> None:
    torch.compiler.reset()
    rows = batches(1, width=WIDTH, rows=ROWS, dtype=torch.float32)[0]
    eager, compiled = (make("TopK", {"autocast": name, "compile": mode}) for mode in (None, "default"))
    expected, found = first_gradients(eager, rows), first_gradients(compiled, rows)
    for key, value in expected.items():
        assert distance(found[key], value) < 1e-5, key
    compiled.step(rows[: ROWS // 2])  # another size is compiled anew
    assert compiled.inference_coder()(rows).shape == rows.shape
