"""Attention patterns of edited runs beside those of the clean run, where a dictionary writes queries or keys.

Shape letters: B contexts, T positions, H query heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.metrics import GroupSums, pattern_kl
from monosema.models import LanguageModel
from monosema.models.patterns import PatternHeads, pattern_heads, why_no_pattern

TERMS = ("n", "kl")
"""What is summed over queries: their number, and the mean over heads of ``KL(clean || run)``."""


@dataclass(frozen=True)
class PatternSums:
    """Sums over the queries that count; those of two sets of contexts add to those of both."""

    groups: GroupSums
    """By group of documents: ``TERMS``."""
    positions: Tensor
    """``[T, 2]`` float64: by position in the context, ``TERMS``."""

    @classmethod
    def of(
        cls, clean: Tensor, run: Tensor, heads: tuple[int, ...], counted: Tensor, groups: Tensor, n_groups: int
    ) -> PatternSums:
        """Of the ``heads`` of two patterns ``[B, H, T, T]``, at the queries ``counted [B, T]``.

        ``groups [B, T]`` are those of the positions' documents, of which there are ``n_groups``.
        """
        kl = torch.stack([pattern_kl(clean[:, head], run[:, head]).cpu() for head in heads]).mean(0)
        counted = counted.cpu()
        terms = torch.stack([counted.double(), kl.masked_fill(~counted, 0.0)], -1)
        return cls(GroupSums.of(terms[counted], groups.cpu()[counted], n_groups), terms.sum(0))

    def __add__(self, other: PatternSums) -> PatternSums:
        return PatternSums(self.groups + other.groups, self.positions + other.positions)

    @property
    def per_position(self) -> Tensor:
        """``[T]`` float64: the mean KL of the queries at each position, NaN where none counts."""
        n, kl = self.positions.unbind(1)
        return kl / n


def counted_queries(counted: Tensor, documents: Tensor | None, *, is_encoder: bool) -> Tensor:
    """``[B, T]`` bool: of the positions ``counted``, those that have keys to choose among.

    A decoder's first position of a context, or of a document kept apart, sees itself alone: its pattern is 1 whatever
    its query is.
    """
    if is_encoder:
        return counted
    has_choice = torch.ones_like(counted)
    has_choice[:, 0] = False
    if documents is not None:
        has_choice[:, 1:] = (documents[:, 1:] == documents[:, :-1]).to(counted.device)
    return counted & has_choice


def compared_heads(places: Iterable[tuple[str, str]], models: Mapping[str, LanguageModel]) -> PatternHeads | str | None:
    """The heads whose patterns are compared where a dictionary writes ``places`` (names of models and hook names).

    None unless it writes one site, of queries or keys; in place of heads whose model does not give its patterns, why.
    """
    (key, hook), *others = places
    heads = None if others else pattern_heads(models[key], hook)
    return heads and (why_no_pattern(models[key], heads.layer) or heads)
