"""Is every site [batch, token, width]? Asked of the numbers, since some models carry their stream otherwise.

XLNet's layers carry [token, batch, width], hyper-connections several streams a token, CPM-Ant more positions than
tokens. Such a value must never be taken for rows of tokens: its name is refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from monosema.core.errors import UserError
from monosema.core.words import counted
from monosema.models.calls import ModuleCall
from monosema.models.sitemap import SiteMap
from monosema.models.sites import ON_REQUEST, join_name, split_name
from monosema.models.taps import HeadResultTap, Tap
from monosema.models.trace import Record


def check_shapes(
    hf: Any, site_map: SiteMap, records: dict[nn.Module, Record], tokens_shape: tuple[int, int]
) -> SiteMap:
    """``site_map`` with those sites only whose recorded values, on tokens [B, T], are [B, T, width].

    The others are refused by name, with the shape that was found. Raises ``UserError`` where no site is left.
    """
    refused: dict[str, str] = {}
    for name, site in site_map.sites.items():
        if split_name(name)[1] in ON_REQUEST:
            continue
        found, expected = _shape(site_map.taps[name], records, site.width), site.value_shape(tokens_shape)
        if found is None:
            refused[name] = "the forward pass does not give its module a tensor, or does not run it"
        elif found != expected:
            refused[name] = wrong_shape(found, expected) + _instead(hf, site_map.taps[name], found, tokens_shape)
    if not refused:
        return site_map
    kept = {name: site for name, site in site_map.sites.items() if name not in refused}
    if all(split_name(name)[1] in ON_REQUEST for name in kept):
        name, reason = next(reversed(refused.items()))
        raise UserError(
            f"{type(hf).__name__} cannot be loaded: none of its sites has one value for each token, for example "
            f"{name!r}: {reason}"
        )
    for name, reason in list(refused.items()):
        layer, inner = split_name(name)
        if inner == "hook_normalized_resid_post":  # what the refusal of hook_resid_post would advise
            refused |= {join_name(layer, "hook_resid_post"): reason}
    taps = {name: site_map.taps[name] for name in kept}
    return SiteMap(sites=kept, taps=taps, absent=site_map.absent | refused)


def wrong_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What is wrong with a value of shape ``found``."""
    return (
        f"expected a value of shape [batch, token, width], {list(expected)} on {expected[0]} x "
        f"{counted(expected[1], 'token')}, "
        f"but the model gives {list(found)}"
    )


def _instead(hf: Any, tap: Tap, found: tuple[int, ...], tokens_shape: tuple[int, int]) -> str:
    """The module path, whose site has any width, where there is one value for each token."""
    if found[:2] != tokens_shape:
        return ""
    path = next(path for path, module in hf.named_modules() if module is tap.module)
    return f"; the module path '{path}:{tap.side}' reads it, flattened to [batch, token, width]"


def _shape(tap: Tap, records: dict[nn.Module, Record], width: int) -> tuple[int, ...] | None:
    if isinstance(tap, HeadResultTap):  # not formed here: it takes the weights, which may be quantized or offloaded
        record = records.get(tap.module)
        return None if record is None or record.input is None else (*record.input.shape[:-1], width)
    value = _value(tap, records)
    return None if value is None else tuple(value.shape)


def _value(tap: Tap, records: dict[nn.Module, Record]) -> Tensor | None:
    """What ``tap`` reads from the recorded call of its module."""
    record = records.get(tap.module)
    if record is None or (record.input if tap.side == "in" else record.output) is None:
        return None
    needed = [_value(each, records) for each in tap.needs]
    found = [value for value in needed if value is not None]
    if len(found) < len(needed):
        return None
    arguments = () if record.input is None else (record.input,)
    return tap.read(ModuleCall(tap.module, tap.side, arguments, {}, record.output), found)
