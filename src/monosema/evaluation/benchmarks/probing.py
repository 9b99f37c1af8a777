"""k-sparse probing: how well a few latents tell what people tell apart.

Shape letters: N examples, F latents, D input width, K columns chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, DataError
from monosema.core.words import counted
from monosema.data.stdlib import HELDOUT_FRACTION, is_heldout_name, stdlib_modules
from monosema.evaluation.benchmarks.config import ProbingConfig
from monosema.evaluation.benchmarks.intervals import Interval, bootstrap_mean, few_units
from monosema.evaluation.benchmarks.labels import PYTHON_LABELS, TokenLabels
from monosema.evaluation.benchmarks.probes import fit_probe
from monosema.evaluation.benchmarks.probing_report import ProbedTask, ProbingReport, SparseAccuracy
from monosema.evaluation.benchmarks.rows import EncodedRows
from monosema.evaluation.benchmarks.splits import ProbeTask, Tasks, balanced_tasks
from monosema.evaluation.benchmarks.texts import Framing, require_offsets, rows_at, same, text_rows
from monosema.models import LanguageModel

_FEW_TEXTS = 20


def probe_texts(
    coder: Dictionary,
    model: LanguageModel,
    texts: Sequence[str],
    labels: Sequence[str | int | bool],
    config: ProbingConfig | None = None,
    *,
    progress: bool = True,
) -> ProbingReport:
    """Accuracy of probes that read k latents, averaged over a text's tokens, at telling its label from the others.

    As SAEBench does it (Gurnee et al. 2023, arXiv 2305.01610, for k-sparse probes): of each text the first
    ``context_size`` tokens are run; activations and latents are averaged over those that are not special. For each
    label, as many texts with it as without are drawn, on a training and on a held-out side. The k latents with the
    largest ``|mean with the label - mean without|`` on the training side are read by a logistic regression
    (``fit_probe``) fitted there; ``accuracy = P(prediction = label)`` on the held-out side, 0 to 1, chance 0.5.
    The same is done with the k dimensions of the activation that differ most, and with all of them: what the model
    itself offers.

    What it cannot tell: a label that a single frequent word gives away is found by most dictionaries; latents chosen
    by difference of means repeat each other where features are split, so a larger k gains little; averages over
    tokens hide where a latent fires; the penalty depends on the scale of latents; differences below the intervals,
    which are those of other held-out texts and not of other training seeds, mean nothing.

    Args:
        coder: any dictionary over one site or several of the model.
        model: a language model with its tokenizer.
        texts: at least two.
        labels: one for each; of two different ones, one task is made, of more, one for each.
        config: sizes, k and seed; by default ``ProbingConfig()``.
        progress: show a bar on a terminal, a logged line elsewhere.

    Raises:
        ConfigError: a k above the number of latents or dimensions, or a model without tokenizer.
        DataError: one label only, too few texts, a text without text, or activations that are not finite.
    """
    config = _checked(config, coder)
    texts, kinds = list(texts), sorted(set(labels), key=lambda label: (str(type(label)), label))
    if len(texts) != len(labels):
        raise DataError(
            f"each text needs a label, got {counted(len(texts), 'text')} and {counted(len(labels), 'label')}"
        )
    if len(kinds) < 2:
        raise DataError(f"probes need texts of at least two labels, got {len(kinds)} in {counted(len(texts), 'text')}")
    kinds = kinds[1:] if len(kinds) == 2 else kinds
    labels_NL = torch.tensor([[label == kind for kind in kinds] for label in labels])
    groups = same(texts)
    tasks = balanced_tasks([str(kind) for kind in kinds], labels_NL, groups, config)
    used = tasks.examples
    chosen = [texts[number] for number in used.tolist()]
    rows = text_rows(coder, model, chosen, context_size=config.context_size, progress=progress)
    return _report(coder, model, rows, tasks, used, groups[used], config, "text")


def probe_tokens(
    coder: Dictionary,
    model: LanguageModel,
    documents: Iterable[str] | None = None,
    config: ProbingConfig | None = None,
    *,
    labels: TokenLabels = PYTHON_LABELS,
    progress: bool = True,
) -> ProbingReport:
    """``probe_texts`` for labels of single tokens: each example is a token, read where it stands.

    Documents are cut into contexts, and tokens labelled by where they lie in the text. Whole documents are held out
    and resampled, because tokens of a document are alike; with few documents the intervals are rough.

    What it cannot tell, beyond what ``probe_texts`` cannot: many of these labels are properties of the token itself
    (a keyword, an operator), which the embedding alone gives away.

    Args:
        coder: any dictionary over one site or several of the model.
        model: a language model with a fast tokenizer (one that says where tokens lie).
        documents: texts; by default those modules of the Python standard library that training on it holds out.
        config: sizes, k and seed; by default ``ProbingConfig()``.
        labels: what is told; by default what each token of Python source is.
        progress: show a bar on a terminal, a logged line elsewhere.

    Raises as ``probe_texts`` does, and ``DataError`` for a document that is not Python source.
    """
    config = _checked(config, coder)
    if isinstance(documents, str):
        raise DataError("documents must be several texts, got a single string")
    if documents is None:
        documents = (each.text for each in stdlib_modules() if is_heldout_name(each.name, HELDOUT_FRACTION))
    framing = Framing(model, config.context_size)
    require_offsets(model)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    contexts: list[list[int]] = []
    parts, groups, places = [], [], []
    left = config.n_tokens
    numbers: dict[str, int] = {}
    for text in documents:
        output = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = output["input_ids"][:left], output["offset_mapping"][:left]
        left -= len(ids)
        parts.append(labels.of(text, offsets))
        groups += [numbers.setdefault(text, len(numbers))] * len(ids)
        for start in range(0, len(ids), framing.room):
            own = ids[start : start + framing.room]
            places += [(len(contexts), framing.n_before + at) for at in range(len(own))]
            contexts.append(framing.around(own))
        if left <= 0:
            break
    if not places:
        raise DataError("no token to probe: every document is empty; give text")
    group_N = torch.tensor(groups)
    tasks = balanced_tasks(labels.names, torch.cat(parts), group_N, config)
    used = tasks.examples
    context_N, position_N = torch.tensor(places)[used].T
    run = context_N.unique().tolist()
    chosen = [position_N[context_N == number] for number in run]
    rows = rows_at(coder, model, [contexts[number] for number in run], chosen, progress)
    return _report(coder, model, rows, tasks, used, group_N[used], config, "token")


def _report(
    coder: Dictionary,
    model: LanguageModel,
    rows: EncodedRows,
    tasks: Tasks,
    used: Tensor,
    groups: Tensor,
    config: ProbingConfig,
    unit: Literal["text", "token"],
) -> ProbingReport:
    """``used`` int64 and ``groups`` are the example and the text of each of ``rows``."""
    probed = [_probed(task, rows, used, groups, config) for task in tasks.tasks]
    notes = [*rows.notes, *tasks.notes]
    if missed := [task.label for task in probed if not task.converged]:
        notes.append(f"probes of {', '.join(missed)} did not converge; their accuracy may be too low")
    notes += few_units(len(probed), "tasks")
    n_held_out = len(groups[torch.searchsorted(used, tasks.tasks[0].test.examples)].unique())
    if n_held_out < _FEW_TEXTS:
        notes.append(f"the intervals of single tasks are rough: they rest on {counted(n_held_out, 'held-out text')}")
    return ProbingReport(
        sparse=tuple(
            SparseAccuracy(
                k=k,
                latents=_mean([task.sparse[number].latents for task in probed], config),
                activations=_mean([task.sparse[number].activations for task in probed], config),
            )
            for number, k in enumerate(config.ks)
        ),
        activations=_mean([task.activations for task in probed], config),
        tasks=tuple(probed),
        unit=unit,
        d_in=coder.d_in,
        d_sae=coder.d_sae,
        hook_name=coder.hook_name or "",
        model_name=model.name,
        config=config,
        notes=tuple(notes),
    )


def _probed(task: ProbeTask, rows: EncodedRows, used: Tensor, groups: Tensor, config: ProbingConfig) -> ProbedTask:
    train, test = (torch.searchsorted(used, side.examples) for side in (task.train, task.test))
    # Half of the examples have the label, so this is the difference of the two means.
    weight_N = torch.zeros(len(used), dtype=torch.float64)
    weight_N[train] = torch.where(task.train.labels, 2.0, -2.0).double() / len(train)
    of_latents = _largest(rows.sums(weight_N), max(config.ks))
    of_dimensions = _largest(weight_N @ rows.x_ND.double(), max(config.ks))
    latents_NK = rows.columns(of_latents)
    sparse = [columns[:, :k] for k in config.ks for columns in (latents_NK, rows.x_ND[:, of_dimensions])]
    accuracies, converged = [], True
    for columns in (*sparse, rows.x_ND):
        probe = fit_probe(columns[train], task.train.labels, C=config.C)
        is_right = probe.predict(columns[test]) == task.test.labels
        accuracies.append(bootstrap_mean(is_right.double(), config.seed, task.name, groups=groups[test]))
        converged = converged and probe.converged
    return ProbedTask(
        label=task.name,
        sparse=tuple(
            SparseAccuracy(k=k, latents=latents, activations=activations)
            for k, latents, activations in zip(config.ks, accuracies[:-1:2], accuracies[1:-1:2], strict=True)
        ),
        activations=accuracies[-1],
        latents=tuple(of_latents.tolist()),
        n_train=len(train),
        n_test=len(test),
        converged=converged,
    )


def _largest(difference: Tensor, k: int) -> Tensor:
    """The ``k`` with the largest absolute values, the first among equals first."""
    return difference.abs().sort(descending=True, stable=True).indices[:k]


def _mean(accuracies: list[Interval], config: ProbingConfig) -> Interval:
    return bootstrap_mean(torch.tensor([each.value for each in accuracies], dtype=torch.float64), config.seed)


def _checked(config: ProbingConfig | None, coder: Dictionary) -> ProbingConfig:
    config = ProbingConfig() if config is None else config
    if max(config.ks) > min(coder.d_sae, coder.d_in):
        raise ConfigError(
            f"k={max(config.ks)} is more than the {counted(coder.d_sae, 'latent')} or the "
            f"{counted(coder.d_in, 'dimension')}; lower ks"
        )
    return config
