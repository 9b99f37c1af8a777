"""Sites as one text, and where biases act."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from monosema.coders import CoderConfig, StackConfig
from monosema.formats import PartSpec, SiteSpec
from monosema.formats.native import _CoderOptions, _StackOptions
from monosema.formats.spec import joined, sites_of


@pytest.mark.parametrize(
    ("text", "widths", "names"),
    [
        ("a", (4,), ["a"]),
        ("a+b", (3, 5), ["a", "b"]),
        ("a+b", (8,), ["a+b"]),
        ("a+b+c", (3, 5), ["a", "b+c"]),
        ("a", (3, 5), ["a", None]),
        ("base:a+chat:a", (3, 3), ["base:a", "chat:a"]),
        ("", (2, 2), ["", None]),
        (None, (3, 5), [None, None]),
    ],
)
def test_joined_names_are_the_text_they_came_from(
    text: str | None, widths: tuple[int, ...], names: list[str | None]
) -> None:
    sites = sites_of(text, widths)
    assert sites == tuple(SiteSpec(name=name, width=width) for name, width in zip(names, widths, strict=True))
    assert joined(sites) == text


def test_where_biases_act() -> None:
    weights = {"W_enc": torch.ones(2, 3), "W_dec": torch.ones(3, 2)}
    bias = torch.zeros(2)
    assert PartSpec(**weights).bias_mode == "none"
    assert PartSpec(**weights, b_dec=bias).bias_mode == "output"
    assert PartSpec(**weights, b_dec=bias, subtracts_b_dec=True).bias_mode == "input_and_output"
    assert PartSpec(**weights, b_dec=bias, b_dec_in=bias).bias_mode == "separate"


@pytest.mark.parametrize(("options", "config"), [(_CoderOptions, CoderConfig), (_StackOptions, StackConfig)])
def test_the_own_format_keeps_every_option_in_its_order(options: type, config: type) -> None:
    assert [each.name for each in fields(options)] == [each.name for each in fields(config)]
