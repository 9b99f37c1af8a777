"""``collect_features``: one streaming pass over text, and everything a person needs to read each latent.

Shape letters: B contexts of a batch, T tokens of a context, F latents, E active entries, C contexts kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.coders.sites import join_names
from monosema.core.errors import ConfigError, DataError
from monosema.core.peers import explains_options
from monosema.core.progress import Progress
from monosema.data import Tokens, TokenSplit
from monosema.data.named_models import NamedModels, split_site_name
from monosema.data.recorded_outliers import OutlierMultiple, joined
from monosema.data.trained_on import model_notes
from monosema.features.logits import ExtremeLogits, extreme_logits
from monosema.features.source import open_source, outlier_rule
from monosema.features.statistics import LatentStatistics
from monosema.features.store import ContextTexts, FeatureStore, Provenance
from monosema.features.texts import TokenTexts
from monosema.features.windows import BestContexts, Entries
from monosema.metrics import require_finite
from monosema.models import LanguageModel

_PRE_ACTIVATIONS_PER_STEP = {"cpu": 2**23}
"""Pre-activations computed at once, by device (2**28 where not named), so that wide dictionaries fit."""


@explains_options
def collect_features(
    coder: Dictionary,
    model: LanguageModel | Mapping[str, LanguageModel],
    tokens: Tokens | TokenSplit | Tensor,
    *,
    n_tokens: int | None = 200_000,
    contexts_per_latent: int = 10,
    batch_size: int = 32,
    n_histogram_bins: int = 30,
    n_logits: int = 10,
    outlier_norm_multiple: OutlierMultiple = "recorded",
    progress: bool = True,
) -> FeatureStore:
    """Read the text once and keep, for every latent, its numbers, its best contexts and its extreme logits.

    Special positions, padding and positions that were not chosen count nowhere: not as tokens, not as activations, not
    in contexts. A latent fires on a token where its activation under the inference rule is not zero. Each context gives
    a latent at most one example, by its maximum there; larger maxima first, then earlier contexts. Results do not
    depend on ``batch_size`` but for the rounding of the model's own matrix products. ``statistics``, ``windows`` and
    ``logits`` define every number.

    Args:
        coder: any dictionary; read as it is.
        model: the language model it reads; several by name, for sites such as ``base:blocks.2.hook_resid_post``.
        tokens: a ``Tokens`` (its held-out split is used), one split, or token ids ``[n, T]``.
        n_tokens: tokens to read, special ones included, in whole contexts spread evenly over the split: those that
            ``evaluate`` measures for the same number. None for all.
        contexts_per_latent: contexts kept per latent.
        batch_size: contexts in a forward pass.
        n_histogram_bins: bins of each histogram; between half of them and all are used.
        n_logits: tokens kept at each end of the logits.
        outlier_norm_multiple: positions where the norm of a site read or written exceeds so many times the median
            there count nowhere, like special ones: as the dictionary was trained, by default. See ``evaluate``.
        progress: show a bar on a terminal, a logged line elsewhere.

    Memory beyond model and text: a few arrays ``[batch_size, d_sae]`` and ``[d_sae, contexts_per_latent]``, and the
    activations of the contexts kept. Never ``[n_tokens, d_sae]``.

    Raises:
        ConfigError: an option is not positive, the coder names no site, or the tokens are another tokenizer's.
        UnknownNameError: the model has no such site.
        ShapeError: the coder's width is not the site's, or contexts are longer than the model's.
        DataError: no usable token, an activation that is not finite, or one that is negative.
    """
    _check_options(n_tokens, contexts_per_latent, batch_size, n_histogram_bins, n_logits)
    models = NamedModels(model)
    source = open_source(coder, models, tokens, n_tokens)
    split, which, contexts_NT = source.split, source.which, source.contexts_NT
    special_NT = ~split.row_mask(which)
    rule = outlier_rule(coder, source, special_NT, outlier_norm_multiple)
    n_outliers = 0
    statistics = LatentStatistics(coder.d_sae, n_histogram_bins)
    best = BestContexts(coder.d_sae, contexts_per_latent)
    with Progress("features", contexts_NT.numel(), enabled=progress) as bar:
        for first in range(0, len(contexts_NT), batch_size):
            part = slice(first, min(first + batch_size, len(contexts_NT)))
            usable_BT = ~special_NT[part]
            rows, target = source.rows(part, usable_BT, has_target=rule is not None)
            where = f"contexts {int(which[first])} to {int(which[part.stop - 1])},"
            require_finite(f"activations read at {join_names(source.read)!r}, {where}", rows)
            if rule is not None:
                outlier = rule.outliers(joined(rows, target))
                rows = rows[~outlier.to(rows.device)] if bool(outlier.any()) else rows
                usable_BT[usable_BT.clone()] = ~outlier
                n_outliers += int(outlier.sum())
            entries = _active_entries(coder, rows, usable_BT, first)
            peaks_BF = _peaks(entries, first, len(usable_BT), coder.d_sae)
            statistics.update(entries.latent, entries.value, peaks_BF.amax(0), int(usable_BT.sum()))
            best.update(entries, peaks_BF, first)
            bar.advance(usable_BT.numel())
    if statistics.n_tokens == 0:
        raise DataError("every token read is special; pretokenise with exclude_special_tokens=False, or give more text")
    windows = best.windows()
    logits = _logits(coder, models, n_logits)
    table = logits if isinstance(logits, ExtremeLogits) else None
    texts, logit_texts = _context_texts(windows.context, contexts_NT, which, split, models.first, table)
    return FeatureStore(
        provenance=Provenance(
            model=", ".join(f"{key}: {each.name}" for key, each in models.by_name.items()) or models.first.name,
            hook_name=coder.hook_name or "",
            hook_name_out=coder.hook_name_out or "",
            split=split.name,
            tokens_fingerprint=split.fingerprint,
            n_contexts=len(contexts_NT),
            context_size=split.context_size,
            n_special_positions=int(special_NT.sum()),
            model_fingerprint=_fingerprint(models),
            notes=tuple(model_notes(coder, model)),
            n_outlier_positions=n_outliers,
            architecture=coder.architecture,
            k=coder.n_active,
            is_stack=coder.is_layered,
        ),
        numbers=statistics.numbers(),
        windows=replace(windows, context=_in_split(windows.context, which)),
        texts=texts,
        logits=table,
        logits_note=logits if isinstance(logits, str) else None,
        logit_texts=logit_texts,
    )


@torch.no_grad()
def _active_entries(coder: Dictionary, rows: Tensor, usable_BT: Tensor, first: int) -> Entries:
    """The entries of a batch of contexts that is numbered from ``first`` on, on the CPU; ``rows`` are the usable."""
    places = usable_BT.flatten().nonzero().squeeze(1)
    parts = []
    for row, latent, value in _encoded(coder, rows):
        if bool((value < 0).any()):
            raise DataError(
                "a latent has negative activations; features are read by their largest activation, which a signed "
                "activation function does not have"
            )
        place = places[row]
        context = torch.div(place, usable_BT.shape[1], rounding_mode="floor")
        parts.append((latent, first + context, place - context * usable_BT.shape[1], value))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64)
        return Entries(none, none, none, none.float())
    return Entries(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _encoded(coder: Dictionary, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Row, latent and float32 value of the entries that are not zero, some rows at a time, on the CPU."""
    at_once = max(1, _PRE_ACTIVATIONS_PER_STEP.get(coder.device.type, 2**28) // coder.d_sae)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once].to(device=coder.device, dtype=coder.dtype)
        latents = coder.encode_sparse(part)
        value = latents.values.float().cpu()
        fired = value != 0
        yield start + latents.rows().cpu()[fired], latents.indices.long().cpu()[fired], value[fired]


def _peaks(entries: Entries, first: int, n_contexts: int, d_sae: int) -> Tensor:
    """[B, F] float32: the largest activation of each latent in each context, 0 where it does not fire."""
    peaks = torch.zeros(n_contexts * d_sae)
    peaks.scatter_reduce_(0, (entries.context - first) * d_sae + entries.latent, entries.value, "amax")
    return peaks.view(n_contexts, d_sae)


def _context_texts(
    kept_FK: Tensor,
    contexts_NT: Tensor,
    which: Tensor,
    split: TokenSplit,
    model: LanguageModel,
    logits: ExtremeLogits | None,
) -> tuple[ContextTexts, dict[int, int]]:
    """The kept contexts as text, and the place in the vocabulary of each token in the logits."""
    kept = kept_FK[kept_FK >= 0].unique()
    texts = TokenTexts(model.tokenizer, split.special_token_ids)
    vocabulary: dict[str, int] = {}

    def number_of(text: str) -> int:
        return vocabulary.setdefault(text, len(vocabulary))

    token_ids = contexts_NT[kept].to(torch.int32)
    documents = split.documents_of(which[kept])
    lengths = [token_ids.shape[1]] * len(kept) if documents is None else (documents >= 0).sum(1).tolist()
    text_ids = []  # of padding there is nothing to show
    for context, length in zip(token_ids.tolist(), lengths, strict=True):
        shown = [-1 if text is None else number_of(text) for text in texts.context(context[:length])]
        text_ids.append(shown + [-1] * (len(context) - length))
    listed = [] if logits is None else torch.cat([logits.top_tokens, logits.bottom_tokens]).unique().tolist()
    logit_texts = {token: number_of(texts.label(token)) for token in listed}
    ids = torch.tensor(text_ids, dtype=torch.int32).view(len(kept), contexts_NT.shape[1])
    return ContextTexts(which[kept], token_ids, ids, tuple(vocabulary)), logit_texts


def _in_split(kept_FK: Tensor, which: Tensor) -> Tensor:
    """The numbers in the split of contexts numbered as they were read; -1 stays."""
    return torch.where(kept_FK >= 0, which[kept_FK.clamp(min=0)], -1)


def _logits(coder: Dictionary, models: NamedModels, n_logits: int) -> ExtremeLogits | str:
    """The logits, by the model of the (first) site written."""
    model = models.first
    if models.is_mapping and coder.writes:
        model = models.by_name[split_site_name(str(coder.writes[0]), models.by_name)[0]]
    return extreme_logits(coder, model, n_logits)


def _fingerprint(models: NamedModels) -> str | None:
    found = models.fingerprints()
    return None if found is None else ", ".join(f"{key}: {each}" if key else each for key, each in found.items())


def _check_options(n_tokens: int | None, contexts: int, batch_size: int, n_bins: int, n_logits: int) -> None:
    given = {
        "contexts_per_latent": contexts,
        "batch_size": batch_size,
        "n_histogram_bins": n_bins,
        "n_logits": n_logits,
        **({} if n_tokens is None else {"n_tokens": n_tokens}),
    }
    for name, value in given.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
