"""The interface of dictionaries: sites, parts and single latents of every class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monosema.coders import CLT, SAE, Crosscoder, Dictionary, ReLU, SiteRef, TopK, Transcoder
from monosema.core.errors import ConfigError, ShapeError, UnknownNameError
from tests.coder_cases import randomise_

READS, WRITES = "blocks.0.mlp.hook_in+blocks.1.mlp.hook_in", "blocks.0.hook_mlp_out+blocks.1.hook_mlp_out"


def clt(tied: str = "none", reads: tuple[int, int] = (3, 3), writes: tuple[int, int] = (2, 2)) -> Dictionary:
    stack = CLT(reads, writes, 4, activation=ReLU(), tied=tied, seed=1)
    stack.bind(READS, WRITES, {})
    with torch.no_grad():
        stack.b_dec.copy_(torch.arange(4.0))
    return stack


def crosscoder() -> Dictionary:
    coder = Crosscoder(
        [3, 2], 4, activation=TopK(2), hook_names=["base:blocks.0.hook_mlp_out", "chat:blocks.0.hook_mlp_out"]
    )
    return randomise_(coder)


def made() -> dict[str, Dictionary]:
    return {
        "SAE": randomise_(SAE(3, 4, activation=TopK(2), hook_name="blocks.0.hook_resid_post")),
        "Transcoder": randomise_(Transcoder(3, 2, 4, activation=TopK(2))),
        "SkipTranscoder": randomise_(Transcoder(3, 2, 4, activation=TopK(2), skip=True)),
        "Crosscoder": crosscoder(),
        "CrossLayerTranscoder": clt(),
    }


def test_every_class_is_a_dictionary_and_names_its_variant():
    for name, coder in made().items():
        assert isinstance(coder, Dictionary) and coder.variant == name
    assert {name for name, coder in made().items() if coder.reconstructs} == {"SAE", "Crosscoder"}
    assert {name for name, coder in made().items() if coder.is_layered} == {"CrossLayerTranscoder"}
    assert made()["SAE"].architecture == "TopK SAE" and made()["SAE"].n_active == 2
    assert clt().architecture == "ReLU cross-layer transcoder" and clt().n_active is None


def test_sites_are_refs_of_a_model_and_a_hook_name():
    assert crosscoder().reads == (SiteRef("base", "blocks.0.hook_mlp_out"), SiteRef("chat", "blocks.0.hook_mlp_out"))
    assert crosscoder().writes == crosscoder().reads
    assert clt().writes == (SiteRef("", "blocks.0.hook_mlp_out"), SiteRef("", "blocks.1.hook_mlp_out"))
    assert SAE(3, 4).reads == SAE(3, 4).writes == ()
    assert crosscoder().names_written(2) == ("base:blocks.0.hook_mlp_out", "chat:blocks.0.hook_mlp_out")
    assert Crosscoder([3, 2], 4).names_written(2) == ("site_0", "site_1")


def test_parts_number_their_latents_through():
    assert [part.latents for part in clt().parts] == [range(4), range(4, 8)]
    assert [part.latents for part in crosscoder().parts] == [range(4)]
    stack = clt()
    place = stack.place_of(5)
    assert (place.part, place.index) == (1, 1)
    places = stack.places_of(torch.tensor([0, 3, 4, 7]))
    assert places.parts.tolist() == [0, 0, 1, 1] and places.indices.tolist() == [0, 3, 0, 3]


@pytest.mark.parametrize("name", list(made()))
def test_what_is_written_is_the_decoder_rows_and_what_is_written_without_latents(name: str):
    coder = made()[name]
    x = torch.randn(5, coder.d_in, generator=torch.Generator().manual_seed(0))
    f, rows = coder.encode(x), coder.decoder_rows(range(coder.d_sae))
    assert rows.shape == (coder.d_sae, coder.d_out)
    torch.testing.assert_close(f @ rows + coder.without_latents(x), coder.decode(f, x))
    torch.testing.assert_close(coder.without_latents(x), coder.decode(torch.zeros_like(f), x))
    if not coder.has_skip:
        torch.testing.assert_close(coder.without_latents(), coder.without_latents(x)[0])
    else:
        with pytest.raises(ShapeError, match="skip"):
            coder.without_latents()


@pytest.mark.parametrize("name", list(made()))
def test_an_encoder_row_is_what_the_pre_activation_is_the_product_with(name: str):
    coder = made()[name]
    x = torch.randn(5, coder.d_in, generator=torch.Generator().manual_seed(0))
    for latent in range(coder.d_sae):
        part = coder.parts[coder.place_of(latent).part]
        own = x[:, part.read] @ coder.encoder_row(latent)
        pre = part.coder.pre_activations(x[:, part.read])[:, latent - part.latents.start]
        shift = pre - own
        torch.testing.assert_close(shift, shift[:1].expand(5))  # biases, the same for every token
    bias = coder.encoder_biases([coder.d_sae - 1])
    assert bias is not None
    torch.testing.assert_close(bias[0], coder.parts[-1].coder.b_enc[-1])


def test_rows_of_one_site_are_its_columns():
    coder, stack = crosscoder(), clt()
    whole = coder.decoder_rows([2, 0])
    assert torch.equal(coder.decoder_rows([2, 0], 1), whole[:, 3:])
    assert torch.equal(coder.decoder_row(2, SiteRef("base", "blocks.0.hook_mlp_out")), whole[0, :3])
    second = stack.parts[1].coder.W_dec
    assert torch.equal(stack.decoder_row(5, 1), second[1])
    assert not bool(stack.decoder_row(5, 0).any()), "layer 1 does not write site 0"
    assert torch.equal(stack.decoder_row(1, 1), stack.parts[0].coder.W_dec[1, 2:])


@pytest.mark.parametrize("tied", ["none", "per_source", "per_target"])
def test_rows_of_tied_decoders_are_what_a_latent_adds_to_each_site(tied: str):
    stack = clt(tied)
    for latent in range(stack.d_sae):
        f = torch.zeros(1, stack.d_sae)
        f[0, latent] = 1
        torch.testing.assert_close(stack.decoder_row(latent), (stack.decode(f) - stack.without_latents())[0])


def test_a_range_gives_views_and_a_list_only_its_rows():
    coder = made()["SAE"]
    assert coder.decoder_rows(range(1, 3)).data_ptr() == coder.W_dec[1].data_ptr()
    assert coder.encoder_rows(range(4)).data_ptr() == coder.W_enc_rows.data_ptr()
    assert coder.decoder_rows([3, 3]).shape == (2, 3)
    assert coder.decoder_rows([]).shape == (0, 3)


def test_rows_keep_their_gradient():
    for coder in made().values():
        latents: Tensor | list[int] = [0, coder.d_sae - 1]
        (coder.decoder_rows(latents).sum() + coder.encoder_rows(latents).sum()).backward()
        decoder = coder.parts[0].coder.W_dec
        assert decoder.grad is not None and bool(decoder.grad[0].any()) and not bool(decoder.grad[1].any())


def test_latents_and_sites_that_do_not_exist_are_refused():
    coder, stack = crosscoder(), clt(reads=(3, 2))
    with pytest.raises(ConfigError, match="from 0 to 3, got 4"):
        coder.decoder_row(4)
    with pytest.raises(ConfigError, match="from 0 to 7, got -1"):
        stack.encoder_rows([2, -1])
    with pytest.raises(ConfigError, match="numbered from 0, got 2"):
        coder.decoder_row(0, 2)
    with pytest.raises(UnknownNameError, match="base:blocks"):
        coder.decoder_row(0, SiteRef("bse", "blocks.0.hook_mlp_out"))
    with pytest.raises(ConfigError, match="give the site's number"):
        Crosscoder([3, 2], 4).decoder_row(0, SiteRef("", "a"))
    with pytest.raises(ShapeError, match="one layer at a time"):
        stack.encoder_rows([0, 5])
    assert stack.encoder_rows(stack.parts[1].latents).shape == (4, 2)
