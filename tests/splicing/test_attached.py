"""Dictionaries of every kind spliced into a model: against ``h + decode(z') - decode(z)`` and ``decode(z')``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from monosema.coders import CLT, SAE, BatchTopK, CrossLayerTranscoder, Dictionary, ReLU, SparseCoder, TopK, Transcoder
from monosema.core.errors import ShapeError
from monosema.models import LanguageModel
from monosema.models.splice import LatentEdit, Reading, Splice, every_row, text_rows
from monosema.splicing import DENSE, SPARSE, Attached, LatentDirections, LatentForm

WIDTH, N_LAYERS = 16, 3
SITE = "blocks.1.hook_resid_pre"
READ = [f"blocks.{layer}.mlp.hook_in" for layer in range(N_LAYERS)]
WRITTEN = [f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS)]


def make_model(dtype: torch.dtype = torch.float64) -> LanguageModel:
    config = GPT2Config(
        vocab_size=50,
        n_positions=32,
        n_embd=WIDTH,
        n_layer=N_LAYERS,
        n_head=2,
        n_inner=24,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf, generator = GPT2LMHeadModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return LanguageModel(hf.to(dtype), None, name="tiny")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """[2, 8], beginning with a special token."""
    ids = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 0
    return ids


def bound(coder: Dictionary, reads: list[str], writes: list[str], seed: int = 5) -> Dictionary:
    """With biases and skip connections that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            if name.rpartition(".")[2] in ("b_dec", "b_enc", "W_skip"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    coder.bind("+".join(reads), "+".join(writes), {})
    return coder


def sae(dtype: str = "float64", **options: object) -> Dictionary:
    options = {"activation": ReLU(), **options}
    return bound(SAE(WIDTH, 24, dtype=dtype, **options), [SITE], [SITE])


def skip_transcoder(dtype: str = "float64", layer: int = 1) -> Dictionary:
    coder = Transcoder(WIDTH, WIDTH, 24, activation=TopK(k=4), skip=True, dtype=dtype, seed=layer)
    return bound(coder, [READ[layer]], [WRITTEN[layer]])


def clt(dtype: str = "float64", tied: str = "none") -> Dictionary:
    coder = CLT([WIDTH] * N_LAYERS, [WIDTH] * N_LAYERS, 24, activation=ReLU(), tied=tied, dtype=dtype)
    return bound(coder, READ, WRITTEN)


KINDS: dict[str, Callable[..., Dictionary]] = {
    "SAE": sae,
    "SAE of scaled tokens": lambda dtype="float64": sae(dtype, token_scaling="layer_norm"),
    "BatchTopK SAE": lambda dtype="float64": sae(dtype, activation=BatchTopK(k=4)),
    "skip transcoder": skip_transcoder,
    "CLT": clt,
    "CLT tied per source": lambda dtype="float64": clt(dtype, "per_source"),
    "CLT tied per target": lambda dtype="float64": clt(dtype, "per_target"),
}


def attach(coder: Dictionary, model: LanguageModel, form: LatentForm = DENSE) -> Attached:
    names = (coder.hook_name or "").split("+"), (coder.hook_name_out or "").split("+")
    return Attached(coder, *([model.site(name) for name in each] for each in names), form)


def spliced(
    model: LanguageModel,
    coders: list[Dictionary],
    *,
    error_term: bool,
    edit: LatentEdit | None = None,
    form: LatentForm = DENSE,
):
    things = [attach(coder, model, form) for coder in coders]
    return model.edits(Splice(things, error_term=error_term, rows=every_row, edit=edit).edits())


def double(latents: Tensor, reading: Reading) -> Tensor:
    return latents * 2 + 0.25


@pytest.mark.parametrize("form", [DENSE, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtypes", [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")])
def test_no_edit_changes_no_bit(dtypes: tuple[str, str], kind: str, form: LatentForm, tokens: Tensor):
    model = make_model(getattr(torch, dtypes[0]))
    coder = KINDS[kind](dtype=dtypes[1])
    clean = model(tokens)
    with spliced(model, [coder], error_term=True, form=form):
        assert torch.equal(model(tokens), clean)
    with spliced(model, [coder], error_term=False, form=form):
        assert not torch.allclose(model(tokens), clean)


def by_hand(model: LanguageModel, coder: Dictionary, tokens: Tensor, error_term: bool, edit: LatentEdit) -> Tensor:
    """Logits with plain functions in the sites' place, one site after the other, of ``parts`` and their columns."""
    inputs: list[Tensor] = []
    bias = coder.b_dec if isinstance(coder, CrossLayerTranscoder) else torch.zeros(coder.d_out, dtype=coder.dtype)
    sums = [bias.expand(*tokens.shape, -1).clone() for _ in range(2)]

    def read(value: Tensor) -> Tensor:
        part = coder.parts[len(inputs)]
        z = part.coder.encode(value)
        for total, latents in zip(sums, (z, edit(z, None)), strict=True):
            part.add_to_(total, part.coder.decode(latents, value))
        inputs.append(value)
        return value

    def write(value: Tensor) -> Tensor:
        columns = slice(WIDTH * (len(inputs) - 1), WIDTH * len(inputs))
        before, after = (total[..., columns] for total in sums)
        return value + (after - before) if error_term else after

    names = zip((coder.hook_name or "").split("+"), (coder.hook_name_out or "").split("+"), strict=True)
    edits = {}
    for name, written in names:
        if name == written:
            edits[name] = lambda value: write(read(value))
        else:
            edits |= {name: read, written: write}
    with torch.no_grad(), model.edits(edits):
        return model(tokens)


@pytest.mark.parametrize("error_term", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_edited_latents_move_what_is_written(kind: str, error_term: bool, model: LanguageModel, tokens: Tensor):
    coder = KINDS[kind]()
    expected = by_hand(model, coder, tokens, error_term, double)
    with torch.no_grad(), spliced(model, [coder], error_term=error_term, edit=double):
        torch.testing.assert_close(model(tokens), expected)
    assert not torch.allclose(expected, model(tokens))


def test_several_dictionaries_at_once(model: LanguageModel, tokens: Tensor):
    """Each with its own latents and edits: an SAE, and transcoders of two MLPs, of which one is not edited."""
    coders = [skip_transcoder(layer=0), sae(), skip_transcoder(layer=2)]

    def edit(latents: Tensor, reading: Reading) -> Tensor:
        assert reading.group == 0 and len(latents) == len(reading.x) == tokens.numel()
        return latents if reading.owner == 2 else double(latents, reading)

    def write(coder: Dictionary, x: Tensor, value: Tensor) -> Tensor:
        z = coder.encode(x)
        return value + (coder.decode(double(z, None), x) - coder.decode(z, x))

    seen: dict[str, Tensor] = {}

    def note(value: Tensor) -> Tensor:
        seen["x"] = value
        return value

    edits = {
        READ[0]: note,
        WRITTEN[0]: lambda value: write(coders[0], seen["x"], value),
        SITE: lambda value: write(coders[1], value, value),
    }
    with torch.no_grad(), model.edits(edits):
        expected = model(tokens)
    with torch.no_grad(), spliced(model, coders, error_term=True, edit=edit):
        torch.testing.assert_close(model(tokens), expected)


def test_latents_have_gradients(model: LanguageModel, tokens: Tensor):
    """Of one latent at one position of a cross-layer transcoder, which moves all later MLPs.

    By central differences of a model whose MLPs are ``decode(z')`` and the errors of the clean run, as constants.
    """
    coder, place = clt(), (11, 3)
    decoded: dict[str, Tensor] = {}
    clean = model.capture(tokens, WRITTEN)
    splice = Splice(
        [attach(coder, model)],
        error_term=True,
        rows=every_row,
        on_write=lambda _, name, out: decoded.update({name: out.detach()}),
    )
    with model.edits(splice.edits()):
        model(tokens)
    errors = {name: clean[name] - decoded[name].view(2, 8, WIDTH) for name in WRITTEN}
    constants = {name: functools.partial(torch.add, error) for name, error in errors.items()}
    kept: list[Tensor] = []

    def edit_by(step: float) -> LatentEdit:
        def edit(latents: Tensor, reading: Reading) -> Tensor:
            if reading.group != 0:
                return latents
            moved = latents.detach().clone().requires_grad_()
            kept.append(moved)
            bump = torch.zeros_like(latents)
            bump[place] = step
            return moved + bump

        return edit

    with spliced(model, [coder], error_term=True, edit=edit_by(0.0)):
        (gradient,) = torch.autograd.grad(model(tokens)[1, -1, 7], kept[0])
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad(), spliced(model, [coder], error_term=False, edit=edit_by(step)), model.edits(constants):
            values.append(model(tokens)[1, -1, 7])
    torch.testing.assert_close(gradient[place], (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-8)
    assert gradient[place].abs() > 0


def test_a_clamped_latent_in_generation(model: LanguageModel, tokens: Tensor):
    """Clamped on generated tokens alone: with and without a cache alike, and prompts as they are."""
    coder, touched = sae(), list[int]()

    def clamp(latents: Tensor, reading: Reading) -> Tensor:
        rows = reading.context.is_generated[reading.rows_BT]
        touched.append(int(rows.sum()))
        new = latents.clone()
        new[rows, 3] = 40.0
        return new

    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    clean = model.hf.generate(tokens, **options)
    found = []
    for use_cache in (True, False):
        splice = Splice([attach(coder, model)], error_term=True, rows=text_rows, edit=clamp)
        with model.edits(splice.edits()):
            found.append(model.hf.generate(tokens, use_cache=use_cache, **options))
    assert touched[0] == touched[3] == 0 and touched[5] >= touched[4] > 0
    assert torch.equal(found[0].scores[0], clean.scores[0]), "the prompt is untouched"
    for cached, whole in zip(found[0].scores, found[1].scores, strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0].scores[1], clean.scores[1])


def test_touched_rows_of_both_forms(model: LanguageModel):
    coder = sae()
    assert isinstance(coder, SparseCoder)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dense, sparse = coder.encode(x), coder.encode_sparse(x)
    other = dense.clone()
    other[3, 0] += 1
    assert DENSE.touched(dense, other).tolist() == [False, False, False, True, False]
    values = sparse.values.clone()
    values[int(sparse.crow[2])] += 1
    assert SPARSE.touched(sparse, sparse.with_values(values)).tolist() == [False, False, True, False, False]
    assert not SPARSE.touched(sparse, replace(sparse, values=sparse.values.clone())).any()
    assert SPARSE.touched(sparse, coder.encode_sparse(-x)).all(), "other entries: no row is known to be the same"


def test_directions_are_the_change_of_what_is_decoded():
    coder = sae()
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z, chosen = coder.encode(x), [2, 7, 9]
    edited = z.clone()
    edited[:, chosen] = 1.5
    directions = LatentDirections(coder.W_dec.detach()[chosen])
    expected = coder.decode(edited) - coder.decode(z)
    torch.testing.assert_close(directions.change(edited[:, chosen] - z[:, chosen]), expected)


def test_sites_of_another_width_are_refused(model: LanguageModel):
    coder = sae()
    with pytest.raises(ShapeError, match=r"the dictionary's d_in is 16, but 'blocks.1.mlp.hook_post' is 24 wide"):
        Attached(coder, [model.site("blocks.1.mlp.hook_post")], [model.site(SITE)], DENSE)
