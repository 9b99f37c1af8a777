"""Weights brought in the usual ways arrive, or what cannot arrive is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monosema as ms
from monosema.core.errors import ShapeError

D, F = 4, 6


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def given(seed: int = 0, d_out: int = D) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, d_out), "b_dec": (d_out,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expected(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return (
        torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) @ weights["W_dec"] + weights["b_dec"]
    )


def by_data(sae: Any, W: Tensor) -> None:
    sae.W_enc.data = W


def by_name(sae: Any, W: Tensor) -> None:
    sae.W_enc = W


def by_parameter(sae: Any, W: Tensor) -> None:
    sae.W_enc = nn.Parameter(W)


def by_slice(sae: Any, W: Tensor) -> None:
    sae.W_enc[:] = W


def by_column(sae: Any, W: Tensor) -> None:
    for index in range(F):
        sae.W_enc[:, index] = W[:, index]


def by_copy(sae: Any, W: Tensor) -> None:
    sae.W_enc.copy_(W)


def by_data_copy(sae: Any, W: Tensor) -> None:
    sae.W_enc.data.copy_(W)


def by_data_slice(sae: Any, W: Tensor) -> None:
    sae.W_enc.data[:] = W


def by_detached(sae: Any, W: Tensor) -> None:
    sae.W_enc.detach().copy_(W)


def by_set_data_of_kept(sae: Any, W: Tensor) -> None:
    kept = sae.W_enc
    kept.data = W


WAYS = [by_data, by_name, by_parameter, by_slice, by_column, by_copy, by_data_copy, by_data_slice, by_detached]


@pytest.mark.parametrize("way", [*WAYS, by_set_data_of_kept], ids=lambda way: way.__name__)
def test_the_encoder_takes_what_is_assigned(way: Callable[[Any, Tensor], None]) -> None:
    sae, weights = ms.SAE(D, F, activation=ms.ReLU()), given()
    stored = sae.W_enc_rows
    for name in ("b_enc", "W_dec", "b_dec"):
        getattr(sae, name).data = weights[name]
    with torch.no_grad():
        way(sae, weights["W_enc"])
    assert sae.W_enc_rows is stored and stored.is_contiguous() and stored.requires_grad
    assert torch.equal(sae.W_enc, weights["W_enc"])
    x = normal(5, D)
    torch.testing.assert_close(sae(x), expected(weights, x))


@pytest.mark.parametrize("name", ["normal_", "kaiming_uniform_", "orthogonal_", "zeros_"])
def test_initialisers_of_torch_reach_the_encoder(name: str) -> None:
    own = {} if name == "zeros_" else {"generator": torch.Generator().manual_seed(0)}
    sae = ms.SAE(D, F, activation=ms.ReLU())
    before = sae.W_enc_rows.clone()
    with torch.no_grad():
        getattr(nn.init, name)(sae.W_enc, **own)
    assert not torch.equal(sae.W_enc_rows, before)
    assert torch.equal(sae.W_enc.T, sae.W_enc_rows)


def test_weights_of_another_layout_are_used_as_they_are() -> None:
    sae, weights = ms.SAE(D, F, activation=ms.ReLU()), given()
    sae.W_enc.data = weights["W_enc"].T.contiguous().T
    sae.W_dec.data = weights["W_dec"].T.contiguous().T
    sae.b_enc.data, sae.b_dec.data = weights["b_enc"], weights["b_dec"]
    x = normal(5, D)
    torch.testing.assert_close(sae(x), expected(weights, x))
    with torch.no_grad():
        torch.testing.assert_close(sae(x), expected(weights, x))


@pytest.mark.parametrize("wrong", [(F, D), (F,), (1, F), (D, 1), ()])
def test_another_shape_is_refused_and_nothing_changes(wrong: tuple[int, ...]) -> None:
    sae = ms.SAE(D, F, activation=ms.ReLU())
    before = sae.W_enc_rows.clone()
    with pytest.raises(ShapeError, match=r"W_enc: expected a tensor \[4, 6\]"):
        sae.W_enc.data = torch.zeros(wrong)
    with pytest.raises(ShapeError, match="W_enc"):
        sae.W_enc = torch.zeros(wrong)
    with pytest.raises(RuntimeError, match=r"W_enc: expected \[d_in, d_sae\] = \[4, 6\]"):
        sae.load_state_dict({**given(), "W_enc": torch.zeros(wrong)}, strict=False)
    assert torch.equal(sae.W_enc_rows, before)


def test_the_view_is_a_plain_tensor_for_everything_else() -> None:
    sae = ms.SAE(D, F, activation=ms.ReLU())
    x = normal(3, D)
    product = x @ sae.W_enc
    assert type(product) is type(sae.W_enc.T) is type(sae.W_enc.clone()) is torch.Tensor
    product.square().sum().backward()
    torch.testing.assert_close(sae.W_enc_rows.grad, (2 * x.T @ (x @ sae.W_enc_rows.T)).T.detach())
    assert sae.W_enc.data_ptr() == sae.W_enc_rows.data_ptr() == sae.W_enc.detach().data_ptr()
    assert isinstance(nn.Parameter(sae.W_enc), nn.Parameter)
    file = io.BytesIO()
    torch.save({"W_enc": sae.W_enc.detach()}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["W_enc"], sae.W_enc)
    copied = copy.deepcopy(sae.W_enc.detach())
    assert type(copied) is torch.Tensor and torch.equal(copied, sae.W_enc)
    assert "W_enc" not in sae.state_dict() and "W_enc" not in dict(sae.named_parameters())


def test_an_optimizer_of_the_coder_trains_what_was_brought_in() -> None:
    sae, weights = ms.SAE(D, F, activation=ms.ReLU()), given()
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
    sae.W_enc.data = weights["W_enc"]
    sae(normal(8, D)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(sae.W_enc, weights["W_enc"])
    assert torch.equal(sae.W_enc.T, sae.W_enc_rows)


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_under_the_fields_names_is_taken(strict: bool) -> None:
    sae, weights = ms.SAE(D, F, activation=ms.ReLU()), given()
    kept = dict(weights)
    sae.load_state_dict(weights, strict=strict)
    x = normal(5, D)
    torch.testing.assert_close(sae(x), expected(weights, x))
    assert weights.keys() == kept.keys(), "the mapping given stays as it is"
    assert sae.is_trained


def test_a_coder_inside_a_module_takes_them_too() -> None:
    module, weights = nn.ModuleDict({"sae": ms.SAE(D, F, activation=ms.ReLU())}), given()
    module.load_state_dict({f"sae.{name}": value for name, value in weights.items()})
    assert torch.equal(module["sae"].W_enc, weights["W_enc"])
    with pytest.raises(RuntimeError, match="unknown names encoder"):
        module.load_state_dict({"sae.encoder.weight": weights["W_enc"]}, strict=False)


@pytest.mark.parametrize(
    ("activation", "own"),
    [(ms.JumpReLU(), ("threshold",)), (ms.Gated(), ("r_mag", "b_gate", "b_mag"))],
    ids=["JumpReLU", "Gated"],
)
def test_parameters_of_activations_are_found_without_their_prefix(activation: Any, own: tuple[str, ...]) -> None:
    sae, weights = ms.SAE(D, F, activation=activation), given()
    if "b_gate" in own:
        del weights["b_enc"]
    weights |= {name: uniform(F) for name in own}
    sae.load_state_dict(weights)
    for name in own:
        assert torch.equal(getattr(sae.activation, name), weights[name])
        with pytest.raises(AttributeError, match=f"{name} is kept in coder.activation"):
            setattr(sae, name, torch.zeros(F))


@pytest.mark.parametrize("value", [torch.tensor(0.25), torch.full((F,), 0.25)])
def test_a_threshold_of_all_latents_is_set(value: Tensor) -> None:
    sae = ms.SAE(D, F, activation=ms.BatchTopK(k=2))
    sae.load_state_dict({**given(), "threshold": value})
    assert sae.activation.threshold == 0.25
    for wrong in (uniform(F), torch.tensor(-1.0), torch.tensor(float("nan"))):
        with pytest.raises(RuntimeError, match="threshold: expected one finite number"):
            sae.load_state_dict({**given(), "threshold": wrong})


@pytest.mark.parametrize("name", ["encoder.weight", "W_encoder", "W_skip", "threshold", "activation.b_gate"])
def test_a_name_the_coder_lacks_is_refused_even_when_not_strict(name: str) -> None:
    sae = ms.SAE(D, F, activation=ms.ReLU())
    with pytest.raises(RuntimeError, match=f"unknown names {name}; expected W_enc, W_dec"):
        sae.load_state_dict({**given(), name: torch.zeros(F)}, strict=False)


def test_weights_left_out_are_told_as_torch_tells_them() -> None:
    sae = ms.SAE(D, F, activation=ms.ReLU())
    assert sae.load_state_dict({"W_dec": given()["W_dec"]}, strict=False).missing_keys == [
        "W_enc_rows",
        "b_enc",
        "b_dec",
    ]
    with pytest.raises(RuntimeError, match="Missing key"):
        sae.load_state_dict({"W_dec": given()["W_dec"]})


def test_every_variant_takes_its_names() -> None:
    skip = ms.Transcoder(D, 3, F, activation=ms.ReLU(), skip=True)
    weights = given(d_out=3) | {"W_skip": normal(D, 3)}
    skip.load_state_dict(weights)
    assert torch.equal(skip.W_enc, weights["W_enc"]) and torch.equal(skip.W_skip, weights["W_skip"])


def test_a_stack_takes_them_for_each_layer_and_refuses_others() -> None:
    stack = ms.CLT([D, D], [D, D], F, activation=ms.ReLU())
    W_enc = normal(D, F)
    stack.layers[1].W_enc.data = W_enc
    assert torch.equal(stack.members[1].W_enc_rows.T, W_enc)
    stack.load_state_dict({"layers.0.W_enc": 2 * W_enc}, strict=False)
    assert torch.equal(stack.members[0].W_enc_rows.T, 2 * W_enc) and stack.is_trained
    for name, message in {
        "layers.0.encoder": "unknown names encoder",
        "layers.7.W_enc": "unknown layer 7; expected layers.0 to layers.1",
        "W_enc": "unknown names W_enc",
    }.items():
        with pytest.raises(RuntimeError, match=message):
            stack.load_state_dict({name: W_enc}, strict=False)
    with pytest.raises(AttributeError, match="a stack has no W_dec of its own"):
        stack.W_dec = W_enc


def test_compiled_code_reads_the_encoder() -> None:
    sae = ms.SAE(D, F, activation=ms.ReLU())
    x = normal(3, D)
    compiled = torch.compile(lambda x: x @ sae.W_enc, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x @ sae.W_enc)
