"""The splice's arithmetic, with things written here by hand in a dictionary's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from monosema.core.errors import ConfigError, UserError
from monosema.models import LanguageModel
from monosema.models.splice import (
    Reading,
    Splice,
    Spliceable,
    change,
    every_row,
    instead,
    moved,
    placed,
    with_error,
    without_error,
)

D = 32
SITE, LATER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
READ, WRITTEN = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


class Two:
    """Two latents, the first two columns of what is read; each adds to its own column. ``wobble`` adds noise that is
    another in each call of ``decode``, as sums of another order would on some devices."""

    def __init__(self, read: str = SITE, written: str = SITE, wobble: float = 0.0, shift: float = 0.25) -> None:
        self.reads: Sequence[tuple[str, ...]] = ((read,),)
        self.writes: Sequence[str] = (written,)
        self._generator, self._wobble, self._shift = torch.Generator().manual_seed(0), wobble, shift
        self.n_decoded = 0

    def sources(self, written: int) -> Sequence[int]:
        return (0,)

    def bias(self, written: int, n: int) -> Tensor:
        return torch.full((n, D), self._shift, dtype=torch.float64)

    def encode(self, group: int, x: Tensor) -> Tensor:
        return x[:, :2] * 3

    def decode(self, group: int, latents: Tensor, x: Tensor) -> Sequence[tuple[int, Tensor]]:
        self.n_decoded += 1
        out = torch.nn.functional.pad(latents, (0, D - 2)) * 0.1
        noise = torch.randn(out.shape, generator=self._generator, dtype=out.dtype)
        return ((0, out + self._wobble * noise),)

    def touched(self, before: Tensor, after: Tensor) -> Tensor:
        return (before != after).any(1)


def test_it_is_the_protocol():
    assert isinstance(Two(), Spliceable)


def test_the_pieces_by_hand():
    h = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    before, after = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.75, -1.0]], requires_grad=True)
    spliced = with_error(h[:1], change(after, before))
    assert spliced.tolist() == [[1.25, 1.0]]
    (gradient,) = torch.autograd.grad(spliced.sum(), after, retain_graph=True)
    assert gradient.tolist() == [[1.0, 1.0]]
    assert torch.autograd.grad(spliced.sum(), h, allow_unused=True) == (None,)
    # h less the error h - decode(z), changed as before: decode(z').
    assert (h[:1] + without_error(change(after, before), h[:1] - before)).tolist() == [[0.75, -1.0]]
    value = h.detach().unsqueeze(0)
    mask = torch.tensor([[False, True]])
    assert placed(value, mask, torch.tensor([[9.0, 8.0]])).tolist() == [[[1.0, 2.0], [9.0, 8.0]]]
    assert moved((torch.tensor([0]), torch.tensor([1])), torch.tensor([[1.0, -1.0]]))(value).tolist() == [
        [[1.0, 2.0], [4.0, 3.0]]
    ]
    assert torch.equal(value[0], h), "the value itself stays"
    assert instead(torch.ones(1, 2))(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_without_an_edit_no_bit_differs_though_no_two_decodes_agree(
    model_of: Callable[[str], LanguageModel], tokens: Tensor
):
    """Latents that no edit touched are decoded once, so it needs no deterministic device."""
    model = model_of("llama")
    clean = model(tokens)
    for edit in (None, lambda latents, reading: latents, lambda latents, reading: latents.clone()):
        splice = Splice([Two(wobble=1.0)], error_term=True, rows=every_row, edit=edit)
        with model.edits(splice.edits()):
            assert torch.equal(model(tokens), clean)
    with model.edits(Splice([Two(wobble=1.0)], error_term=False, rows=every_row).edits()):
        assert not torch.allclose(model(tokens), clean)


def test_an_edit_moves_the_rows_that_it_touches_and_no_others(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    """``h + decode(z') - decode(z)``: one latent of one position is 2 more, which adds 0.2 to its column."""
    model = model_of("llama")

    def edit(latents: Tensor, reading: Reading) -> Tensor:
        new = latents.clone()
        new[reading.context.positions[reading.rows_BT] == 4, 1] += 2
        return new

    clean = model.capture(tokens, [SITE])[SITE]
    for wobble in (0.0, 1.0):
        thing = Two(wobble=wobble)
        splice = Splice([thing], error_term=True, rows=every_row, edit=edit)
        with model.edits(splice.edits()):
            spliced = model.capture(tokens, [SITE])[SITE]
        others = torch.arange(9) != 4
        assert torch.equal(spliced[:, others], clean[:, others])
        if not wobble:
            expected = torch.zeros(D, dtype=torch.float64)
            expected[1] = 0.2
            torch.testing.assert_close(spliced[:, 4] - clean[:, 4], expected.expand(2, -1), rtol=0, atol=1e-14)
        assert thing.n_decoded == 2


def test_without_the_error_term_the_site_is_what_is_decoded(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("llama")
    clean = model.capture(tokens, [SITE])[SITE]
    splice = Splice([Two()], error_term=False, rows=every_row, edit=lambda latents, _: latents + 1)
    with model.edits(splice.edits()):
        spliced = model.capture(tokens, [SITE])[SITE]
    expected = torch.full_like(clean, 0.25)
    expected[..., :2] += 0.1 * (3 * clean[..., :2] + 1)
    torch.testing.assert_close(spliced, expected)


def test_the_gradient_is_that_of_what_is_decoded(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    """With the error a constant: of the latents ``0.1 g``, of what is read ``3 · 0.1 g`` in two columns, else 0."""
    model = model_of("llama")
    latents: list[Tensor] = []

    def edit(found: Tensor, _: Reading) -> Tensor:
        latents.append(found.clone().requires_grad_() if not found.requires_grad else found)
        return latents[-1] * 1.0

    site = "blocks.0.hook_resid_post"
    read = model.capture(tokens, [site])[site].requires_grad_()
    splice = Splice([Two()], error_term=True, rows=every_row, edit=edit)
    with model.edits({site: lambda _: read}), model.edits(splice.edits()):
        logits, values = model.logits_and_sites(tokens, [site], detach=False)
    g, of_latents, of_read = torch.autograd.grad(logits[0, -1, 5], [values[site], latents[0], read])
    assert torch.equal(logits, model(tokens))
    torch.testing.assert_close(of_latents, 0.1 * g.flatten(0, 1)[:, :2])
    torch.testing.assert_close(of_read[..., :2], 0.3 * g[..., :2])
    assert of_read[..., 2:].abs().max() == 0


def test_rows_left_out_keep_what_the_model_computes_with_its_gradient(
    model_of: Callable[[str], LanguageModel], tokens: Tensor
):
    """By default special tokens and padding: here token 0 and 1 of GPT-2."""
    model = model_of("gpt2")
    ids = tokens.clone()
    ids[0, 2], ids[1, 0] = 0, 1
    special = (ids == 0) | (ids == 1)
    clean = model.capture(ids, [SITE])[SITE]
    with model.edits(Splice([Two()], error_term=False).edits()):
        spliced = model.capture(ids, [SITE])[SITE]
    assert torch.equal(spliced[special], clean[special])
    assert ((spliced != clean).any(-1) == ~special).all()


def test_what_reads_a_site_that_is_replaced_reads_the_new_value(
    model_of: Callable[[str], LanguageModel], tokens: Tensor
):
    """An SAE reads before it writes; a transcoder that reads the same site reads what the SAE wrote."""
    model = model_of("llama")
    seen: dict[int, Tensor] = {}

    def edit(latents: Tensor, reading: Reading) -> Tensor:
        seen[reading.owner] = reading.x
        return latents

    site = READ
    clean = model.capture(tokens, [site])[site].flatten(0, 1)
    things = [Two(site, WRITTEN), Two(site, site)]
    with model.edits(Splice(things, error_term=False, rows=every_row, edit=edit).edits()):
        model(tokens)
    assert torch.equal(seen[1], clean)
    torch.testing.assert_close(seen[0], 0.25 + torch.nn.functional.pad(0.3 * clean[:, :2], (0, D - 2)))


class Joined(Two):
    """One group that reads two sites side by side, and writes a third: the sum of their first columns in its first."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.writes = ((SITE, READ),), (WRITTEN,)

    def encode(self, group: int, x: Tensor) -> Tensor:
        assert x.shape[1] == 2 * D
        return torch.stack([x[:, 0] + x[:, D], x[:, 0] * 0], 1)


def test_a_group_that_reads_several_sites_waits_for_the_last(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("llama")
    clean = model.capture(tokens, [SITE, READ])
    with model.edits(Splice([Joined()], error_term=False, rows=every_row).edits()):
        spliced = model.capture(tokens, [WRITTEN])[WRITTEN]
    expected = torch.full_like(spliced, 0.25)
    expected[..., 0] += 0.1 * (clean[SITE][..., 0] + clean[READ][..., 0])
    torch.testing.assert_close(spliced, expected)


def test_what_cannot_be_spliced_is_refused(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    model = model_of("llama")
    with pytest.raises(ConfigError, match=f"two dictionaries write '{SITE}'; give one for each site"):
        Splice([Two(), Two(LATER, SITE)], error_term=True)
    with (
        model.edits(Splice([Two(LATER, SITE)], error_term=True).edits()),
        pytest.raises(UserError, match=f"computes '{SITE}' before '{LATER}', from which it is to be written"),
    ):
        model(tokens)


def test_a_splice_holds_pass_after_pass(model_of: Callable[[str], LanguageModel], tokens: Tensor):
    """Also in generation with a cache, where each pass reads and writes one row."""
    model = model_of("gpt2")
    splice = Splice([Two()], error_term=True, rows=every_row, edit=lambda latents, _: latents + 30)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    clean = model.hf.generate(tokens, **options)
    with model.edits(splice.edits()):
        first = model(tokens)
        assert torch.equal(model(tokens), first)
        cached = model.hf.generate(tokens, use_cache=True, **options)
        whole = model.hf.generate(tokens, use_cache=False, **options)
    for one, other, unedited in zip(cached.scores, whole.scores, clean.scores, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, unedited)
    torch.testing.assert_close(cached.scores[0], first[:, -1].to(cached.scores[0]))
