"""Dead latents: which they are, and the losses that bring them back.

Shape letters: B tokens, O output width, F latents, D dead latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never, final

import torch
from torch import Tensor

from monosema.coders import Encoding, Everywhere, ExtraEntries, SparseCoder
from monosema.coders.parts import Part
from monosema.core.devices import LateNumbers
from monosema.kernels import Latents, decode, latents_from_mask, latents_from_pairs
from monosema.training.term import Batch, OnBatch, OnPart
from monosema.training.terms import AuxK, GhostGradients, PreActivationLoss, Resample, Revive


@dataclass(frozen=True)
class Dead:
    """Which latents of a part are dead; made after a step, and counted for the host in the middle of the next."""

    mask_F: Tensor
    """[F] bool."""
    counts: LateNumbers
    """How many of each part are."""
    part: int
    """Which part this is."""

    @staticmethod
    def of(mask_F: Tensor, parts: Sequence[Part[SparseCoder]]) -> tuple[Dead, ...]:
        """For each of ``parts``, from the mask of all their latents."""
        masks = mask_F.split([part.coder.d_sae for part in parts])
        counts = LateNumbers(torch.stack([mask.count_nonzero() for mask in masks]))
        return tuple(Dead(mask, counts, number) for number, mask in enumerate(masks))

    @property
    def n(self) -> int:
        return self.counts.read()[self.part]

    def latents(self) -> Tensor:
        """[n] int64, ascending."""
        if self.mask_F.device.type == "cpu":
            return self.mask_F.nonzero().squeeze(1)
        return self.mask_F.byte().argsort(descending=True, stable=True)[: self.n]  # nonzero would wait for the device


@final
@dataclass(frozen=True)
class RevivalTerm:
    """The loss of a policy for dead latents."""

    policy: AuxK | GhostGradients | PreActivationLoss
    """The policy."""

    @property
    def name(self) -> str:
        return self.policy.name

    def on(self, batch: Batch) -> OnBatch | None:
        """All of it is asked of the parts."""
        parts = batch.dictionary.parts
        if not batch.dead:
            return None
        return OnBatch(
            of_part=lambda i: revival(parts[i], batch.encodings[i], batch, batch.dead[i], self.policy),
        )


@torch.no_grad()
def revival(
    part: Part[SparseCoder], encoding: Encoding, batch: Batch, dead: Dead, policy: Revive | None
) -> OnPart | None:
    """What ``policy`` adds to the loss; None where nothing (no latent is dead, or it acts otherwise)."""
    match policy:
        case AuxK() if dead.n > 0:
            return auxk(part, encoding, batch, dead.latents(), policy)
        case GhostGradients() if dead.n > 0:
            return ghost_gradients(part, encoding, batch, dead.latents(), policy)
        case PreActivationLoss():
            return pre_activation_loss(part.coder, encoding, dead.mask_F, policy)
        case AuxK() | GhostGradients() | Resample() | None:
            return None
        case _:
            assert_never(policy)


def auxk(part: Part[SparseCoder], encoding: Encoding, batch: Batch, dead: Tensor, config: AuxK) -> OnPart:
    """``α · Σ w ‖e - ê‖²``, with w the reconstruction's weights (their mean is ``mean ‖e - ê‖²`` by default).

    ``e = y - ŷ`` is a constant; ``ê`` decodes, without bias, ``max(0, pre)`` of the ``min(k, number dead)`` largest
    pre-activations of dead latents of each token (largest in magnitude, and signed, for AbsTopK; times ``‖W_dec_i‖``
    where latents compete so). Each of them gets the gradient ``⟨∂/∂ê, W_dec_i⟩``, the negative ones where
    ``straight_through``. ``normalised`` divides by ``Σ w ‖e - mean e‖²``.
    """
    coder, error, weights = part.coder, _own(part, batch.error_BO), _own(part, batch.weights_BO)
    n_tokens = len(error)
    k = min(config.k or default_k(coder), dead.numel())
    pre = coder.pre_activations_of(encoding, dead)
    signed = coder.activation.signed
    weights_F, score = coder.selection_weights(), pre.abs() if signed else pre
    size, places = (score if weights_F is None else score * weights_F[dead]).topk(k, dim=1)
    places, order = places.sort(dim=1)  # dead latents ascend
    values, size = pre.gather(1, places), size.gather(1, order)
    values = values if signed else values.clamp(min=0)
    crow = k * torch.arange(n_tokens + 1, dtype=torch.int32, device=dead.device)
    latents = Latents(crow, dead[places].int().reshape(-1), values.reshape(-1), coder.d_sae, (n_tokens,))
    slope = None if config.straight_through else (size > 0).to(values.dtype).reshape(-1)
    left = error - decode(latents, coder.W_dec)
    scale = left.new_full((), config.coefficient)
    if config.normalised:
        spread = (weights * (error - error.mean(0)).square()).sum()
        scale = torch.where(spread > 0, scale / spread, 0)
    value = scale * (weights * left.square()).sum()
    return OnPart((ExtraEntries(latents, weights * left * (-2 * scale), slope),), value)


def ghost_gradients(
    part: Part[SparseCoder], encoding: Encoding, batch: Batch, dead: Tensor, config: GhostGradients
) -> OnPart:
    """``α · s · Σ w ‖e - ĝ‖²`` with ĝ the decode of ``exp(pre)`` of dead latents, scaled to half of e's norm.

    The norms' ratio ``‖e‖ / 2‖ĝ‖`` of each token, e and ``s = reconstruction / (Σ w ‖e - ĝ‖² + 1e-6)`` are constants.
    """
    coder, error, weights = part.coder, _own(part, batch.error_BO), _own(part, batch.weights_BO)
    n_tokens = len(error)
    values = coder.pre_activations_of(encoding, dead).exp()
    tokens = torch.arange(n_tokens, device=dead.device).repeat_interleave(dead.numel())
    latents = latents_from_pairs(tokens, dead.repeat(n_tokens), values.reshape(-1), n_tokens, coder.d_sae)
    out = decode(latents, coder.W_dec)
    ratio = error.norm(dim=1, keepdim=True) / (2 * out.norm(dim=1, keepdim=True) + 1e-6)
    left = error - ratio * out
    ghost = (weights * left.square()).sum()
    scale = config.coefficient * batch.terms["mse"] / (ghost + 1e-6)
    g_out = weights * left * ratio * (-2 * scale)
    return OnPart((ExtraEntries(latents, g_out, latents.values),), scale * ghost)


def pre_activation_loss(coder: SparseCoder, encoding: Encoding, dead_F: Tensor, config: PreActivationLoss) -> OnPart:
    """``α · mean over tokens of Σ_i ReLU(θ_i - pre_i) ‖W_dec_i‖``, of all latents or the dead ones.

    Value and gradient are the same linear function of the sums over tokens for a latent, but for entries above the
    threshold, so both are computed from the sum of inputs less those entries.
    """
    n_tokens = len(encoding.x_BI)
    chosen = dead_F if config.dead_only else torch.ones_like(dead_F)
    unweighted = config.coefficient / max(1, n_tokens) * chosen.to(coder.dtype)
    norms = coder.W_dec.norm(dim=1)
    share = unweighted * norms
    thresholds = torch.as_tensor(coder.activation.thresholds(), dtype=coder.dtype, device=coder.device)
    thresholds = thresholds.expand(coder.d_sae)
    above = coder.activation.above(encoding.selection)
    if above is None:
        over = coder.pre_activations_of(encoding, torch.arange(coder.d_sae, device=coder.device)) - thresholds
        above = latents_from_mask(over, over > 0)
    above = above.where(chosen[above.indices], above.values)
    n_below = n_tokens - above.counts()
    below = n_tokens * thresholds - _sums(coder, encoding)
    below.index_add_(0, above.indices, above.values).clamp_(min=0)
    value = (share * below).sum()
    thresholds_gradient = coder.activation.threshold_gradients(share * n_below)
    own = {f"activation.{name}": gradient for name, gradient in thresholds_gradient.items()}
    decoder_scale = (unweighted * below / norms.clamp(min=1e-8)).unsqueeze(1)
    return OnPart((Everywhere(-share, above, decoder_scale),), value, own)


def _sums(coder: SparseCoder, encoding: Encoding) -> Tensor:
    """Pre-activations summed over tokens, from the sum of inputs: ``[F]``."""
    with torch.autocast(coder.device.type, enabled=False):
        sums = coder.W_enc_rows @ encoding.x_BI.sum(0)
    if coder.b_enc is not None:
        sums = sums + len(encoding.x_BI) * coder.b_enc
    return sums if encoding.noise_BF is None else sums + encoding.noise_BF.sum(0)


def default_k(coder: SparseCoder) -> int:
    """A sixteenth of the output width, at least 4."""
    return max(4, coder.d_out // 16)


def dead_after(policy: Revive | None, n_tokens: int) -> int:
    """Tokens without firing after which a latent counts as dead in a run of ``n_tokens``."""
    given = (
        policy.rule.dead_after_tokens if isinstance(policy, Resample) else getattr(policy, "dead_after_tokens", None)
    )
    if given is not None:
        return int(given)
    if isinstance(policy, Resample):
        return max(1, resample_every(policy, n_tokens) // 2)
    return max(1, min(10_000_000, n_tokens // 10))


def resample_every(policy: Resample, n_tokens: int) -> int:
    """Tokens between resamplings in a run of ``n_tokens``."""
    every = policy.rule.every_tokens
    return every if every is not None else max(1, n_tokens // 8)


def is_resampling_step(policy: Resample, step: int, n_steps: int, n_tokens: int, batch_size: int) -> bool:
    """Whether dead latents are replaced after ``step`` steps of ``n_steps``: none in the last quarter of the run."""
    every = max(1, resample_every(policy, n_tokens) // batch_size)
    n_times = policy.rule.n_times
    return step % every == 0 and step <= 0.75 * n_steps and (n_times is None or step <= n_times * every)


def rewarm_steps(policy: Resample, n_steps: int, batch_size: int) -> int:
    """Steps over which the learning rate rises again after a resampling."""
    rule = policy.rule
    return round(rule.rewarm_fraction * n_steps if rule.rewarm_tokens is None else rule.rewarm_tokens / batch_size)


def _own(part: Part[SparseCoder], of_all: Tensor) -> Tensor:
    """The columns a part writes; their mean over sites where one decoder serves several."""
    if of_all.shape[1] == 1:
        return of_all
    return part.take(of_all) / len(part.writes)
