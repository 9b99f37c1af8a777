"""BatchTopK dictionaries on the embedded model, and their share of variance explained on held-out text."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence

import torch
from report import machine
from torch import Tensor

import monosema as ms
from monosema.metrics import fve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the site and the dictionary."""
    parser.add_argument("--site", default="blocks.2.hook_resid_post")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--heldout-tokens", type=int, default=30_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)


def heldout_rows(model: ms.LanguageModel, split: ms.data.TokenSplit, site: str, n_tokens: int) -> Tensor:
    """At most so many rows ``[n, d]`` of contexts spread evenly over the text."""
    n = min(len(split), -(-n_tokens // split.context_size))
    contexts = split.contexts[torch.arange(n) * len(split) // n].long()
    parts = [model.capture(part, [site])[site][~split.special_mask(part)] for part in contexts.split(16)]
    return torch.cat(parts).float()


def trained_fve(
    source: ms.ActivationStream | ms.ActivationCache, heldout: Tensor, seed: int, options: argparse.Namespace
) -> float:
    """FVE on ``heldout`` of the dictionary as saved."""
    coder = ms.SAE(source.d_in, options.latents, activation=ms.BatchTopK(k=options.k), seed=seed)
    config = ms.TrainingConfig(tokens=options.tokens // options.batch_size * options.batch_size, seed=seed)
    result = ms.train(coder, source, config, evaluation=False, progress=False)
    with torch.no_grad():
        return fve(heldout, torch.cat([result.coder(part) for part in heldout.split(4096)]))


def spread(values: Sequence[float]) -> float:
    """The largest less the smallest."""
    return max(values) - min(values)


def cells(values: Sequence[float], reference: Sequence[float]) -> list[str]:
    """Each seed's FVE, their mean, and how far it is from the reference's."""
    mean = statistics.mean(values)
    return [*(f"{value:.4f}" for value in values), f"{mean:.4f}", f"{mean - statistics.mean(reference):+.5f}"]


def header(first: str, seeds: Iterable[int]) -> list[str]:
    """Of a table with ``cells``."""
    return [first, *(f"seed {seed}" for seed in seeds), "mean", "less the first row's"]


def setting(options: argparse.Namespace, n_heldout: int) -> str:
    """What all the runs share."""
    return (
        f"Embedded model, {options.site}; BatchTopK, {options.latents:,} latents, k {options.k}, {options.tokens:,} "
        f"tokens in batches of {options.batch_size:,}; {n_heldout:,} held-out rows; {machine(options.threads)}, torch "
        f"{torch.__version__}"
    )
