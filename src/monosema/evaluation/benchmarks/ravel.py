"""Cause and isolation of attributes: does moving an attribute's latents move that attribute, and no other?"""

from __future__ import annotations

import math

from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, DataError
from monosema.core.progress import Progress
from monosema.data.dictionary_sites import sites_of
from monosema.data.trained_on import model_notes
from monosema.evaluation.benchmarks.config import RavelConfig
from monosema.evaluation.benchmarks.intervals import Interval, few_units, resampled_means
from monosema.evaluation.benchmarks.ravel_prompts import AttributeData, Prompts
from monosema.evaluation.benchmarks.ravel_report import MASK, AttributeScore, RavelReport
from monosema.evaluation.benchmarks.rows import require_plain_sae
from monosema.models import LanguageModel


def cause_and_isolation(
    coder: Dictionary,
    model: LanguageModel,
    data: AttributeData,
    config: RavelConfig | None = None,
    *,
    progress: bool = True,
) -> RavelReport:
    """RAVEL's questions (Huang et al. 2024, 2402.17700), with latents chosen on other entities than those asked about.

    For a base and a source entity with different answers, the base prompt is run with the site changed at the entity's
    last token, and only there: some latents there have the values they have in the same prompt about the source, and
    the site is their reconstruction ``decode(f')`` (with ``keep_error``, what is not reconstructed is added again).
    The model's answer is what it would generate without sampling, of which the first ``n_answer_tokens`` are compared;
    only answers that it gets right unedited are used.

    - **cause** (0 to 1): share of pairs whose answer becomes the source's;
    - **isolation** (0 to 1): over prompts for the *other* attributes, of the same pairs where the answers to these
      differ as well, the share whose answer stays the base's;
    - **disentangle**: their mean. No latents of a perfect dictionary give 0 and 1, all of them about 1 and 0: 0.5 is
      what no disentanglement at all gives.

    Which latents: as in SAEBench (2503.09532), those that a mask keeps which was trained on the training entities'
    pairs, with the answers of both kinds of prompt as its targets (``mask``). With ``n_latents`` also, without
    training, those whose activations at the entity vary most between answers, ``‖W_dec[i]‖² Σ_g n_g (f̄_gi - f̄_i)²``
    (``top n``).

    Differences from SAEBench 0.6.0: entities, not pairs, are held out, so that no entity is on both sides. Known
    caveats: a site after the entity's attributes were read off, or before they are there, has nothing to move; scores
    rise with L0; the mask depends on batch size and steps, and with few pairs it hardly leaves its start. Intervals
    resample pairs as if they were independent.

    Args:
        coder: an SAE of one site.
        model: the model it reads, with a fast tokenizer.
        data: entities, prompts and answers.
        config: choice of latents, pairs and seed; by default ``RavelConfig()``.
        progress: show bars on a terminal, logged lines elsewhere.

    Raises:
        ConfigError: not an SAE in the units of one site, an encoder model, fewer than two attributes, or a template
            without one slot.
        UnknownNameError, ShapeError, UserError: the model has no such site, of another width, or it cannot be written.
        DataError: an entity lacks an answer, an answer's tokens do not follow its prompt's, an activation is not
            finite, or no attribute has pairs on both sides.
    """
    config, sae = config or RavelConfig(), require_plain_sae(coder, "cause and isolation")
    if len(sites_of(sae, {"": model}, to_be_written=True).read) > 1:
        raise ConfigError("cause and isolation edits one site; the coder reads several")
    if model.is_encoder:
        raise ConfigError(
            f"{model.name} is an encoder, which answers no prompt; give a model that predicts next tokens"
        )
    if len(data.templates) < 2 or len(data.answers) < 2:
        raise ConfigError("cause and isolation need at least two entities, and two attributes of each")
    prompts = Prompts(sae, model, data, config, progress)
    scores: list[AttributeScore] = []
    notes = model_notes(sae, model)
    for attribute in data.templates:
        pairs = {side: prompts.pairs(attribute, side) for side in ("train", "test")}
        if not all(pairs.values()):
            missing = " and ".join(side for side, own in pairs.items() if not own)
            notes.append(f"{attribute}: left out, no two {missing} entities are known with different answers")
            continue
        for choice, latents in _choices(prompts, attribute, pairs["train"], config, progress).items():
            scores.append(_score(prompts, attribute, pairs["test"], choice, latents, config.seed))
    if not scores:
        raise DataError(
            "the model knows no two entities with different answers to any attribute, to choose latents on and as many "
            "to measure them on; give others"
        )
    means = {}
    for choice in dict.fromkeys(each.choice for each in scores):
        defined = [each.disentangle.value for each in scores if each.choice == choice and each.n_isolation]
        means[choice] = sum(defined) / len(defined) if defined else math.nan
    return RavelReport(
        scores=tuple(scores),
        disentangle=means,
        answered={a: sum(prompts.known[e, a] for e in data.answers) / len(data.answers) for a in data.templates},
        n_entities=len(prompts.sides["test"]),
        model_name=model.name,
        d_sae=sae.d_sae,
        hook_name=sae.hook_name or "",
        config=config,
        notes=(*notes, *few_units(min(each.n_cause for each in scores), "pairs of an attribute")),
    )


def _choices(
    prompts: Prompts, attribute: str, pairs: list[tuple[str, str]], config: RavelConfig, progress: bool
) -> dict[str, Tensor]:
    """The active latents to interchange, by the name of the choice."""
    chosen = {}
    if config.n_epochs:
        wanted = prompts.cause(attribute, pairs) + prompts.isolation(attribute, pairs)
        n_pairs = config.n_epochs * len(wanted.bases)
        with Progress(f"mask for {attribute}", n_pairs, unit="pair", enabled=progress) as bar:
            chosen[MASK] = prompts.train_mask(attribute, wanted, bar)
    if config.n_latents:
        order = prompts.vary_most(attribute, config.n_latents[-1])
        chosen |= {f"top {n}": order[:n] for n in config.n_latents}
    return chosen


def _score(
    prompts: Prompts, attribute: str, pairs: list[tuple[str, str]], choice: str, latents: Tensor, seed: int
) -> AttributeScore:
    asked = {"cause": prompts.cause(attribute, pairs), "isolation": prompts.isolation(attribute, pairs)}
    hits = {kind: prompts.hits(each, latents) for kind, each in asked.items()}
    cause, isolation = (resampled_means(each, seed, "ravel", attribute, kind) for kind, each in hits.items())
    n_cause, n_isolation = (len(each) for each in hits.values())
    return AttributeScore(
        attribute=attribute,
        choice=choice,
        n_latents=len(latents),
        cause=Interval.of(cause, n_cause),
        isolation=Interval.of(isolation, n_isolation),
        disentangle=Interval.of((cause + isolation) / 2, n_cause + n_isolation - 1),
        n_cause=len(asked["cause"].bases),
        n_isolation=len(asked["isolation"].bases),
    )
