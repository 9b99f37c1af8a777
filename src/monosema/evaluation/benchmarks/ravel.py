"""Cause and isolation of attributes: does moving an attribute's latents move that attribute, and no other?

Shape letters: B prompts, T positions, D width, F latents, K latents chosen, E entities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosema.coders import Dictionary, SparseCoder
from monosema.core.config import check_types
from monosema.core.errors import ConfigError, DataError
from monosema.core.seeds import random_stream
from monosema.evaluation.benchmarks.shares import Interval, percentile_interval, resample_shares
from monosema.evaluation.benchmarks.rows import EncodedRows, require_plain_sae
from monosema.evaluation.benchmarks.tables import plain_fields, table
from monosema.evaluation.benchmarks.words import Prompt, capture_words, equal_lengths, make_prompt, token_batch
from monosema.evaluation.measure import evaluation_mode
from monosema.evaluation.sites import sites_of
from monosema.models import LanguageModel


@dataclass(frozen=True, kw_only=True)
class AttributeData:
    """Entities with several attributes each, and a prompt that asks for each attribute."""

    templates: Mapping[str, str]
    """By attribute, a prompt with ``{word}`` in the entity's place, whose next token is the answer."""
    answers: Mapping[str, Mapping[str, str]]
    """By entity, then by attribute, the answer as it follows the prompt (`` France``, with its space)."""


@dataclass(frozen=True, kw_only=True)
class RavelOptions:
    """How latents are chosen and pairs drawn."""

    n_latents: tuple[int, ...] = (1, 5, 20)
    """Numbers of latents exchanged for an attribute, each measured."""
    most_pairs: int = 500
    """Pairs of base and source entity for each attribute; drawn where there are more."""
    batch_size: int = 64
    """Prompts in a forward pass."""
    n_resamples: int = 1000
    """Bootstrap resamples of the pairs."""
    seed: int = 0
    """Decides the pairs and the resamples."""

    def __post_init__(self) -> None:
        check_types(self)
        numbers = self.n_latents
        if not numbers or min(numbers) < 1 or list(numbers) != sorted(set(numbers)):
            raise ConfigError(f"n_latents must be rising numbers of at least 1, got {numbers}")
        for name in ("most_pairs", "batch_size", "n_resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"RavelOptions: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AttributeScore:
    """One attribute, with so many of its latents exchanged."""

    attribute: str
    """The attribute."""
    n_latents: int
    """Latents exchanged; fewer where fewer vary with it."""
    cause: float
    """Share of pairs in which the base prompt's answer becomes the source's."""
    cause_interval: Interval
    """Over resamples of the pairs."""
    isolation: float
    """Share of prompts for other attributes whose answer stays."""
    isolation_interval: Interval
    """Over resamples of these."""
    disentangle: float
    """``(cause + isolation) / 2``."""
    n_cause: int
    """Pairs."""
    n_isolation: int
    """Prompts for other attributes."""


@dataclass(frozen=True, kw_only=True)
class RavelReport:
    """Cause and isolation of attributes; ``cause_and_isolation`` defines the scores."""

    scores: tuple[AttributeScore, ...]
    """By attribute and number of latents."""
    disentangle: Mapping[int, float]
    """By number of latents, the mean over attributes."""
    answered: Mapping[str, float]
    """By attribute, the share of entities for which the model's own answer is right; only these are used."""
    skipped: Mapping[str, str]
    """The attributes left out, and why."""
    hook_name: str
    """The site."""
    model_name: str
    """The model."""
    seed: int
    """Of every draw."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; NaN becomes None."""
        return plain_fields(self)

    def __str__(self) -> str:
        heads = ("attribute", "latents", "cause", "95 %", "isolation", "95 %", "disentangle", "pairs")
        rows: list[tuple[float | int | str, ...]] = [
            (
                each.attribute,
                each.n_latents,
                each.cause,
                str(each.cause_interval),
                each.isolation,
                str(each.isolation_interval),
                each.disentangle,
                each.n_cause,
            )
            for each in self.scores
        ]
        rows += [("mean", n, "", "", "", "", value, "") for n, value in self.disentangle.items()]
        notes = [f"{attribute}: left out, {reason}" for attribute, reason in self.skipped.items()]
        notes.append(f"seed {self.seed}; " + ", ".join(f"{a} known {share:.0%}" for a, share in self.answered.items()))
        return table(f"cause and isolation at {self.hook_name} of {self.model_name}", heads, rows, notes)


def cause_and_isolation(
    coder: Dictionary, model: LanguageModel, data: AttributeData, options: RavelOptions | None = None
) -> RavelReport:
    """RAVEL's questions (Huang et al. 2024, 2402.17700) with latents chosen without training.

    For each attribute, latents are taken by falling variance between answers, ``‖W_dec[i]‖² Σ_g n_g (f̄_gi - f̄_i)²``,
    of their activations at the entity's last token over the entities that the model knows, grouped by answer. For a
    base and a source entity with different answers, the base prompt is run with the site there, and only there, moved
    by ``Σ_i (f_i(source) - f_i(base)) W_dec[i]`` over the n chosen latents: interchanged with those of the same prompt
    about the source, the reconstruction error kept. The model's answer is the token with the largest logit.

    - **cause** (0 to 1): share of pairs whose answer becomes the source's;
    - **isolation** (0 to 1): over prompts for the *other* attributes, of the same pairs where the answers to these
      differ as well, the share whose answer stays the base's;
    - **disentangle**: their mean. No latents give 0 and 1, all of a perfect dictionary's about 1 and 0: 0.5 is what
      no disentanglement at all gives.

    SAEBench (2503.09532) trains a mask over latents, drops the error and matches text of six tokens: its figures are
    another, stronger choice of latents and not comparable. Known caveats: only first tokens of answers are compared;
    a site after the entity's attributes were read off, or before they are there, has nothing to move; scores rise with
    n and with L0; latents are chosen on the entities they are measured on, though no answer of an edited run is used.
    Intervals resample pairs as if they were independent.

    Raises:
        ConfigError: not an SAE in the units of its site, fewer than two attributes, or a template without one slot.
        UnknownNameError, ShapeError, UserError: the model has no such site, of another width, or it cannot be written.
        DataError: an entity lacks an answer, an answer's tokens do not follow its prompt's, an activation is not
            finite, or no attribute has two entities with different answers that the model knows.
    """
    options, sae = options or RavelOptions(), require_plain_sae(coder, "cause and isolation")
    sites_of(sae, {"": model}, to_be_written=True)
    asked = _Asked(sae, model, data, options)
    scores, skipped = [], {}
    for attribute in data.templates:
        pairs = asked.pairs(attribute)
        if not pairs:
            skipped[attribute] = "the model knows no two entities with different answers"
            continue
        latents = asked.latents_of(attribute, options.n_latents[-1])
        for n in options.n_latents:
            scores.append(_score(asked, attribute, pairs, latents[:n], n, options))
    if not scores:
        raise DataError("the model knows no two entities with different answers to any attribute; give others")
    of_n = {n: [s.disentangle for s in scores if s.n_latents == n and s.n_isolation] for n in options.n_latents}
    return RavelReport(
        scores=tuple(scores),
        disentangle={n: sum(each) / len(each) if each else float("nan") for n, each in of_n.items()},
        answered={a: sum(asked.known[e, a] for e in data.answers) / len(data.answers) for a in data.templates},
        skipped=skipped,
        hook_name=sae.hook_name or "",
        model_name=model.name,
        seed=options.seed,
    )


class _Asked:
    """Every prompt of the data as the model answers it, and the latents at its entity."""

    def __init__(self, sae: SparseCoder, model: LanguageModel, data: AttributeData, options: RavelOptions) -> None:
        if len(data.templates) < 2 or not data.answers:
            raise ConfigError("cause and isolation need entities, and at least two attributes of each")
        self.sae, self.model, self.data, self.options = sae, model, data, options
        self.cases = [(entity, attribute) for entity in data.answers for attribute in data.templates]
        self.place = {case: number for number, case in enumerate(self.cases)}
        self.prompts = [make_prompt(model, data.templates[attribute], entity) for entity, attribute in self.cases]
        self.answer = [_first_token(model, data, case, p) for case, p in zip(self.cases, self.prompts, strict=True)]
        given = self.ask(list(range(len(self.cases))), None)
        self.known = {case: given[n] == self.answer[n] for n, case in enumerate(self.cases)}
        x = torch.empty(len(self.cases), sae.d_in, dtype=model.dtype)
        for attribute, template in data.templates.items():
            own = [self.place[entity, attribute] for entity in data.answers]
            x[own] = capture_words(
                model, sae.hook_name or "", list(data.answers), template=template, batch_size=options.batch_size
            )
        self._rows = EncodedRows.of(sae, x)

    def ask(self, places: list[int], moved_ND: Tensor | None) -> list[int]:
        """The model's answers to the prompts at ``places``, with ``moved_ND[n]`` added at the n-th one's entity."""
        prompts = [self.prompts[place] for place in places]
        given = torch.empty(len(places), dtype=torch.int64)
        site, model = self.sae.hook_name or "", self.model
        with evaluation_mode(model.hf):
            for batch in equal_lengths(prompts, self.options.batch_size):
                tokens, positions = token_batch(prompts, batch)
                moved = None if moved_ND is None else moved_ND[batch]

                def edit(value: Tensor, at: Tensor = positions, moved: Tensor | None = moved) -> Tensor:
                    assert moved is not None
                    new = value.clone()
                    rows, at = torch.arange(len(at), device=new.device), at.to(new.device)
                    new[rows, at] += moved.to(new)
                    return new

                with model.edits({} if moved is None else {site: edit}):
                    given[batch] = model(tokens.to(model.device))[:, -1].argmax(-1).cpu()
        return [int(each) for each in given]

    def pairs(self, attribute: str) -> list[tuple[str, str]]:
        """Base and source entities known with different answers; at most ``most_pairs``, drawn."""
        known = [entity for entity in self.data.answers if self.known[entity, attribute]]
        every = [(b, s) for b in known for s in known if self.differ(b, s, attribute)]
        generator = random_stream(self.options.seed, "benchmark", "ravel", attribute)
        order = torch.randperm(len(every), generator=generator)[: self.options.most_pairs]
        return [every[place] for place in order.sort().values.tolist()]

    def differ(self, base: str, source: str, attribute: str) -> bool:
        """Whether the two have different answers."""
        return self.answer[self.place[base, attribute]] != self.answer[self.place[source, attribute]]

    def latents_of(self, attribute: str, most: int) -> Tensor:
        """The at most ``most`` latents that vary most between answers, largest first; none that does not vary."""
        own = torch.tensor([self.place[e, attribute] for e in self.data.answers if self.known[e, attribute]])
        f = self._rows.dense(own)
        _, group = torch.tensor([self.answer[place] for place in own.tolist()]).unique(return_inverse=True)
        group = group.to(f.device)
        members = torch.nn.functional.one_hot(group).double()
        counts = members.sum(0)
        means = (members.T @ f) / counts[:, None]
        between = (counts[:, None] * (means - f.mean(0)).square()).sum(0)
        between = between * self.sae.W_dec.detach().double().square().sum(1)
        order = between.argsort(descending=True, stable=True)[:most]
        return order[between[order] > 0]

    def moves(self, bases: list[int], sources: list[int], latents_K: Tensor) -> Tensor:
        """[N, D]: ``Σ_i (f_i(source) - f_i(base)) W_dec[i]`` over the latents given."""
        f = self._rows.columns(latents_K)
        return (f[sources] - f[bases]) @ self.sae.W_dec.detach()[latents_K].double()


def _score(
    asked: _Asked, attribute: str, pairs: list[tuple[str, str]], latents: Tensor, n: int, options: RavelOptions
) -> AttributeScore:
    bases, sources = ([asked.place[pair[side], attribute] for pair in pairs] for side in (0, 1))
    given = asked.ask(bases, asked.moves(bases, sources, latents))
    cause = [each == asked.answer[source] for each, source in zip(given, sources, strict=True)]
    others = [
        (asked.place[base, other], asked.place[source, other])
        for other in asked.data.templates
        for base, source in pairs
        if other != attribute and asked.known[base, other] and asked.differ(base, source, other)
    ]
    kept_bases, kept_sources = [base for base, _ in others], [source for _, source in others]
    stays: list[bool] = []
    if others:
        given = asked.ask(kept_bases, asked.moves(kept_bases, kept_sources, latents))
        stays = [each == asked.answer[base] for each, base in zip(given, kept_bases, strict=True)]
    cause_mean, cause_interval = _mean(cause, options, attribute, "cause")
    isolation, isolation_interval = _mean(stays, options, attribute, "isolation")
    return AttributeScore(
        attribute=attribute,
        n_latents=n,
        cause=cause_mean,
        cause_interval=cause_interval,
        isolation=isolation,
        isolation_interval=isolation_interval,
        disentangle=(cause_mean + isolation) / 2,
        n_cause=len(cause),
        n_isolation=len(stays),
    )


def _mean(hits: Sequence[bool], options: RavelOptions, *names: str) -> tuple[float, Interval]:
    """Of none it is NaN."""
    if not hits:
        return float("nan"), Interval(float("nan"), float("nan"))
    values = torch.tensor(hits, dtype=torch.float64)
    shares = resample_shares(len(hits), options.n_resamples, random_stream(options.seed, "benchmark", "ravel", *names))
    return float(values.mean()), percentile_interval(shares @ values)


def _first_token(model: LanguageModel, data: AttributeData, case: tuple[str, str], prompt: Prompt) -> int:
    """The token that follows the prompt where the answer does."""
    entity, attribute = case
    answer = data.answers[entity].get(attribute)
    if not answer:
        raise DataError(f"{entity!r} has no answer for {attribute!r}; give one, or leave the entity out")
    whole = make_prompt(model, data.templates[attribute] + answer, entity)
    n = len(prompt.ids)
    if whole.ids[:n] != prompt.ids or len(whole.ids) <= n:
        raise DataError(
            f"the tokens of {data.templates[attribute]!r} about {entity!r} change when {answer!r} follows; end the "
            "template without a space and begin the answer with one"
        )
    return whole.ids[n]
