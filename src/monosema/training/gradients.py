"""One batch: its losses, and what they ask of every weight.

Shape letters: B tokens, F latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Encoding, SparseCoder, TrainableDictionary
from monosema.coders.encoder_product import compiled_encoder_product
from monosema.core.seeds import random_stream
from monosema.training.config import TrainingConfig
from monosema.training.objectives import Loss, Objective, asked
from monosema.training.penalties import needed_window, penalty
from monosema.training.revive import Dead
from monosema.training.term import TermContext

WORKSPACE_BYTES = {"cpu": 2**24, "gpu": 2**30}
"""Of pre-activations held at once."""
LEAST_TOKENS = 256


@dataclass(frozen=True)
class StepState:
    """What a step's losses depend on beside weights and rows."""

    number: int
    """Steps before it."""
    coefficient: float
    """The sparsity coefficient λ."""
    p: float
    """The power of p-annealing."""
    next_p: float | None
    """The coming power, shortly before it comes."""
    dead: tuple[Dead, ...]
    """Which latents of each part are dead."""


@dataclass(frozen=True)
class BatchGradients:
    """What came of a batch, or of a part of it."""

    gradients: dict[str, Tensor]
    """By parameter."""
    loss: Loss
    encodings: tuple[Encoding, ...]
    """One for each part of the dictionary (and each part of the batch)."""
    terms: dict[str, Tensor]
    """Every term of the loss, those of the policy for dead latents included."""
    next_penalty: Tensor | None
    """The penalty under ``StepState.next_p``."""


class GradientPass:
    """Computes ``BatchGradients`` for one dictionary and objective.

    ``directions [n, d_out]`` are those of the SAE of ``config.sparse_connection``; with ``unit_norm`` decoder gradients
    are projected off the rows.
    """

    def __init__(
        self,
        coder: TrainableDictionary,
        config: TrainingConfig,
        objective: Objective,
        *,
        unit_norm: bool,
        directions: Tensor | None = None,
    ):
        context = TermContext(coder, directions, unit_norm)
        self._terms = (*objective.terms, *(each.build(context) for each in config.further_terms))
        self.coder, self.config, self.objective = coder, config, objective
        self.unit_norm, self.directions = unit_norm, directions
        self._product = None if config.compile is None else compiled_encoder_product(config.compile)
        self._workspaces: list[Tensor] = []

    def __call__(self, x: Tensor, y: Tensor, state: StepState, pre_BF: Tensor | None = None) -> BatchGradients:
        """Of scaled inputs ``x [B, d_in]`` and targets ``y [B, d_out]``, in ``gradient_accumulation`` parts.

        ``pre_BF``: pre-activations of a dictionary of one part, where they are made already.
        """
        n = self.config.gradient_accumulation
        if n == 1:
            return self._part(x, y, state, 0, pre_BF)
        parts = list(zip(x.tensor_split(n), y.tensor_split(n), strict=True))
        done = [self._part(xs, ys, state, number) for number, (xs, ys) in enumerate(parts)]
        return _mean(done, [len(xs) / len(x) for xs, _ in parts])

    def _part(
        self, x: Tensor, y: Tensor, state: StepState, number: int, pre_BF: Tensor | None = None
    ) -> BatchGradients:
        coder, parts = self.coder, self.coder.parts
        window = needed_window(self.objective.sparsity)
        encodings = tuple(
            part.coder.encode_select(
                x[:, part.read],
                None if pre_BF is not None else self._workspace(i, part.coder, len(x)),
                window=window,
                noise_BF=self._noise(i, len(x), state.number, number),
                product=self._product,
                scaled=True,
                pre_BF=pre_BF,
            )
            for i, part in enumerate(parts)
        )
        batch = self.objective.batch(coder, encodings, x, y, state.coefficient, state.p, state.dead)
        loss, asks = asked(self._terms, batch)
        gradients: dict[str, Tensor] = {}
        for i, (part, encoding) in enumerate(zip(parts, encodings, strict=True)):
            found = {name: on.of_part(i) for name, on in asks if on.of_part is not None}
            own = {name: each for name, each in found.items() if each is not None}
            mine = part.coder.backward(
                encoding,
                part.take(loss.g_out),
                *(each for of_term in own.values() for each in of_term.contributions),
                levels=batch.levels[i],
                unit_norm=self.unit_norm,
            )
            for name, of_term in own.items():
                if of_term.value is not None:
                    batch.terms[name] = batch.terms.get(name, 0) + of_term.value
                for parameter, value in of_term.parameters.items():
                    mine[parameter] = mine[parameter] + value
            gradients |= {part.prefix + name: value for name, value in mine.items()}
        coder.add_own_gradients_(gradients, loss.g_out)
        return BatchGradients(gradients, loss, encodings, batch.terms, self._next_penalty(encodings, state.next_p))

    def _next_penalty(self, encodings: tuple[Encoding, ...], p: float | None) -> Tensor | None:
        sparsity = self.objective.sparsity
        if p is None or sparsity is None:
            return None
        pairs = zip(self.coder.parts, encodings, strict=True)
        return torch.stack([penalty(part.coder, encoding, sparsity, 0.0, p).value for part, encoding in pairs]).sum()

    def _noise(self, part: int, n_tokens: int, step: int, number: int) -> Tensor | None:
        if self.config.pre_noise == 0:
            return None
        coder = self.coder.parts[part].coder
        generator = random_stream(self.config.seed, "pre_noise", step, part, number)
        noise = torch.randn(n_tokens, coder.d_sae, generator=generator, dtype=torch.float32)
        return noise.mul_(self.config.pre_noise).to(device=coder.device, dtype=coder.dtype)

    def _workspace(self, part: int, coder: SparseCoder, n_tokens: int) -> Tensor:
        while len(self._workspaces) <= part:
            self._workspaces.append(torch.empty(0))
        rows = tokens_at_a_time(coder, n_tokens)
        if len(self._workspaces[part]) < rows:
            self._workspaces[part] = torch.empty(rows, coder.d_sae, dtype=coder.dtype, device=coder.device)
        return self._workspaces[part]


def tokens_at_a_time(coder: SparseCoder, n_tokens: int, device: torch.device | None = None) -> int:
    """How many tokens' pre-activations are held at once on ``device``, the coder's own by default: few enough that a
    processor's cache keeps them for the selection, many enough for the product's speed."""
    size = WORKSPACE_BYTES["cpu" if (device or coder.device).type == "cpu" else "gpu"] // (
        coder.d_sae * coder.dtype.itemsize
    )
    return min(n_tokens, max(LEAST_TOKENS, size))


def _mean(done: Sequence[BatchGradients], shares: Sequence[float]) -> BatchGradients:
    """Parts of a batch as one, each with its share of the tokens."""
    last = done[-1]
    gradients = {
        name: sum((d.gradients[name] * s for d, s in zip(done, shares, strict=True)), torch.zeros_like(value))
        for name, value in last.gradients.items()
    }
    names = dict.fromkeys(name for d in done for name in d.terms)
    terms = {
        name: torch.stack([d.terms[name] * s for d, s in zip(done, shares, strict=True) if name in d.terms]).sum()
        for name in names
    }
    loss = Loss(
        terms,
        _sum([None if d.loss.penalty is None else d.loss.penalty * s for d, s in zip(done, shares, strict=True)]),
        torch.cat([d.loss.error_BO for d in done]),
        last.loss.weights_BO,
        last.loss.g_out,
        _sum([d.loss.energies for d in done]),
    )
    coming = [None if d.next_penalty is None else d.next_penalty * s for d, s in zip(done, shares, strict=True)]
    return BatchGradients(gradients, loss, tuple(e for d in done for e in d.encodings), terms, _sum(coming))


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.stack(given).sum(0) if given else None
