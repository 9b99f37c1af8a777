"""The contexts of a text that features are read from, and a coder's rows in them.

Shape letters: N contexts read, B contexts of a batch, T tokens of a context.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from monosema.coders import Dictionary
from monosema.data import TokenSplit
from monosema.data.chosen import choose_contexts, require_known_ids, split_to_read
from monosema.data.dictionary_sites import side_by_side, sites_of
from monosema.data.named_models import NamedModels
from monosema.data.outliers import MEDIAN_ROWS, NormRule
from monosema.data.recorded_outliers import OutlierMultiple, estimated, first_rows, joined, rule_for


@dataclass(frozen=True)
class Source:
    """Where rows come from: contexts in models."""

    models: NamedModels
    read: tuple[str, ...]
    """The sites read, whose values lie side by side in the coder's input."""
    written: tuple[str, ...]
    """The sites written; the same for an SAE."""
    split: TokenSplit
    which: Tensor
    """[N] int64: the number in the split of each context."""
    contexts_NT: Tensor

    def rows(self, part: slice, usable_BT: Tensor, *, has_target: bool) -> tuple[Tensor, Tensor]:
        """``[n, d_in]`` at the usable positions of the contexts ``part``; and ``[n, d_out]`` of the sites written, or
        the same tensor again where these are the sites read, and without ``has_target``."""
        same = not has_target or self.written == self.read
        names = list(dict.fromkeys(self.read if same else self.read + self.written))
        documents = self.split.documents_of(self.which[part])
        captured = self.models.capture(self.contexts_NT[part], names, documents)

        x = side_by_side(captured, self.read, usable_BT)
        return x, x if same else side_by_side(captured, self.written, usable_BT)


def open_source(coder: Dictionary, models: NamedModels, tokens: object, n_tokens: int | None) -> Source:
    """The contexts that ``evaluate`` measures for so many tokens, and the coder's sites in ``models``."""
    read, written = sites(coder, models)
    all_models = list(models.by_name.values()) or [models.first]
    split = split_to_read(tokens, all_models)
    which = choose_contexts(split, n_tokens)
    contexts = split.contexts[which]
    require_known_ids(contexts, all_models)
    return Source(models, read, written, split, which, contexts)


def outlier_rule(coder: Dictionary, source: Source, special_NT: Tensor, multiple: OutlierMultiple) -> NormRule | None:
    """Which rows are left out; by the median of the first ones where the dictionary records none."""
    rule = rule_for(coder, multiple)
    if rule is None or rule.medians is not None:
        return rule
    n_contexts = -(-MEDIAN_ROWS // max(1, special_NT.shape[1]))
    parts = (slice(first, first + n_contexts) for first in range(0, len(special_NT), n_contexts))
    both, _ = first_rows(parts, lambda part: joined(*source.rows(part, ~special_NT[part], has_target=True)))
    if both is None:
        return None
    x = both[:, : coder.d_in]
    return estimated(rule, coder, x, x if both.shape[1] == coder.d_in else both[:, coder.d_in :])


def sites(coder: Dictionary, models: NamedModels) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sites whose values lie side by side in the coder's input, and those in its output."""
    found = sites_of(coder, models.by_name or {"": models.first}, to_be_written=False, only_read=True)
    return found.read, found.written
