"""Which contexts are evaluated, and which of their positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.data import Tokens, TokenSplit
from monosema.data.chosen import choose_contexts, require_known_ids, split_to_read, spread_evenly
from monosema.data.contexts import Contexts
from monosema.evaluation.report import Overlap
from monosema.metrics.groups import N_GROUPS
from monosema.models import LanguageModel


@dataclass(frozen=True)
class EvaluationContexts:
    """Whole contexts and what is known about them."""

    contexts: Tensor
    """``[n, T]`` int64 token ids."""
    special: Tensor
    """``[n, T]`` bool: True where a position is special, padding or not among those chosen, and therefore neither
    measured nor edited."""
    no_target: Tensor
    """``[n, T]`` bool: True where no prediction of the token before counts: it is special, padding, or the first of a
    document that the one before cannot attend to."""
    documents: Tensor | None
    """``[n, T]`` the number of each position's document, where models need it (``TokenSplit.documents``)."""
    n_loss_contexts: int
    """The first so many are run spliced and ablated as well."""
    groups: Tensor
    """``[n, T]`` int64: the group of documents that a position belongs to (``metrics.groups``)."""
    n_groups: int
    """How many there are."""
    n_documents: int
    """Documents with a position that is measured."""
    split: TokenSplit
    """The split they come from."""

    def documents_of(self, part: slice) -> Tensor | None:
        """``documents`` of some contexts."""
        return None if self.documents is None else self.documents[part]


def evaluation_contexts(
    tokens: Tokens | TokenSplit | Tensor,
    models: Collection[LanguageModel],
    n_tokens: int | None,
    n_loss_tokens: int | None,
) -> EvaluationContexts:
    """Contexts of ``tokens`` that hold ``n_tokens`` tokens (all where None), those that hold ``n_loss_tokens`` first.

    Both are spread evenly over the split that ``data.chosen`` reads. Errors are those of ``split_to_read``, and
    ``DataError`` where an id is unknown to a model.
    """
    split = split_to_read(tokens, models)
    chosen = choose_contexts(split, n_tokens)
    for_losses = spread_evenly(len(chosen), n_loss_tokens, split.n_tokens / split.n_contexts)
    others = torch.ones(len(chosen), dtype=torch.bool)
    others[for_losses] = False
    which = torch.cat([chosen[for_losses], chosen[others]])
    used, documents = split.contexts[which], split.documents_of(which)
    require_known_ids(used, models)
    no_target = ~split.text_mask(which)
    if documents is not None:
        no_target[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    special = ~split.row_mask(which)
    numbers = _document_numbers(split, which, is_packed=not isinstance(tokens, Tensor))
    found = numbers[~special].unique()
    n_groups = min(len(found), N_GROUPS)
    groups = torch.searchsorted(found, numbers) % max(1, n_groups)
    return EvaluationContexts(
        contexts=used.to(torch.int64),
        special=special,
        no_target=no_target,
        documents=documents,
        n_loss_contexts=len(for_losses),
        split=split,
        groups=groups,
        n_groups=n_groups,
        n_documents=len(found),
    )


def overlap_with_training(coder: Dictionary, tokens: object, evaluated: TokenSplit) -> Overlap:
    """Whether ``evaluated`` was trained on, by the fingerprint of the training tokens in the coder's metadata."""
    trained = training_fingerprint(coder)
    if trained is None:
        return "unknown"
    if trained == evaluated.fingerprint:
        return "same tokens"
    return "none" if isinstance(tokens, Tokens) and trained == tokens.train.fingerprint else "unknown"


def training_fingerprint(coder: Dictionary) -> str | None:
    """The fingerprint of the split the coder was trained on, where its metadata records it as a stream does."""
    record = coder.metadata.get("tokens")
    return record.get("fingerprint") if isinstance(record, Mapping) else None


def _document_numbers(split: TokenSplit, which: Tensor, *, is_packed: bool) -> Tensor:
    """``[n, T]`` int64: of each position of the contexts ``which`` the number of its document in the split.

    A document begins at a special token inside a context and goes on in the next context. Where a split says which
    document a position belongs to (``TokenSplit.documents``), where no context has a special token inside, and where
    contexts were given as a tensor, each context also begins one.
    """
    numbers = torch.empty(len(which), split.context_size, dtype=torch.int64)
    begins = [_begins(split, part) for part in split.parts()]
    goes_on = is_packed and split.documents is None and any(bool(part[:, 1:].any()) for part in begins)
    first, offset = 0, 0
    for part in begins:
        if not goes_on:
            part[:, 0] = True
        counted = part.flatten().cumsum(0).reshape(part.shape) + offset
        inside = (which >= first) & (which < first + len(part))
        numbers[inside] = counted[which[inside] - first]
        first, offset = first + len(part), int(counted[-1, -1])
    return numbers


def _begins(split: TokenSplit, contexts: Contexts) -> Tensor:
    """``[n, T]`` bool: where a document begins inside a context."""
    begins = torch.zeros(contexts.ids.shape, dtype=torch.bool)
    if contexts.documents is None:
        begins[:, 1:] = split.special_mask(contexts.ids)[:, 1:]
    else:
        begins[:, 1:] = contexts.documents[:, 1:] != contexts.documents[:, :-1]
    return begins
