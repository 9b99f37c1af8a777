"""Per-token scaling by hand, through every way in and out of a coder, and what it is refused with."""

from __future__ import annotations

import math

import pytest
import torch
from coder_cases import ACTIVATIONS, CODERS, D_IN, D_SAE, dense_forward, make, randn
from torch import Tensor

from monosema.coders import CLT, SAE, CoderConfig, Crosscoder, ExtraEntries, ReLU, SparseCoder, TopK, Transcoder
from monosema.coders.config import TokenScaling
from monosema.coders.token_scaling import scale_tokens
from monosema.core.errors import ConfigError, ShapeError
from monosema.kernels import Latents, prefix_levels

KINDS: list[TokenScaling] = ["constant_norm", "layer_norm"]
SCALABLE = [name for name in CODERS if "skip" not in name and "causal" not in name]

both_kinds = pytest.mark.parametrize("kind", KINDS)


def scaled_by_hand(x: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """u, spread and shift of one site, from torch's own mean and standard deviation."""
    d = x.shape[-1]
    if kind == "constant_norm":
        spread = (x * x).sum(-1, keepdim=True).sqrt() / math.sqrt(d)
        return x / spread, spread, torch.zeros_like(spread)
    mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, unbiased=True)
    return (x - mean) / (deviation + 1e-5), deviation, mean


def made(activation: str, coder: str, kind: TokenScaling, **options: object) -> tuple[SparseCoder, SparseCoder]:
    """A coder with token scaling, and the same weights without."""
    scaled, plain = make(activation, coder, **options), make(activation, coder, **options)
    scaled.set_token_scaling(kind)
    return scaled, plain


def expected_scaling(coder: SparseCoder, x: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """u of the coder's input; spread and shift of its output: one and zero where that is another site."""
    sites = [scaled_by_hand(part, kind) for part in x.split(coder.config.read_widths, -1)]
    u = torch.cat([site[0] for site in sites], -1)
    if coder.d_in != coder.d_out:
        return u, torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :1])
    spread, shift = (torch.cat([site[i].expand_as(site[0]) for site in sites], -1) for i in (1, 2))
    return u, spread, shift


def test_two_tokens_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    tokens = scale_tokens(x, "constant_norm", (4,))
    assert tokens.u.tolist() == [[3 / 5 * 2, 4 / 5 * 2, 0, 0], [0, 0, 0, 0]]  # norm √4
    assert tokens.spread.tolist() == [[2.5], [0]]
    assert tokens.undo(torch.ones(2, 4, dtype=torch.float64)).tolist() == [[2.5] * 4, [0] * 4]
    tokens = scale_tokens(torch.tensor([[1.0, 2.0, 3.0, 6.0], [7.0, 7.0, 7.0, 7.0]]).double(), "layer_norm", (4,))
    sigma = math.sqrt((4 + 1 + 0 + 9) / 3)  # unbiased
    torch.testing.assert_close(tokens.u[0], torch.tensor([-2.0, -1, 0, 3]).double() / (sigma + 1e-5))
    assert tokens.u[1].tolist() == [0] * 4
    torch.testing.assert_close(tokens.undo(torch.full((2, 4), 2.0).double())[0, 0].item(), 2 * sigma + 3)
    assert tokens.undo(torch.full((2, 4), 2.0).double())[1].tolist() == [7] * 4


def test_an_sae_by_hand() -> None:
    """d 2, one latent that reads and writes the first dimension: ReLU(u_0 - b_0 + 0.5) and b_dec (0.5, 1)."""
    coder = SAE(2, 1, activation=ReLU(), token_scaling="constant_norm", dtype="float64")
    with torch.no_grad():
        coder.W_enc_rows.copy_(torch.tensor([[1.0, 0.0]]))
        coder.W_dec.copy_(torch.tensor([[2.0, 0.0]]))
        coder.b_enc.fill_(0.5)
        coder.b_dec.copy_(torch.tensor([0.5, 1.0]))
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    f = 3 / 5 * math.sqrt(2)  # √2 · 0.6 - 0.5 + 0.5
    torch.testing.assert_close(coder.encode(x).item(), f)
    expected = torch.tensor([[(2 * f + 0.5), 1.0]], dtype=torch.float64) * 5 / math.sqrt(2)
    torch.testing.assert_close(coder(x).detach(), expected)
    torch.testing.assert_close(coder.encode(10 * x), coder.encode(x))
    torch.testing.assert_close(coder(10 * x), 10 * coder(x))


@both_kinds
@pytest.mark.parametrize("coder", SCALABLE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_way_in_and_out_is_the_unscaled_coder_on_scaled_tokens(
    activation: str, coder: str, kind: TokenScaling
) -> None:
    scaled, plain = made(activation, coder, kind)
    x = randn(3, 7, scaled.d_in, seed=7) * 5 + 2
    u, spread, shift = expected_scaling(scaled, x, kind)
    f, out = plain.encode(u), plain(u) * spread + shift
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(scaled.scale_tokens(x), u, **close)
    torch.testing.assert_close(scaled.pre_activations(x), plain.pre_activations(u), **close)
    torch.testing.assert_close(scaled.pre_activations(u, scaled=True), plain.pre_activations(u), rtol=0, atol=0)
    torch.testing.assert_close(scaled.encode(x), f, **close)
    latents = scaled.encode_sparse(x)
    torch.testing.assert_close(latents.to_dense(), f, **close)
    outputs = [scaled(x), torch.no_grad()(scaled)(x), scaled.decode(latents, x), scaled.decode(scaled.encode(x), x)]
    for each in outputs:
        torch.testing.assert_close(each, out, **close)
    flat, flat_u = x.flatten(0, 1), u.flatten(0, 1)
    expected = plain.encode_select(flat_u)
    chosen = scaled.encode_select(flat)
    torch.testing.assert_close(chosen.latents.to_dense(), expected.latents.to_dense(), **close)
    inner = scaled.encode_select(flat_u, scaled=True)
    assert torch.equal(inner.latents.values, expected.latents.values)
    levels = prefix_levels(chosen.latents, (D_SAE // 2, D_SAE))
    nested = plain.decode_levels(prefix_levels(expected.latents, (D_SAE // 2, D_SAE)), flat_u)
    of_token = [each.flatten(0, 1).unsqueeze(1) for each in (spread, shift)]
    torch.testing.assert_close(scaled.decode_levels(levels, flat), nested * of_token[0] + of_token[1], **close)


@both_kinds
@pytest.mark.parametrize("n_levels", [1, 2])
@pytest.mark.parametrize("coder", ["sae", "crosscoder", "transcoder"])
def test_gradients_are_autograds_of_the_unscaled_coder_between_the_scalings(
    coder: str, kind: TokenScaling, n_levels: int
) -> None:
    scaled, plain = made("topk", coder, kind)
    x = randn(19, scaled.d_in, seed=7) * 5 + 2
    u, spread, shift = expected_scaling(scaled, x, kind)
    reference = dense_forward(plain, "topk", u)
    outs = [reference.out * spread + shift]
    half = D_SAE // 2
    if n_levels == 2:
        first = reference.channels.f[:, :half] @ reference.leaves["W_dec"][:half]
        first = first + reference.leaves["b_dec"]
        outs.insert(0, first * spread + shift)
    targets = [randn(19, scaled.d_out, seed=8 + i) for i in range(n_levels)]
    loss = sum(((out - target) ** 2).sum() for out, target in zip(outs, targets, strict=True))
    expected = reference.gradients(loss)
    encoding = scaled.encode_select(x)
    if n_levels == 1:
        g_out = 2 * (scaled.decode(encoding.latents, x) - targets[0])
        found = scaled.backward(encoding, g_out)
    else:
        levels = prefix_levels(encoding.latents, (half, D_SAE))
        g_out = 2 * (scaled.decode_levels(levels, x) - torch.stack(targets, 1))
        found = scaled.backward(encoding, g_out, levels=levels)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@both_kinds
def test_further_entries_get_their_gradient_through_the_scaling(kind: TokenScaling) -> None:
    scaled, plain = made("topk", "sae", kind)
    x, g = randn(19, D_IN, seed=7) + 2, randn(19, D_IN, seed=9)
    u, spread, _ = expected_scaling(scaled, x, kind)
    further = Latents(
        torch.arange(20, dtype=torch.int32), torch.arange(19, dtype=torch.int32), randn(19, seed=1), D_SAE, (19,)
    )
    zero = torch.zeros_like(g)
    found = scaled.backward(scaled.encode_select(x), zero, ExtraEntries(further, g))
    expected = plain.backward(plain.encode_select(u), zero, ExtraEntries(further, g * spread))
    assert float(expected["W_dec"].abs().max()) > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@both_kinds
def test_autograd_passes_through_the_scaling(kind: TokenScaling) -> None:
    scaled, _ = made("relu", "sae", kind)
    x = randn(3, D_IN, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(scaled, (x,))
    zero = torch.zeros(1, D_IN, dtype=torch.float64, requires_grad=True)
    scaled(zero).sum().backward()
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


@both_kinds
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_low_precision_and_extreme_tokens_stay_finite(kind: TokenScaling, dtype: str) -> None:
    coder = SAE(D_IN, D_SAE, activation=TopK(k=3), token_scaling=kind, dtype=dtype).requires_grad_(False)
    scale = 1e4 if dtype == "float16" else 1e15
    x = torch.stack([torch.zeros(D_IN), torch.ones(D_IN), torch.ones(D_IN) * 1e-30]).to(coder.dtype)
    big = torch.linspace(-1, 1, D_IN).unsqueeze(0).mul(scale).to(coder.dtype)
    for each in (x, big):
        out = coder(each)
        assert out.dtype == coder.dtype
        u = coder.scale_tokens(each).float()
        assert bool(u.isfinite().all())
        assert float(u.norm(dim=1).max()) < 1.01 * math.sqrt(D_IN)
        assert bool(out.isfinite().all())


@both_kinds
def test_decode_without_the_input_is_refused_and_nothing_is_remembered(kind: TokenScaling) -> None:
    scaled, _ = made("topk", "sae", kind)
    x = randn(5, D_IN, seed=7)
    for latents in (scaled.encode(x), scaled.encode_sparse(x)):
        with pytest.raises(ShapeError, match=rf"token_scaling='{kind}'.*pass its input as decode\(latents, x\)"):
            scaled.decode(latents)
    with pytest.raises(ShapeError, match=r"expected its input x \[\.\.\., 12\], got \[5, 11\]"):
        scaled.decode(scaled.encode(x), x[:, 1:])
    f = scaled.encode(x)
    scaled.encode(100 * randn(5, D_IN, seed=8))
    torch.testing.assert_close(scaled.decode(f, x), scaled(x))
    transcoder, _ = made("topk", "transcoder", kind)
    f = transcoder.encode(x)
    torch.testing.assert_close(transcoder.decode(f), transcoder(x))


@both_kinds
def test_equal_widths_do_not_make_a_transcoder_an_sae(kind: TokenScaling) -> None:
    coder = Transcoder(D_IN, D_IN, D_SAE, activation=ReLU(), token_scaling=kind, dtype="float64")
    x = randn(5, D_IN, seed=7) * 9
    u, _, _ = scaled_by_hand(x, kind)
    torch.testing.assert_close(coder(x), (u @ coder.W_enc + coder.b_enc).relu() @ coder.W_dec + coder.b_dec)


@both_kinds
@pytest.mark.parametrize("tied", ["none", "per_source", "per_target"])
def test_a_stack_scales_each_site_it_reads_and_no_site_it_writes(kind: TokenScaling, tied: str) -> None:
    options = {"activation": ReLU(), "tied": tied, "dtype": "float64", "seed": 4}
    scaled = CLT((D_IN, D_IN), (D_IN, D_IN), D_SAE, token_scaling=kind, **options)
    plain = CLT((D_IN, D_IN), (D_IN, D_IN), D_SAE, **options)
    x = torch.cat([randn(5, D_IN, seed=1), 30 * randn(5, D_IN, seed=2) + 3], 1)
    u = torch.cat([scaled_by_hand(part, kind)[0] for part in x.split(D_IN, 1)], 1)
    torch.testing.assert_close(scaled.scale_tokens(x), u)
    torch.testing.assert_close(scaled.encode(x), plain.encode(u))
    torch.testing.assert_close(scaled.encode_sparse(x).to_dense(), plain.encode(u))
    torch.testing.assert_close(scaled(x), plain(u))
    for part, own in zip(scaled.parts, plain.parts, strict=True):
        out = part.coder.decode(part.coder.encode_sparse(x[:, part.read]), x[:, part.read])
        torch.testing.assert_close(out, own.coder(u[:, part.read]))
    plain.set_token_scaling(kind)
    torch.testing.assert_close(plain(x), scaled(x))


@both_kinds
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"skip": True, "hook_name_out": "b"}, "skip=True"),
        ({"causal": True, "read_widths": (2, 2), "write_widths": (2, 2), "b_dec": "output"}, "causal=True"),
        ({"hook_name_out": "b"}, "b_dec='input_and_output'"),
    ],
)
def test_what_cannot_be_right_is_refused(kind: TokenScaling, options: dict[str, object], what: str) -> None:
    shape = {"d_in": 4, "d_out": 4, "d_sae": 8, "activation": ReLU(), "hook_name": "a", "hook_name_out": "a"}
    with pytest.raises(ConfigError, match=f"token_scaling='{kind}' cannot be used with {what}: ."):
        CoderConfig(**{**shape, **options}, token_scaling=kind)
    coder = SparseCoder(CoderConfig(**{**shape, **options}))
    with pytest.raises(ConfigError, match="cannot be used with"):
        coder.set_token_scaling(kind)
    assert coder.config.token_scaling == "none"


def test_one_number_has_no_deviation_and_a_stack_writes_other_sites() -> None:
    with pytest.raises(ConfigError, match="a site of width 1: one number has no deviation"):
        Crosscoder((3, 1), 8, activation=ReLU(), token_scaling="layer_norm")
    stack = CLT((4, 4), (4, 4), 8, activation=ReLU(), token_scaling="layer_norm")
    with pytest.raises(ConfigError, match="needs other sites written than read"):
        stack.bind("a+b", "a+b", {})


def test_binding_a_scaled_transcoder_to_one_site_makes_it_an_sae_and_back() -> None:
    coder = Transcoder(4, 4, 8, activation=ReLU(), token_scaling="constant_norm")
    assert not coder.config.reconstructs
    coder.bind("a", "a", {})
    assert coder.config.reconstructs
