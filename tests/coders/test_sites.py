"""Names of sites: parsed once, joined into one text on disk."""

from __future__ import annotations

import pytest

from monosema.coders.sites import SiteRef, is_one_name, join_names, parse_sites, split_names


@pytest.mark.parametrize(
    ("text", "model", "hook_name"),
    [
        ("blocks.2.hook_resid_post", "", "blocks.2.hook_resid_post"),
        ("base:blocks.2.hook_resid_post", "base", "blocks.2.hook_resid_post"),
        ("model.layers.5.mlp:in", "", "model.layers.5.mlp:in"),
        ("chat:model.layers.5.mlp:out", "chat", "model.layers.5.mlp:out"),
        ("blocks.0.attn.hook_z[3]", "", "blocks.0.attn.hook_z[3]"),
        (":odd", "", ":odd"),
        ("input", "", "input"),
    ],
)
def test_a_name_is_a_model_and_a_hook_name_and_is_written_as_it_was_read(text: str, model: str, hook_name: str):
    site = SiteRef.parse(text)
    assert site == SiteRef(model, hook_name)
    assert str(site) == text


def test_joined_names_are_split_and_joined_again():
    text = "base:blocks.0.hook_mlp_out+model.layers.5.mlp:in"
    assert parse_sites(text) == (SiteRef("base", "blocks.0.hook_mlp_out"), SiteRef("", "model.layers.5.mlp:in"))
    assert join_names(parse_sites(text)) == text
    assert split_names(text) == ("base:blocks.0.hook_mlp_out", "model.layers.5.mlp:in")
    assert parse_sites(None) == parse_sites("") == split_names(None) == ()


def test_one_name_is_not_empty_and_not_several():
    assert is_one_name("a") and not is_one_name("a+b") and not is_one_name("")
