"""``read_prompt``: which latents are active on each token of one prompt.

Shape letters: T tokens of the prompt, R rows read, I width of what is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.coders.sites import join_names
from monosema.core.errors import ConfigError, DataError
from monosema.core.peers import explains_options
from monosema.core.words import counted
from monosema.data import packing_rule
from monosema.data.chat import conversation_text, is_conversation
from monosema.data.contexts import special_token_ids
from monosema.data.named_models import NamedModels
from monosema.data.outliers import row_norms
from monosema.data.packing_config import Packing
from monosema.data.recorded_outliers import OutlierMultiple, estimated, rule_for
from monosema.data.tokenise import encode
from monosema.data.trained_on import model_notes
from monosema.features.prompt_reading import PromptReading, TokenLatent, TokenReading
from monosema.features.source import sites
from monosema.features.store import FeatureStore
from monosema.features.texts import TokenTexts
from monosema.kernels import Latents
from monosema.metrics import require_finite
from monosema.models import LanguageModel

Prompt = str | Sequence[Mapping[str, Any]] | Tensor | Sequence[int]
"""Text, a conversation ({role, content} each), or token ids ``[T]``."""

PrependBos = bool | Literal["auto"]
"""Whether a token that begins contexts is put before the text; ``auto`` does what the dictionary's training did."""

_LABEL_TOKENS = 3


@explains_options
@torch.no_grad()
def read_prompt(
    model: LanguageModel | Mapping[str, LanguageModel],
    dictionary: Dictionary,
    prompt: Prompt,
    *,
    n_latents: int = 5,
    prepend_bos: PrependBos = "auto",
    features: FeatureStore | str | os.PathLike[str] | None = None,
    outlier_norm_multiple: OutlierMultiple = "recorded",
) -> PromptReading:
    """The strongest latents of each token of ``prompt``, under the dictionary's inference rule.

    Args:
        model: the language model that the dictionary reads; several by name, for sites such as
            ``base:blocks.2.hook_resid_post``.
        dictionary: an SAE, transcoder, crosscoder or cross-layer transcoder; read as it is.
        prompt: text; a conversation, a list of {role, content}, which the tokenizer's chat template writes as text; or
            token ids ``[T]``.
        n_latents: the latents kept of each token (of a cross-layer transcoder, of each token and layer): those with the
            largest activations in magnitude, the lower index first among equals.
        prepend_bos: ``"auto"`` puts the special tokens before a text that began contexts in training (of a dictionary
            that does not record them, the tokenizer's BOS, or EOS where it has no BOS), and leaves token ids as they
            are. True puts the tokenizer's there, before token ids too; False nothing. A token that is there already is
            not written twice.
        features: what ``collect_features`` gave for this dictionary, or the folder that it was saved to: labels each
            latent with the tokens that it responds to most.
        outlier_norm_multiple: tokens where the norm of a site read exceeds so many times the median there are marked:
            as the dictionary was trained, by default. A dictionary that records no median gets that of the prompt.

    Special tokens that training left out are marked and not read. ``prompt_reading`` defines every number.

    Raises:
        ConfigError: an option out of range; text without a tokenizer; a chat without a template; the dictionary names
            no site, or the feature store is another dictionary's.
        DataError: an empty prompt, one longer than the model's context, or an activation that is not finite.
        UnknownNameError: the model has no such site. ShapeError: the dictionary's width is not the site's.
    """
    if n_latents < 1:
        raise ConfigError(f"n_latents must be at least 1, got {n_latents}")
    if prepend_bos not in (True, False, "auto"):
        raise ConfigError(f"prepend_bos must be True, False or 'auto', got {prepend_bos!r}")
    models = NamedModels(model)
    names, _ = sites(dictionary, models)
    store = _store(features, dictionary)
    record = dictionary.metadata.get("tokens") or {}
    ids_T = _prompt_ids(prompt, models, record, prepend_bos)
    special = _special_ids(models.first, record)
    is_read_T = ~torch.isin(ids_T, torch.tensor(sorted(special), dtype=torch.int64))
    captured = models.capture(ids_T.unsqueeze(0), names)
    device = captured[names[0]].device
    rows_RI = torch.cat([captured[name][0].to(device) for name in names], dim=1)[is_read_T.to(device)]
    require_finite(f"activations read at {join_names(names)!r}", rows_RI)
    outlier_R, norms_R = _outliers(dictionary, rows_RI, outlier_norm_multiple)
    latents = dictionary.encode_sparse(rows_RI.to(dictionary.device, dictionary.dtype))
    n_active_R = torch.bincount(latents.rows()[latents.values != 0], minlength=len(rows_RI))
    found = _strongest(dictionary, latents, n_latents, store)
    texts = TokenTexts(models.first.tokenizer, special).context(ids_T.tolist())
    rows = iter(range(len(rows_RI)))
    tokens = []
    for position, (token, text, is_read) in enumerate(zip(ids_T.tolist(), texts, is_read_T.tolist(), strict=True)):
        row = next(rows) if is_read else None
        tokens.append(
            TokenReading(
                position=position,
                token_id=token,
                text="" if text is None else text,
                is_special=row is None,
                is_outlier=row is not None and bool(outlier_R[row]),
                norm=None if row is None else float(norms_R[row]),
                n_active=0 if row is None else int(n_active_R[row]),
                latents=() if row is None else found[row],
            )
        )
    return PromptReading(
        model=", ".join(f"{key}: {each.name}" for key, each in models.by_name.items()) or models.first.name,
        site=dictionary.hook_name or "",
        d_sae=dictionary.d_sae,
        n_latents=n_latents,
        layers=tuple(names) if dictionary.is_layered else (),
        tokens=tuple(tokens),
        notes=tuple(model_notes(dictionary, model)),
    )


def _store(features: FeatureStore | str | os.PathLike[str] | None, dictionary: Dictionary) -> FeatureStore | None:
    """The feature store; ``ConfigError`` where it is not of this dictionary."""
    if features is None:
        return None
    store = features if isinstance(features, FeatureStore) else FeatureStore.load(features)
    theirs, ours = (store.d_sae, store.provenance.hook_name), (dictionary.d_sae, dictionary.hook_name)
    if theirs != ours:
        raise ConfigError(
            f"the feature store has {counted(theirs[0], 'latent')} at {theirs[1]!r}, the dictionary "
            f"{counted(ours[0], 'latent')} at {ours[1]!r}; give the features of this dictionary (collect_features), or "
            "leave out features="
        )
    return store


def _prompt_ids(prompt: Prompt, models: NamedModels, record: Mapping[str, Any], prepend_bos: PrependBos) -> Tensor:
    """[T] int64 on the CPU: the tokens of the prompt behind those that begin a context."""
    is_ids = isinstance(prompt, Tensor) or (not isinstance(prompt, str) and not is_conversation(prompt))
    tokenizer = models.first.tokenizer
    if not is_ids and tokenizer is None:
        raise ConfigError(
            f"{models.first.name} has no tokenizer to read text with; load the model with load_model(..., "
            "tokenizer=...), or give the prompt as token ids"
        )
    if is_ids:
        ids = _given_ids(prompt)
    elif isinstance(prompt, str):
        ids = encode(tokenizer, [prompt])[0].tolist()
    else:
        ids = encode(tokenizer, [_chat_text(prompt, tokenizer)])[0].tolist()
    if not ids:
        raise DataError("the prompt is empty; give some text or token ids")
    if prepend_bos is True or (prepend_bos == "auto" and not is_ids):
        for mark in _marks(tokenizer, record, as_trained=prepend_bos == "auto"):
            ids = ids if ids[0] == mark else [mark, *ids]
    sizes = [each.context_size for each in models.by_name.values() or [models.first] if each.context_size is not None]
    if sizes and len(ids) > min(sizes):
        raise DataError(
            f"the prompt has {counted(len(ids), 'token')} with those that begin the context, and the model reads at "
            f"most {min(sizes):,}; shorten the prompt"
        )
    return torch.tensor(ids, dtype=torch.int64)


def _given_ids(prompt: Any) -> list[int]:
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ConfigError(
            f"a prompt is text, a list of {{role, content}}, or token ids [T]; got a {type(prompt).__name__}"
        ) from None
    if ids.numel() == 0:
        return []
    ids = ids[0] if ids.dim() == 2 and len(ids) == 1 else ids
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(f"token ids must be whole numbers of shape [T], got {ids.dtype} of shape {list(ids.shape)}")
    return [int(token) for token in ids.tolist()]


def _chat_text(messages: Any, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the model's tokenizer has no chat template; give the prompt as plain text")
    return conversation_text(messages, tokenizer, "the prompt")


def _marks(tokenizer: Any, record: Mapping[str, Any], *, as_trained: bool) -> list[int]:
    """The tokens to put before a text, the last one first."""
    if as_trained and "begin_context" in record:
        marks = [record.get("begin_document"), record["begin_context"]]
        return [mark for mark in marks if type(mark) is int]
    if tokenizer is None:
        raise ConfigError("prepend_bos=True needs the model's tokenizer; put the token before the ids yourself")
    usual = packing_rule(Packing(), tokenizer, context_size=256).begin_context
    if usual is None and not as_trained:
        raise ConfigError("prepend_bos=True: the tokenizer has no BOS or EOS token; use prepend_bos='auto' or False")
    return [] if usual is None else [usual]


def _special_ids(model: LanguageModel, record: Mapping[str, Any]) -> frozenset[int]:
    """The tokens whose positions training left out."""
    exclude = record.get("exclude_special_tokens", True)
    if isinstance(exclude, list):
        return frozenset(token for token in exclude if type(token) is int)
    if exclude is False:
        return frozenset()
    return model.special_token_ids if model.tokenizer is None else special_token_ids(model.tokenizer, True)


def _outliers(dictionary: Dictionary, rows_RI: Tensor, multiple: OutlierMultiple) -> tuple[Tensor, Tensor]:
    """[R] bool and [R] float64 on the CPU: which rows have a norm far above the median, and the norms."""
    rule, norms_R = rule_for(dictionary, multiple), row_norms(rows_RI)
    if rule is None or len(rows_RI) == 0:
        return torch.zeros(len(rows_RI), dtype=torch.bool), norms_R
    if rule.medians is None:
        rule = estimated(rule, dictionary, rows_RI, rows_RI)
    return rule.outliers(rows_RI), norms_R


def _strongest(
    dictionary: Dictionary, latents: Latents, n_latents: int, store: FeatureStore | None
) -> list[tuple[TokenLatent, ...]]:
    """For each row, the strongest latents of each layer, layer by layer; other dictionaries have one."""
    labels: dict[int, tuple[str, ...]] = {}

    def label(index: int) -> tuple[str, ...]:
        if store is not None and index not in labels:
            labels[index] = _label(store, index)
        return labels.get(index, ())

    layers, n_layers = dictionary.places_of(latents.indices).parts.tolist(), len(dictionary.parts)
    crow, indices, values = latents.crow.tolist(), latents.indices.tolist(), latents.values.double().tolist()
    found = []
    for start, stop in pairwise(crow):
        by_layer: dict[int, list[tuple[int, float]]] = {}
        entries = zip(layers[start:stop], indices[start:stop], values[start:stop], strict=True)
        for layer, index, value in entries:
            if value != 0:
                by_layer.setdefault(layer, []).append((index, value))
        chosen: list[TokenLatent] = []
        for layer, active in sorted(by_layer.items()):
            active.sort(key=lambda entry: (-abs(entry[1]), entry[0]))
            largest = abs(active[0][1])
            chosen += [
                TokenLatent(
                    index=index,
                    activation=value,
                    share=abs(value) / largest,
                    layer=layer if n_layers > 1 else None,
                    label=label(index),
                )
                for index, value in active[:n_latents]
            ]
        found.append(tuple(chosen))
    return found


def _label(store: FeatureStore, index: int) -> tuple[str, ...]:
    """The different tokens at the maxima of the latent's best contexts, strongest first."""
    texts = []
    for context in store[index].contexts:
        at = next(span for span in context.spans if span.start <= context.position < span.stop)
        texts.append(at.text)
    return tuple(dict.fromkeys(texts))[:_LABEL_TOKENS]
