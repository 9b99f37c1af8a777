"""``loss_recovered``: the loss on a few texts with a dictionary in a site's place, as dictionary_learning has it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, DataError, UserError
from monosema.core.peers import explains_options
from monosema.data import Packing, TokenSplit, load_tokens
from monosema.data.trained_on import log_model_notes
from monosema.evaluation.evaluate import evaluate
from monosema.models import LanguageModel


class LossRecovered(NamedTuple):
    """Nats per predicted token; see ``loss_recovered``."""

    loss_original: float
    """Of the model itself."""
    loss_reconstructed: float
    """With the reconstruction in the site's place."""
    loss_zero: float
    """With zero in the site's place."""
    frac_recovered: float
    """``(loss_zero - loss_reconstructed) / (loss_zero - loss_original)``; NaN where zero changes nothing."""


@explains_options
def loss_recovered(
    text: str | Sequence[str],
    model: LanguageModel,
    site: str,
    coder: Dictionary,
    *,
    max_len: int | None = None,
    batch_size: int | None = None,
) -> LossRecovered:
    """The model's loss on ``text`` with ``coder`` at ``site``, whatever site the coder was trained on.

    Each text is a context of its own, framed as the tokenizer frames it and cut at ``max_len`` tokens. Figures are
    those of ``evaluate``: special positions keep the model's own value in all three runs (dictionary_learning's
    ``loss_recovered`` replaces them too, which changes all but the first figure), padding counts nowhere, and a mean is
    over tokens. A coder of another model, or of processed weights, is logged as a warning.

    Args:
        text: one text or several.
        model: the language model, with its tokenizer.
        site: hook name that the coder reads and writes.
        coder: an SAE of the site's width.
        max_len: tokens of a text at most; by default as many as the model has positions for.
        batch_size: texts in a forward pass; by default what fits well.

    Raises ``ConfigError`` for a coder that writes another site than it reads, or a ``max_len`` the model cannot take;
    ``DataError`` where no text has two tokens; and what ``evaluate`` raises.
    """
    if coder.is_layered or not coder.reconstructs:
        raise ConfigError("loss_recovered puts an SAE in its site's place; use evaluate for dictionaries of two sites")
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer; load it with one, or evaluate token ids")
    if max_len is not None and not 2 <= max_len <= (model.context_size or max_len):
        raise ConfigError(f"max_len must be from 2 to the model's positions, {model.context_size:,}, got {max_len}")
    texts = [text] if isinstance(text, str) else list(text)
    lengths = [len(row) for row in model.tokenizer(texts, verbose=False)["input_ids"]] if texts else []
    longest = min(max(lengths, default=0), max_len or model.context_size or max(lengths, default=0))
    if longest < 2:
        raise DataError("loss_recovered needs a text of at least two tokens")
    tokens = load_tokens(
        texts, model.tokenizer, longest, heldout_fraction=0.0, packing=Packing(preset="dictionary_learning")
    )
    assert isinstance(tokens.train, TokenSplit), "texts in memory are"
    log_model_notes(coder, model)
    own = copy.copy(coder)
    own.bind(site, site, {})
    report = evaluate(
        own,
        model,
        tokens.train,
        n_tokens=None,
        batch_size=batch_size,
        ablation="zero",
        weights=False,
        outlier_norm_multiple=None,
        progress=False,
    )
    assert report.ce_clean is not None and report.ce_spliced is not None
    assert report.ce_ablated is not None and report.ce_loss_score is not None
    return LossRecovered(report.ce_clean, report.ce_spliced, report.ce_ablated, report.ce_loss_score)
