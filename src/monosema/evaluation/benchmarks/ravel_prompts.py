"""The prompts of attribute data as a model answers them, with and without some latents interchanged.

Shape letters: B prompts of a batch, T positions, N tokens of an answer, V vocabulary, D width, K latents that fire on
some prompt, P prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from monosema.coders import Dictionary
from monosema.core.errors import DataError
from monosema.core.progress import Progress
from monosema.core.seeds import random_stream
from monosema.evaluation.activations import ROWS_PER_STEP
from monosema.evaluation.benchmarks.config import RavelConfig
from monosema.evaluation.benchmarks.splits import held_out
from monosema.evaluation.benchmarks.texts import Prompt, make_prompt, prompt_rows
from monosema.evaluation.measure import evaluation_mode
from monosema.models import LanguageModel
from monosema.models.hooks import EditFunction
from monosema.models.language_model import SiteName
from monosema.models.splice import moved, without_error
from monosema.splicing import LatentDirections

_COLDEST = 1e-4
"""The mask's temperature falls from 1 to this."""


Answer = tuple[int, ...]
"""The first tokens of an answer, at least one."""


@dataclass(frozen=True, kw_only=True)
class AttributeData:
    """Entities with several attributes each, and a prompt that asks for each attribute."""

    templates: Mapping[str, str]
    """By attribute, a prompt with ``{word}`` in the entity's place, which the answer follows."""
    answers: Mapping[str, Mapping[str, str]]
    """By entity, then by attribute, the answer as it follows the prompt (`` France``, with its space)."""


@dataclass(frozen=True)
class Interchange:
    """Prompts about base entities that get latents of the same prompts about source entities."""

    bases: list[int]
    """Places of the base prompts."""
    sources: list[int]
    """Places of the source prompts."""
    wanted: list[Answer]
    """What counts as right for each."""

    def __add__(self, other: Interchange) -> Interchange:
        return Interchange(self.bases + other.bases, self.sources + other.sources, self.wanted + other.wanted)


class Prompts:
    """Every prompt of the data, the model's own answer to it, and the latents at its entity.

    ``known`` is by entity and attribute; ``sides`` are the entities that latents are chosen on (``train``) and those
    that scores are measured on (``test``); ``active_K`` are the latents that fire on some prompt.
    """

    def __init__(
        self, sae: Dictionary, model: LanguageModel, data: AttributeData, config: RavelConfig, progress: bool
    ) -> None:
        self._sae, self._model, self._data, self._config = sae, model, data, config
        cases = [(entity, attribute) for entity in data.answers for attribute in data.templates]
        self._place = {case: number for number, case in enumerate(cases)}
        self._prompts = [make_prompt(model, data.templates[attribute], entity) for entity, attribute in cases]
        self._right = [
            _answer(model, data, case, prompt)[: config.n_answer_tokens]
            for case, prompt in zip(cases, self._prompts, strict=True)
        ]
        known = self._said(Interchange(list(range(len(cases))), [], self._right), None)
        self.known = dict(zip(cases, known.tolist(), strict=True))
        is_test = held_out(torch.arange(len(data.answers)), config.test_fraction, config.seed, "ravel").tolist()
        self.sides = {
            side: [entity for entity, out in zip(data.answers, is_test, strict=True) if out == (side == "test")]
            for side in ("train", "test")
        }
        rows = prompt_rows(sae, model, self._prompts, progress)
        self.active_K = rows.latents.indices.long().unique()
        device = model.device
        self._f_PK = rows.columns(self.active_K).float().to(device)
        W_KD = sae.decoder_rows(self.active_K).detach().float().to(device)
        self._directions = LatentDirections(W_KD)
        self._error_PD = torch.zeros_like(rows.x_ND, dtype=torch.float32, device=device)
        if not config.keep_error:
            with evaluation_mode(sae):
                parts = rows.x_ND.to(device=sae.device, dtype=sae.dtype).split(ROWS_PER_STEP)
                x_hat = torch.cat([sae.decode(sae.encode_sparse(part), part) for part in parts])
            self._error_PD = (rows.x_ND.to(x_hat) - x_hat).float().to(device)

    def pairs(self, attribute: str, side: str) -> list[tuple[str, str]]:
        """Base and source entities of a side, known with different answers; at most ``most_pairs``, drawn."""
        known = [entity for entity in self.sides[side] if self.known[entity, attribute]]
        every = [(b, s) for b in known for s in known if self._differ(b, s, attribute)]
        generator = random_stream(self._config.seed, "benchmark", "ravel", attribute, side)
        order = torch.randperm(len(every), generator=generator)[: self._config.most_pairs]
        return [every[place] for place in order.sort().values.tolist()]

    def cause(self, attribute: str, pairs: Sequence[tuple[str, str]]) -> Interchange:
        """The prompts for ``attribute``, whose answer should become the source's."""
        bases, sources = ([self._place[pair[side], attribute] for pair in pairs] for side in (0, 1))
        return Interchange(bases, sources, [self._right[place] for place in sources])

    def isolation(self, attribute: str, pairs: Sequence[tuple[str, str]]) -> Interchange:
        """The prompts of the same pairs for other attributes, known and with different answers, which should stay."""
        both = [
            (self._place[base, other], self._place[source, other])
            for other in self._data.templates
            for base, source in pairs
            if other != attribute and self.known[base, other] and self._differ(base, source, other)
        ]
        bases = [base for base, _ in both]
        return Interchange(bases, [source for _, source in both], [self._right[place] for place in bases])

    def vary_most(self, attribute: str, most: int) -> Tensor:
        """[K] int64: the active latents by falling variance between the training entities' answers, varying ones."""
        known = [entity for entity in self.sides["train"] if self.known[entity, attribute]]
        own = [self._place[entity, attribute] for entity in known]
        f = self._f_PK[own].double()
        numbers = {answer: number for number, answer in enumerate(dict.fromkeys(self._right[place] for place in own))}
        group = torch.tensor([numbers[self._right[place]] for place in own])
        members = one_hot(group).double().to(f.device)
        counts = members.sum(0)
        means = (members.T @ f) / counts[:, None]
        between = (counts[:, None] * (means - f.mean(0)).square()).sum(
            0
        ) * self._directions.rows_KO.double().square().sum(1)
        order = between.argsort(descending=True, stable=True)[:most]
        return order[between[order] > 0].cpu()

    def train_mask(self, attribute: str, wanted: Interchange, bar: Progress) -> Tensor:
        """[K] int64: the active latents that a mask trained on ``wanted`` keeps.

        The mask ``σ(m / T)``, of which each latent has a share interchanged, minimises the cross-entropy of the wanted
        answers' first tokens by Adam from ``m = 0``, T falling linearly from 1 to 1e-4; kept is where ``m > 0``.
        """
        mask_K = torch.zeros(len(self.active_K), device=self._model.device, requires_grad=True)
        optimizer = torch.optim.Adam([mask_K], lr=self._config.lr)
        generator = random_stream(self._config.seed, "benchmark", "ravel", attribute, "order")
        n, targets = len(wanted.bases), torch.tensor([answer[0] for answer in wanted.wanted])
        orders = [torch.randperm(n, generator=generator) for _ in range(self._config.n_epochs)]
        batches = [batch.tolist() for order in orders for batch in order.split(self._config.batch_size)]
        for temperature, batch in zip(torch.linspace(1, _COLDEST, len(batches)).tolist(), batches, strict=True):
            bases, sources = ([places[n] for n in batch] for places in (wanted.bases, wanted.sources))
            with evaluation_mode(self._model.hf), torch.enable_grad():
                moved_BD = self._moved(bases, sources, (mask_K / temperature).sigmoid())
                losses = [
                    cross_entropy(logits_BNV[:, 0].float(), targets[batch][part].to(logits_BNV.device), reduction="sum")
                    for part, logits_BNV in self._logits(bases, moved_BD, [()] * len(bases))
                ]
                (mask_K.grad,) = torch.autograd.grad(torch.stack(losses).sum() / len(batch), mask_K)
            optimizer.step()
            bar.advance(len(batch))
        return (mask_K.detach() > 0).nonzero()[:, 0].cpu()

    def hits(self, asked: Interchange, latents_K: Tensor) -> Tensor:
        """[n] bool: whether each answer is the wanted one, with these active latents interchanged."""
        share_K = torch.zeros(len(self.active_K), device=self._model.device)
        share_K[latents_K.to(share_K.device)] = 1
        return self._said(asked, share_K)

    def _said(self, asked: Interchange, share_K: Tensor | None) -> Tensor:
        """[n] bool: whether the model, edited with shares of latents where these are given, says what is wanted.

        It does where each token of the answer has the largest logit behind those before it, which is where the text it
        would generate without sampling begins with the answer.
        """
        said, size = torch.empty(len(asked.bases), dtype=torch.bool), self._config.batch_size
        with evaluation_mode(self._model.hf):
            for start in range(0, len(said), size):
                own = slice(start, start + size)
                bases, wanted = asked.bases[own], asked.wanted[own]
                moved_BD = None if share_K is None else self._moved(bases, asked.sources[own], share_K)
                for part, logits_BNV in self._logits(bases, moved_BD, [answer[:-1] for answer in wanted]):
                    answers_BN = torch.tensor([wanted[number] for number in part])
                    said[own][part] = (logits_BNV.argmax(-1).cpu() == answers_BN).all(1)
        return said

    def _moved(self, bases: list[int], sources: list[int], share_K: Tensor) -> Tensor:
        """[B, D]: what is added at the entity: shares of the latents' differences, less the error where not kept."""
        difference_BK = self._f_PK[sources] - self._f_PK[bases]
        return without_error(self._directions.change(difference_BK * share_K), self._error_PD[bases])

    def _logits(
        self, places: list[int], moved_BD: Tensor | None, following: Sequence[Answer]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Which of ``places``, and the logits [B, N, V] behind the prompt and each token ``following`` it.

        Those of one length are run together.
        """
        by_length: dict[tuple[int, int], list[int]] = {}
        for number, (place, after) in enumerate(zip(places, following, strict=True)):
            by_length.setdefault((len(self._prompts[place].ids), len(after)), []).append(number)
        for (n, _), part in by_length.items():
            prompts = [self._prompts[places[number]] for number in part]
            ids = [[*self._prompts[places[number]].ids, *following[number]] for number in part]
            at_B = torch.tensor([prompt.position for prompt in prompts])
            edits: dict[SiteName, EditFunction] = {}
            if moved_BD is not None:
                edits[self._sae.hook_name or ""] = moved((torch.arange(len(at_B)), at_B), moved_BD[part])
            with self._model.edits(edits):
                yield part, self._model(torch.tensor(ids, device=self._model.device))[:, n - 1 :]

    def _differ(self, base: str, source: str, attribute: str) -> bool:
        return self._right[self._place[base, attribute]] != self._right[self._place[source, attribute]]


def _answer(model: LanguageModel, data: AttributeData, case: tuple[str, str], prompt: Prompt) -> Answer:
    """The tokens that follow the prompt where the answer does."""
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
    return tuple(whole.ids[n:])
