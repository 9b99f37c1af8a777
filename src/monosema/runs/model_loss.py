"""How much worse the language model gets, token by token, with a dictionary spliced in: resampling draws from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError
from monosema.core.seeds import random_stream
from monosema.data import ActivationStream
from monosema.data.order import indexed
from monosema.models.splice import instead, placed


def model_loss_increase(
    stream: ActivationStream, seed: int, *, one_per_context: bool = False
) -> Callable[[Dictionary, int], tuple[Tensor, Tensor]]:
    """A function of a coder and a number of contexts: rows ``[n, d]`` and the loss increase at each ``[n]``, in nats.

    The increase at position t is the cross-entropy of predicting token t + 1 with the site replaced by the coder's
    reconstruction, less that of the model alone. Contexts are drawn by ``seed``. Special positions, and those that the
    stream leaves out for their norm, keep their value and are left out, as is the last position. With
    ``one_per_context`` a context gives one row, drawn with probability proportional to its increase; one in which no
    position increases gives none. Source: Bricken et al. 2023, "Neuron Resampling".
    """

    @torch.no_grad()
    def measure(coder: Dictionary, n_contexts: int) -> tuple[Tensor, Tensor]:
        model, split = stream.model, indexed(stream.split)
        names = [str(site) for site in (*coder.reads, *coder.writes)]
        if (len(coder.reads), len(coder.writes)) != (1, 1) or not model.site(names[1]).writable:
            raise ConfigError('Resample(by="model_loss") needs one site read and one written, and that one writable')
        name, written = names
        order = torch.randperm(split.n_contexts, generator=random_stream(seed, "model_loss"))[:n_contexts]
        generator = random_stream(seed, "model_loss", "position")
        rows, losses = [], []
        for part in order.split(stream.model_batch_size):
            ids = split.contexts[part].to(device=model.device, dtype=torch.int64)
            documents, usable = split.documents_of(part), split.row_mask(part).to(model.device)
            sites = list(dict.fromkeys(names))
            values = model.capture(ids, sites, documents_BT=documents)
            x, y = values[name], values[written]
            if (rule := stream.norm_rule()) is not None:
                flat = torch.cat([values[site] for site in sites], dim=2).flatten(0, 1)
                outlier = rule.of_sites(sites).outliers(flat).reshape(usable.shape)
                usable = usable & ~outlier.to(usable.device)
            replaced = placed(y, usable, coder(x.to(coder.dtype))[usable])
            clean = _token_losses(model(ids, documents_BT=documents), ids)
            with model.edits({written: instead(replaced)}):
                spliced = _token_losses(model(ids, documents_BT=documents), ids)
            increase, kept = spliced - clean, usable[:, :-1]
            if documents is not None:  # padding is no target, nor is a document that its predictor does not see
                kept = kept & (documents[:, 1:] == documents[:, :-1]).to(kept.device)
            if one_per_context:
                kept = _one_each(increase, kept, generator)
            both = [values[site][:, :-1][kept] for site in sites]
            rows.append(torch.cat(both, dim=1))
            losses.append(increase[kept])
        return torch.cat(rows), torch.cat(losses)

    return measure


def _one_each(increase_BT: Tensor, usable_BT: Tensor, generator: torch.Generator) -> Tensor:
    """A mask ``[B, T]`` of one usable position in each row, drawn ∝ its increase; none where no loss increases."""
    weights = torch.where(usable_BT, increase_BT.double().clamp(min=0), 0.0).cpu()
    drawn = torch.zeros_like(usable_BT)
    possible = (weights.sum(1) > 0).nonzero().squeeze(1)
    if possible.numel() > 0:
        position = torch.multinomial(weights[possible], 1, generator=generator).squeeze(1)
        drawn[possible.to(drawn.device), position.to(drawn.device)] = True
    return drawn


def _token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
