"""The backward pass of a coder: what each contribution to the loss asks of each parameter, added up.

Shape letters: B tokens, I input width, F latents, O output width, G nested levels, E active entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from monosema.coders.activations.base import ChannelGradients, Selection
from monosema.coders.encoding import Contribution, Encoding, Everywhere, ExtraEntries, LatentGradients, added
from monosema.coders.initial import zero_acausal_
from monosema.kernels import (
    Levels,
    latent_sums,
    level_gradient,
    prefix_levels,
    sampled_products,
    to_columns,
    weight_gradient,
)
from monosema.kernels.precision import product

if TYPE_CHECKING:
    from monosema.coders.coder import SparseCoder


@dataclass(frozen=True)
class _Output:
    """What comes through the output."""

    table: Tensor
    """∂loss/∂output: ``[B, O]``, or ``[B · G, O]`` of the entries' own levels."""
    g_total: Tensor
    """[B, O] ∂loss/∂(what all levels share: bias and skip connection)."""
    g_through: Tensor
    """[E] ∂loss/∂activation through the output."""


@dataclass(frozen=True)
class _Sums:
    """Gradients so far; contributions are added in place."""

    W_dec: Tensor
    encoder: Tensor
    b_enc: Tensor
    along: Tensor
    """[F] ``⟨∂loss/∂W_i, W_i⟩``: what decoder rows of norm one leave out."""


def parameter_gradients(
    coder: SparseCoder,
    encoding: Encoding,
    g_out: Tensor,
    contributions: Sequence[Contribution],
    levels: Levels | None,
    unit_norm: bool,
) -> dict[str, Tensor]:
    """See ``SparseCoder.backward``."""
    extras = [each for each in contributions if isinstance(each, ExtraEntries)]
    everywhere = [each for each in contributions if isinstance(each, Everywhere)]
    on_latents = [each for each in contributions if isinstance(each, LatentGradients)]
    own = added(on_latents)
    if encoding.spread is not None:  # the output was scaled back
        g_out = (g_out * (encoding.spread if levels is None else encoding.spread.unsqueeze(1))).to(g_out.dtype)
        extras = [replace(each, g_out_BO=(each.g_out_BO * encoding.spread).to(each.g_out_BO.dtype)) for each in extras]
    output = _through_output(coder, encoding, g_out, levels)
    sums, parameters = _through_selection(coder, encoding, output, g_out, own, levels)
    for extra in extras:
        _add_extra_(sums, coder, encoding, extra)
    for each in everywhere:
        _add_everywhere_(sums, encoding, each)
    scales = [*(each.decoder_scale for each in on_latents), *(each.decoder_scale for each in everywhere)]
    for scale_FS in scales:
        if scale_FS is not None:
            _add_decoder_scale_(sums, coder, scale_FS, unit_norm)
    if unit_norm:
        sums.W_dec.addcmul_(sums.along.unsqueeze(1), coder.W_dec, value=-1)
    gradients = {**parameters, "W_dec": sums.W_dec, "W_enc_rows": sums.encoder}
    gradients |= _of_biases_and_skip(coder, encoding, output.g_total, sums.b_enc)
    if coder.config.causal:
        zero_acausal_(gradients["W_enc_rows"], gradients["W_dec"], coder.config)
    return gradients


def _through_output(coder: SparseCoder, encoding: Encoding, g_out: Tensor, levels: Levels | None) -> _Output:
    if levels is None:
        return _Output(g_out, g_out, sampled_products(encoding.latents, g_out, coder.W_dec))
    table = level_gradient(g_out)
    g_total = table[:: levels.n_levels]  # what reaches the first level's entries reaches all
    return _Output(table, g_total, levels.scatter(sampled_products(levels.latents, table, coder.W_dec)))


def _through_selection(
    coder: SparseCoder,
    encoding: Encoding,
    output: _Output,
    g_out: Tensor,
    own: LatentGradients,
    levels: Levels | None,
) -> tuple[_Sums, dict[str, Tensor]]:
    """Gradients through the selected entries, and those of the activation's own parameters."""
    selection, latents = encoding.selection, encoding.latents
    gate = own.gate
    if selection.gate is not None and gate is None:
        gate = torch.zeros_like(selection.gate.values)
    activation = coder.activation.backward(
        selection,
        ChannelGradients(
            output.g_through if own.latents is None else output.g_through + own.latents,
            _near_gradient(coder, selection, g_out, levels, own),
            own.near_step,
            gate,
            own.window,
        ),
    )
    columns = to_columns(latents)
    if levels is None:
        W_dec = weight_gradient(columns, latents.values, output.table)
    else:
        W_dec = weight_gradient(to_columns(levels.latents), levels.latents.values, output.table)
    along = latent_sums(columns, latents.values * output.g_through)
    first, *others = activation.pre
    shared = columns if first.indices is latents.indices else to_columns(first)
    encoder, b_enc = weight_gradient(shared, first.values, encoding.x_BI), latent_sums(shared, first.values)
    for entries in others:
        shared = to_columns(entries)
        encoder.add_(weight_gradient(shared, entries.values, encoding.x_BI))
        b_enc.add_(latent_sums(shared, entries.values))
    parameters = {f"activation.{name}": value for name, value in activation.parameters.items()}
    return _Sums(W_dec, encoder, b_enc, along), parameters


def _add_extra_(sums: _Sums, coder: SparseCoder, encoding: Encoding, extra: ExtraEntries) -> None:
    g_extra = sampled_products(extra.latents, extra.g_out_BO, coder.W_dec)
    columns = to_columns(extra.latents)
    sums.W_dec.add_(weight_gradient(columns, extra.latents.values, extra.g_out_BO))
    sums.along.add_(latent_sums(columns, extra.latents.values * g_extra))
    g_pre = g_extra if extra.slope is None else g_extra * extra.slope
    sums.encoder.add_(weight_gradient(columns, g_pre, encoding.x_BI))
    sums.b_enc.add_(latent_sums(columns, g_pre))


def _add_everywhere_(sums: _Sums, encoding: Encoding, everywhere: Everywhere) -> None:
    g_but = everywhere.g_F[everywhere.but.indices.long()]
    sums.encoder.addr_(everywhere.g_F, encoding.x_BI.sum(0))
    columns = to_columns(everywhere.but)
    sums.encoder.sub_(weight_gradient(columns, g_but, encoding.x_BI))
    sums.b_enc.add_(everywhere.g_F, alpha=len(encoding.x_BI)).sub_(latent_sums(columns, g_but))


def _add_decoder_scale_(sums: _Sums, coder: SparseCoder, scale_FS: Tensor, unit_norm: bool) -> None:
    widths = [coder.d_out] if scale_FS.shape[1] == 1 else coder.config.write_widths
    slices = zip(scale_FS.split(1, 1), coder.W_dec.split(widths, 1), strict=True)
    for total, (scale, block) in zip(sums.W_dec.split(widths, 1), slices, strict=True):
        total.addcmul_(scale, block)
        if unit_norm:
            sums.along.addcmul_(scale.squeeze(1), block.norm(dim=1).square())


def _of_biases_and_skip(coder: SparseCoder, encoding: Encoding, g_total: Tensor, b_enc: Tensor) -> dict[str, Tensor]:
    gradients = {}
    if coder.b_enc is not None:
        gradients["b_enc"] = b_enc
    if coder.b_dec is not None:
        gradients["b_dec"] = g_total.sum(0)
    if coder.input_bias is not None:  # through the input: sum over tokens first, then one product
        through_input = -product(b_enc, coder.W_enc_rows)
        if coder.b_dec_in is not None:
            gradients["b_dec_in"] = through_input
        else:
            gradients["b_dec"] += through_input
    if coder.W_skip is not None:
        gradients["W_skip"] = product(encoding.raw_BI.to(coder.dtype).T, g_total)
    return gradients


def _near_gradient(
    coder: SparseCoder, selection: Selection, g_out: Tensor, levels: Levels | None, own: LatentGradients
) -> Tensor | None:
    near = selection.near
    if near is None or not coder.activation.learns_threshold:
        return None
    assert own.near is not None or own.latents is None, "a loss on the activations must give its near entries too"
    if levels is None:
        through_output = sampled_products(near, g_out, coder.W_dec)
    elif levels.widths is not None:
        nested = prefix_levels(near, levels.widths).latents
        through_output = sampled_products(nested, level_gradient(g_out), coder.W_dec)
    else:  # the least of a token's activations: they belong to its last budget
        through_output = sampled_products(near, g_out[:, -1].contiguous(), coder.W_dec)
    return through_output if own.near is None else through_output + own.near
