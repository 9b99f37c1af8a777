"""Against sae-lens 6.54.12: what we save it opens, what it saves we open, with the same numbers or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peer import Peer, PeerError
from safetensors.torch import load_file, save_file
from torch import Tensor

from monosema.coders import SAE, AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, SparseCoder, TopK, Transcoder
from monosema.coders.activations.batchtopk import BatchTopKActivation
from monosema.coders.config import ActivationConfig, BDecMode, TokenScaling
from monosema.core.errors import UserError
from monosema.core.files import read_json, write_json
from monosema.hub import load, save

D_IN, D_SAE, D_OUT, N_TOKENS = 12, 40, 9, 50
READ, WRITTEN = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
THRESHOLD = 0.4

TOKEN_SCALINGS: dict[TokenScaling, str] = {"constant_norm": "constant_norm_rescale", "layer_norm": "layer_norm"}
SAE_ACTIVATIONS = {
    "standard": ReLU(),
    "topk": TopK(k=5, weight_by_decoder_norm=False),
    "abstopk": AbsTopK(k=5, weight_by_decoder_norm=False),
    "jumprelu": JumpReLU(),
    "jumprelu from BatchTopK": BatchTopK(k=5, weight_by_decoder_norm=False),
    "gated": Gated(),
}
"""Latents of random decoder rows compete by their activations alone: sae-lens' files have no norms to weight by."""
WEIGHTED = {
    "topk": TopK(k=5, weight_by_decoder_norm=True),
    "abstopk": AbsTopK(k=5, weight_by_decoder_norm=True),
    "jumprelu": BatchTopK(k=5, weight_by_decoder_norm=True),
}


def test_version(saelens: Peer):
    assert saelens.call("version")["sae_lens"] == "6.54.12"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Inputs that are not centred; ``[5, 10, d_in]``, to see leading axes kept."""
    file = tmp_path / "rows.safetensors"
    generator = torch.Generator().manual_seed(7)
    save_file({"x": torch.randn(5, N_TOKENS // 5, D_IN, generator=generator) + 0.3}, file)
    return file


@pytest.fixture
def large_rows(tmp_path: Path, rows: Path) -> Path:
    """The same, with sizes that differ from token to token."""
    file = tmp_path / "large_rows.safetensors"
    save_file({"x": load_file(rows)["x"] * torch.linspace(0.1, 30, N_TOKENS).reshape(5, -1, 1)}, file)
    return file


# -- ours, opened there


@pytest.mark.parametrize("b_dec", ["input_and_output", "output", "none"])
@pytest.mark.parametrize("name", SAE_ACTIVATIONS)
def test_saelens_opens_our_sae(saelens: Peer, tmp_path: Path, rows: Path, name: str, b_dec: BDecMode):
    ours = randomise(SAE(D_IN, D_SAE, activation=SAE_ACTIVATIONS[name], b_dec=b_dec))
    ours.bind(READ, READ, {})
    answer = opened_there(saelens, ours, tmp_path, rows)
    assert answer["architecture"] == name.split()[0]
    assert answer["fields"]["apply_b_dec_to_input"] == (b_dec == "input_and_output")
    assert answer["metadata"]["hook_name"] == READ


@pytest.mark.parametrize("name", WEIGHTED)
def test_saelens_opens_our_sae_that_chooses_by_decoder_norms(saelens: Peer, tmp_path: Path, rows: Path, name: str):
    """With the norms folded in, as training does at its end: there it computes what it did here before."""
    ours = randomise(SAE(D_IN, D_SAE, activation=WEIGHTED[name]))
    x = load_file(rows)["x"]
    with torch.no_grad():
        activations, output = ours.encode(x), ours(x)
        norms = ours.fold_W_dec_norm()
    assert float(norms.std()) > 0.1
    assert opened_there(saelens, ours, tmp_path, rows)["architecture"] == name
    theirs = load_file(tmp_path / "out.safetensors")
    assert_close(theirs["activations"], activations * norms)
    assert_close(theirs["output"], output)


@pytest.mark.parametrize("name", WEIGHTED)
def test_saelens_refuses_it_with_the_norms_left_in(saelens: Peer, tmp_path: Path, rows: Path, name: str):
    ours = randomise(SAE(D_IN, D_SAE, activation=WEIGHTED[name]))
    with pytest.raises(PeerError):
        opened_there(saelens, ours, tmp_path, rows)
    assert read_json(tmp_path / "ours" / "cfg.json")["architecture"] == "monosema"


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "activation",
    [ReLU(), JumpReLU(), BatchTopK(k=5, weight_by_decoder_norm=False)],
    ids=lambda a: type(a).__name__,
)
def test_saelens_opens_our_transcoder(
    saelens: Peer, tmp_path: Path, rows: Path, activation: ActivationConfig, skip: bool
):
    ours = randomise(Transcoder(D_IN, D_OUT, D_SAE, activation=activation, skip=skip))
    ours.bind(READ, WRITTEN, {})
    answer = opened_there(saelens, ours, tmp_path, rows)
    kind = ("" if isinstance(activation, ReLU) else "jumprelu_") + ("skip_" if skip else "") + "transcoder"
    assert answer["architecture"] == kind
    assert answer["fields"]["d_out"] == D_OUT
    assert answer["fields"]["apply_b_dec_to_input"] is False
    assert answer["metadata"]["hook_name"] == READ
    assert answer["metadata"]["hook_name_out"] == WRITTEN


def test_saelens_reads_our_metadata(saelens: Peer, tmp_path: Path, rows: Path):
    ours = randomise(SAE(D_IN, D_SAE, activation=ReLU()))
    tokens = {"source": "stdlib", "context_size": 64, "begin_context": 0, "exclude_special_tokens": True}
    ours.bind(READ, READ, {"model": {"name": "gpt2"}, "tokens": tokens})
    metadata = opened_there(saelens, ours, tmp_path, rows)["metadata"]
    assert metadata["model_name"] == "gpt2"
    assert metadata["dataset_path"] == "stdlib"
    assert metadata["context_size"] == 64
    assert metadata["prepend_bos"] is True
    assert metadata["exclude_special_tokens"] is True


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "activation", [TopK(k=5, weight_by_decoder_norm=False), Gated()], ids=lambda a: type(a).__name__
)
def test_saelens_refuses_what_it_has_no_class_for(
    saelens: Peer, tmp_path: Path, rows: Path, activation: ActivationConfig, skip: bool
):
    ours = randomise(Transcoder(D_IN, D_OUT, D_SAE, activation=activation, skip=skip))
    ours.bind(READ, WRITTEN, {})
    with pytest.raises(PeerError, match="monosema_") as refusal:
        opened_there(saelens, ours, tmp_path, rows)
    assert refusal.value.kind == "KeyError"  # no such architecture in its registry


def test_saelens_reads_our_sparsity(saelens: Peer, tmp_path: Path):
    density = torch.linspace(-10, -0.5, D_SAE)
    save(randomise(SAE(D_IN, D_SAE, activation=ReLU())), tmp_path / "ours", log10_density=density)
    sparsity = saelens.call("read_sparsity", folder=str(tmp_path / "ours"))["sparsity"]
    assert sparsity == pytest.approx(density.tolist())


def test_bfloat16_is_the_same_dictionary_there(saelens: Peer, tmp_path: Path, rows: Path):
    ours = randomise(SAE(D_IN, D_SAE, activation=ReLU())).to(torch.bfloat16)
    answer = opened_there(saelens, ours, tmp_path, rows, tolerance=2e-2)
    assert answer["fields"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", TOKEN_SCALINGS)
@pytest.mark.parametrize("b_dec", ["input_and_output", "output", "none"])
@pytest.mark.parametrize("name", SAE_ACTIVATIONS)
def test_saelens_scales_tokens_as_our_sae_does(
    saelens: Peer, tmp_path: Path, large_rows: Path, name: str, b_dec: BDecMode, kind: TokenScaling
):
    ours = randomise(SAE(D_IN, D_SAE, activation=SAE_ACTIVATIONS[name], b_dec=b_dec, token_scaling=kind))
    ours.bind(READ, READ, {})
    opened_there(saelens, ours, tmp_path, large_rows, normalize=TOKEN_SCALINGS[kind])


@pytest.mark.parametrize("kind", TOKEN_SCALINGS)
@pytest.mark.parametrize("d_out", [D_OUT, D_IN])
@pytest.mark.parametrize(
    "activation",
    [ReLU(), JumpReLU(), BatchTopK(k=5, weight_by_decoder_norm=False)],
    ids=lambda a: type(a).__name__,
)
def test_saelens_scales_tokens_as_our_transcoder_does(
    saelens: Peer, tmp_path: Path, large_rows: Path, activation: ActivationConfig, d_out: int, kind: TokenScaling
):
    ours = randomise(Transcoder(D_IN, d_out, D_SAE, activation=activation, token_scaling=kind))
    ours.bind(READ, WRITTEN, {})
    opened_there(saelens, ours, tmp_path, large_rows, normalize=TOKEN_SCALINGS[kind])


# -- theirs, opened here


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *itertools.product(
            ["standard", "jumprelu", "gated"], [{"apply_b_dec_to_input": True}, {"apply_b_dec_to_input": False}]
        ),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}),
        *itertools.product(
            ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"],
            [{"d_out": D_OUT, "apply_b_dec_to_input": False}],
        ),
    ],
)
def test_we_open_what_saelens_saves(
    saelens: Peer, tmp_path: Path, rows: Path, architecture: str, options: dict[str, Any]
):
    made = {"d_in": D_IN, "d_sae": D_SAE, **options}
    arguments = {"folder": str(tmp_path / "theirs"), "rows": str(rows), "out": str(tmp_path / "out.safetensors")}
    saelens.call("make", architecture=architecture, seed=1, options=made, **arguments)
    coder = load(tmp_path / "theirs")
    assert_same(coder, rows, tmp_path / "out.safetensors")
    assert coder.hook_name == READ


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {}),
        ("topk", {"k": 5}),
        ("jumprelu", {}),
        ("gated", {}),
        ("batchtopk", {"k": 5}),
        ("matryoshka_batchtopk", {"k": 5, "matryoshka_widths": [10, 20, D_SAE]}),
    ],
)
def test_we_open_what_saelens_trained(
    saelens: Peer, tmp_path: Path, rows: Path, architecture: str, options: dict[str, Any]
):
    made = {"d_in": D_IN, "d_sae": D_SAE, **options}
    arguments = {"folder": str(tmp_path / "theirs"), "rows": str(rows), "out": str(tmp_path / "out.safetensors")}
    saelens.call("export", architecture=architecture, seed=2, options=made, **arguments)
    assert_same(load(tmp_path / "theirs"), rows, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *itertools.product(
            ["standard", "jumprelu", "gated"], [{"apply_b_dec_to_input": True}, {"apply_b_dec_to_input": False}]
        ),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        *itertools.product(
            ["transcoder", "jumprelu_transcoder"],
            [{"d_out": d_out, "apply_b_dec_to_input": False} for d_out in (D_OUT, D_IN)],
        ),
    ],
)
@pytest.mark.parametrize("kind", TOKEN_SCALINGS)
def test_we_open_what_saelens_scales_by_token(
    saelens: Peer, tmp_path: Path, large_rows: Path, architecture: str, options: dict[str, Any], kind: str
):
    made = {"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": TOKEN_SCALINGS[kind], **options}
    arguments = {"folder": str(tmp_path / "theirs"), "rows": str(large_rows), "out": str(tmp_path / "out.safetensors")}
    saelens.call("make", architecture=architecture, seed=1, options=made, **arguments)
    coder = load(tmp_path / "theirs")
    assert coder.config.token_scaling == kind
    assert_same(coder, large_rows, tmp_path / "out.safetensors")
    again = tmp_path / "again.safetensors"
    save(coder, tmp_path / "ours")
    saelens.call("read", folder=str(tmp_path / "ours"), rows=str(large_rows), out=str(again))
    assert_same(coder, large_rows, again)


@pytest.mark.parametrize("kind", TOKEN_SCALINGS)
def test_we_refuse_token_scaling_beside_a_skip_connection(saelens: Peer, tmp_path: Path, rows: Path, kind: str):
    made = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "apply_b_dec_to_input": False}
    arguments = {"folder": str(tmp_path / "theirs"), "rows": str(rows), "out": str(tmp_path / "out.safetensors")}
    options = {**made, "normalize_activations": TOKEN_SCALINGS[kind]}
    saelens.call("make", architecture="skip_transcoder", seed=1, options=options, **arguments)
    with pytest.raises(UserError, match="skip connection reads tokens that are not scaled"):
        load(tmp_path / "theirs")


@pytest.mark.parametrize("normalize", ["expected_average_only_in", "covariance_whitening"])
def test_we_refuse_normalisation_that_is_not_folded(saelens: Peer, tmp_path: Path, normalize: str):
    made = {"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": normalize}
    saelens.call("checkpoint", folder=str(tmp_path / "theirs"), architecture="standard", seed=3, options=made)
    with pytest.raises(UserError, match=f"normalize_activations='{normalize}'"):
        load(tmp_path / "theirs")


def test_we_refuse_heads_side_by_side(saelens: Peer, tmp_path: Path):
    made = {"d_in": D_IN, "d_sae": D_SAE, "reshape_activations": "hook_z", "hook_name": "blocks.1.attn.hook_z"}
    saelens.call("checkpoint", folder=str(tmp_path / "theirs"), architecture="standard", seed=3, options=made)
    with pytest.raises(UserError, match="hook_z"):
        load(tmp_path / "theirs")


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk", "matching_pursuit"])
def test_we_refuse_architectures_we_do_not_have(saelens: Peer, tmp_path: Path, architecture: str):
    own = {} if architecture == "matching_pursuit" else {"k": 5}
    if architecture == "matryoshka_batchtopk":
        own = {"k": 5, "matryoshka_widths": [10, D_SAE]}
    made = {"d_in": D_IN, "d_sae": D_SAE, **own}
    saelens.call("checkpoint", folder=str(tmp_path / "theirs"), architecture=architecture, seed=3, options=made)
    with pytest.raises(UserError, match=f"unknown architecture '{architecture}'"):
        load(tmp_path / "theirs")


@pytest.mark.parametrize(
    "old",
    [
        {"activation_fn_str": "relu"},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
        {"activation_fn": "relu", "normalize_activations": False},
        {"architecture": "standard", "apply_b_dec_to_input": False},
    ],
)
def test_files_of_before_saelens_6_mean_the_same_to_both(
    saelens: Peer, tmp_path: Path, rows: Path, old: Mapping[str, Any]
):
    folder, out = tmp_path / "old", tmp_path / "out.safetensors"
    folder.mkdir()
    flat = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "hook_point": READ, "model_name": "gpt2", **old}
    write_json(folder / "cfg.json", flat)
    generator = torch.Generator().manual_seed(4)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    weights = {name: torch.randn(shape, generator=generator) / 3 for name, shape in shapes.items()}
    save_file({**weights, "scaling_factor": torch.ones(D_SAE)}, folder / "sae_weights.safetensors")
    saelens.call("read", folder=str(folder), rows=str(rows), out=str(out))
    coder = load(folder)
    assert_same(coder, rows, out)
    assert coder.hook_name == READ


def test_what_saelens_saved_survives_our_saving(saelens: Peer, tmp_path: Path, rows: Path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    made = {"d_in": D_IN, "d_sae": D_SAE, "k": 5, "rescale_acts_by_decoder_norm": True}
    folder = str(tmp_path / "theirs")
    saelens.call("make", folder=folder, rows=str(rows), out=str(first), architecture="topk", seed=5, options=made)
    save(load(folder), tmp_path / "ours")
    answer = saelens.call("read", folder=str(tmp_path / "ours"), rows=str(rows), out=str(second))
    assert answer["fields"]["rescale_acts_by_decoder_norm"] is False
    assert answer["metadata"]["hook_name"] == READ
    for name, tensor in load_file(first).items():
        assert_close(load_file(second)[name], tensor)


# -- parts


def randomise(coder: SparseCoder) -> SparseCoder:
    """Every parameter random and of a size that matters; decoder rows of unequal norm."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) / 3
            parameter.copy_(values.abs() if name.endswith("threshold") else values)
    if isinstance(coder.activation, BatchTopKActivation):
        coder.activation.set_threshold(THRESHOLD)
    return coder


def opened_there(
    saelens: Peer, ours: SparseCoder, folder: Path, rows: Path, tolerance: float = 1e-5, normalize: str = "none"
) -> Mapping[str, Any]:
    """Save ``ours``, let sae-lens open it, require the same numbers; returns its answer."""
    save(ours, folder / "ours")
    out = folder / "out.safetensors"
    answer = saelens.call("read", folder=str(folder / "ours"), rows=str(rows), out=str(out))
    assert (answer["fields"]["d_in"], answer["fields"]["d_sae"]) == (D_IN, D_SAE)
    assert answer["fields"]["normalize_activations"] == normalize
    assert answer["fields"]["reshape_activations"] == "none"
    assert read_json(folder / "ours" / "cfg.json")["architecture"] == answer["architecture"]
    assert_same(ours, rows, out, tolerance)
    return answer


@torch.no_grad()
def assert_same(coder: SparseCoder, rows: Path, out: Path, tolerance: float = 1e-5) -> None:
    """The peer's activations and outputs in ``out`` are ``coder``'s, and not trivially so."""
    theirs, x = load_file(out), load_file(rows)["x"]
    activations = coder.encode(x)
    active = (activations != 0).float().mean()
    assert 0.02 < active < 0.9, "a test on activations that are all on, or all off, shows nothing"
    assert_close(theirs["activations"], activations, tolerance)
    assert_close(theirs["output"], coder(x), tolerance)
    assert_close(theirs["output"], coder.decode(coder.encode_sparse(x), x), tolerance)


def assert_close(theirs: Tensor, ours: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of the largest value."""
    assert theirs.shape == ours.shape
    torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance * float(ours.abs().max()))
