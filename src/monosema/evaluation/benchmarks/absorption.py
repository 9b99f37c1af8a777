"""Feature absorption on a label hierarchy: does the latent of a parent label fall silent on some of its children?

Shape letters: N rows, D width, F latents, K main latents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.core.words import counted
from monosema.evaluation.benchmarks.absorption_report import AbsorptionReport, ParentAbsorption
from monosema.evaluation.benchmarks.config import AbsorptionConfig
from monosema.evaluation.benchmarks.intervals import Interval, few_units, n_units, resampled_means
from monosema.evaluation.benchmarks.probes import Probe, balanced_weights, f1_score, fit_probe, unconverged
from monosema.evaluation.benchmarks.rows import EncodedRows, decoder_rows, encode_rows, require_plain_sae
from monosema.evaluation.benchmarks.splits import held_out

_ROW_ELEMENTS = 2**23


@dataclass(frozen=True)
class _Verdicts:
    """The probe's true positives of one parent among the test rows."""

    full: Tensor
    """[n] float64: 1 where a row is fully absorbed."""
    fraction: Tensor
    """[n] float64: its absorption fraction."""
    silent: Tensor
    """[n] float64: 1 where the main latents are silent."""
    absorber: Tensor
    """[n] int64: the latent with the largest projection on the probe, main latents left out."""


def measure_absorption(
    coder: Dictionary,
    rows: Tensor | EncodedRows,
    labels: Sequence[str],
    hierarchy: Mapping[str, Sequence[str]],
    config: AbsorptionConfig | None = None,
) -> AbsorptionReport:
    """How often a latent of a child label takes over the direction of its parent's (Chanin et al. 2024, 2409.14507).

    For each parent a probe with unit direction p is fitted on the activations, and its *main* latents are found: of
    the latents by falling ``E[f | parent] - E[f | not]``, the first, and each next one that raises the F1 of a
    logistic regression on them by more than ``f1_gain``. What is judged are the test rows of the parent that the probe
    gets right. With projections ``a_i = f_i ⟨W_dec[i], p⟩`` and ``a = ⟨x, p⟩``, which must be positive:

    - a row is **fully absorbed** (0 or 1) where all main latents are silent and the other latent with the largest
      ``a_i`` has ``cos(W_dec[i], p) >= least_cosine`` and ``a_i >= least_share · a``;
    - its **absorption fraction** (0 to 1) is ``A / (A + M)``, M the main latents' sum of ``a_i`` (at least 0) and A
      that of the at most ``most_absorbing`` other latents with the largest ``a_i > 0`` and
      ``cos >= least_cosine_partial``; it is 0 where ``M >= a`` or ``A < least_share · a``.

    Both are means over those rows and then over parents; 0 is best. The protocol and constants are SAEBench's
    first-letter task (2503.09532), on any hierarchy, with two differences: probes are solved exactly, balanced, and
    candidates for main latents are ordered by the difference of means, not by an L1 probe.

    Known caveats: dead or weak dictionaries score well, as a silent dictionary absorbs nothing, so read it beside the
    F1 of the main latents; ``a`` holds the site's mean, so that shares move with it; SAEBench changed the definition of
    its fraction between versions (published values are not comparable), the full score is the stable one; letters of
    models below about a billion parameters are hardly in the site. Intervals resample test rows only: neither probes,
    main latents nor the dictionary's training are repeated.

    Args:
        coder: an SAE.
        rows: activations ``[N, d_in]`` of its site, or rows encoded by ``word_rows`` or ``text_rows``.
        labels: N labels, each a child (or a parent) of the hierarchy, or none of it.
        hierarchy: children of each parent; a child may have several parents.
        config: constants of the protocol; by default ``AbsorptionConfig()``.

    Raises:
        ConfigError: not an SAE in the units of its site, or an empty hierarchy.
        ShapeError: activations of another width, or not as many labels.
        DataError: no rows, a value that is not finite, no parent that can be scored.
    """
    config, sae = config or AbsorptionConfig(), require_plain_sae(coder, "absorption")
    if isinstance(hierarchy, str) or not hierarchy or any(isinstance(each, str) for each in hierarchy.values()):
        raise ConfigError("hierarchy must map each parent label to a list of its child labels, and hold at least one")
    if len(labels) != len(rows):
        raise ShapeError(f"there must be one label for each row, got {len(labels)} for {len(rows)}")
    rows = encode_rows(sae, rows)
    members = torch.stack([_member_rows(labels, parent, children) for parent, children in hierarchy.items()], dim=1)
    _, kinds = members.unique(dim=0, return_inverse=True)
    is_test = held_out(rows.groups_N, config.test_fraction, config.seed, "absorption", kinds)
    train, test = (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]
    W_dec = decoder_rows(sae)
    parents, skipped, resampled, resampled_groups, probes = [], {}, [], [], {}
    for number, parent in enumerate(hierarchy):
        y = members[:, number]
        if not bool(y[train].any() and y[test].any() and (~y[train]).any()):
            skipped[parent] = f"too few to fit on some and test on others: {counted(int(y.sum()), 'row')}"
            continue
        probe = fit_probe(rows.x_ND[train], y[train], weights_N=balanced_weights(y[train]), C=config.C)
        probes[parent] = probe
        right = probe.predict(rows.x_ND[test])
        f1 = f1_score(right, y[test])
        judged = test[right & y[test]]
        if f1 <= config.least_probe_f1 or not len(judged):
            skipped[parent] = f"the probe's F1 is {f1:.3f}"
            continue
        main, main_f1 = main_latents(rows, y, train, test, config)
        if not len(main):
            skipped[parent] = "no latent is more active on its rows than on others"
            continue
        verdicts = _judge(rows, judged, W_dec, probe, main, config)
        both = torch.stack([verdicts.full, verdicts.fraction], dim=1)
        groups = rows.groups_N[judged]
        scores = resampled_means(both, config.seed, "absorption", parent, groups=groups)
        resampled.append(scores)
        resampled_groups.append(groups)
        parents.append(
            ParentAbsorption(
                parent=parent,
                full=Interval.of(scores[:, 0], n_units([groups])),
                fraction=Interval.of(scores[:, 1], n_units([groups])),
                silent_fraction=float(verdicts.silent.mean()),
                n_rows=len(judged),
                probe_f1=f1,
                main_latents=tuple(main.tolist()),
                main_f1=main_f1,
                absorbing_latents=_counted(verdicts),
                children=_by_child(verdicts.full, [labels[row] for row in judged.tolist()]),
            )
        )
    if not parents:
        reasons = "; ".join(f"{parent}: {reason}" for parent, reason in skipped.items())
        raise DataError(f"no parent can be scored ({reasons}); give more rows, or another site of the model")
    scores, n = torch.stack(resampled).mean(0), n_units(resampled_groups)
    return AbsorptionReport(
        mean_full=Interval.of(scores[:, 0], n),
        mean_fraction=Interval.of(scores[:, 1], n),
        mean_n_main_latents=sum(len(each.main_latents) for each in parents) / len(parents),
        parents=tuple(parents),
        n_train=len(train),
        n_test=len(test),
        d_sae=sae.d_sae,
        hook_name=sae.hook_name or "",
        config=config,
        notes=(
            *rows.notes,
            *(f"{parent}: left out, {reason}" for parent, reason in skipped.items()),
            *unconverged(probes),
            *few_units(min(len(each.unique()) for each in resampled_groups), "texts of a parent"),
        ),
    )


def first_letters(words: Sequence[str]) -> dict[str, list[str]]:
    """The hierarchy of SAEBench's task: each first letter, in lower case, and the words that begin with it."""
    letters: dict[str, list[str]] = {}
    for word in dict.fromkeys(words):
        start = word.strip()[:1].lower()
        if start.isalpha():
            letters.setdefault(start, []).append(word)
    return dict(sorted(letters.items()))


def main_latents(
    rows: EncodedRows, y_N: Tensor, train: Tensor, test: Tensor, config: AbsorptionConfig
) -> tuple[Tensor, float]:
    """The latents that stand for label y (best first; empty where none does), and the F1 of a probe on them.

    Latents are chosen on the training rows alone; the F1 returned is that of the test rows.
    """
    difference = rows.mean_difference(y_N, among=train)
    best, order = difference.topk(min(config.most_main_latents, len(difference)))
    order = order[best > 0]
    columns, weights = rows.columns(order), balanced_weights(y_N[train])
    kept, reached, on_test = 0, 0.0, 0.0
    for k in range(1, len(order) + 1):
        probe = fit_probe(columns[train, :k], y_N[train], weights_N=weights, C=config.C)
        f1 = f1_score(probe.predict(columns[train, :k]), y_N[train])
        if k > 1 and f1 <= reached + config.f1_gain:
            break
        kept, reached, on_test = k, f1, f1_score(probe.predict(columns[test, :k]), y_N[test])
    return order[:kept], on_test


def _judge(
    rows: EncodedRows, judged: Tensor, W_dec: Tensor, probe: Probe, main: Tensor, config: AbsorptionConfig
) -> _Verdicts:
    direction = normalize(probe.weight_D, dim=0)
    along, cosine = W_dec @ direction, normalize(W_dec, dim=1) @ direction
    parts = []
    for part in judged.split(max(1, _ROW_ELEMENTS // len(W_dec))):
        f = rows.dense(part)
        whole = rows.x_ND[part].double() @ direction
        projections = f * along
        by_main = projections[:, main].sum(1).clamp(min=0)
        silent = (f[:, main].abs() < config.silent_below).all(1)
        projections[:, main] = -torch.inf
        top, absorber = projections.max(1)
        needed = config.least_share * whole
        full = silent & (whole > 0) & (cosine[absorber] >= config.least_cosine) & (top >= needed) & (top > 0)
        allowed = projections.where(cosine >= config.least_cosine_partial, torch.zeros(()).to(projections))
        absorbed = allowed.clamp(min=0).topk(min(config.most_absorbing, len(W_dec))).values.sum(1)
        partial = (whole > 0) & (by_main < whole) & (absorbed >= needed) & (absorbed > 0)
        fraction = torch.where(partial, absorbed / (absorbed + by_main), torch.zeros_like(absorbed))
        parts.append(_Verdicts(full.double(), fraction, silent.double(), absorber))
    return _Verdicts(*(torch.cat([getattr(p, n) for p in parts]) for n in _Verdicts.__dataclass_fields__))


def _member_rows(labels: Sequence[str], parent: str, children: Sequence[str]) -> Tensor:
    names = {parent, *children}
    member = torch.tensor([label in names for label in labels], dtype=torch.bool)
    if not bool(member.any()) or bool(member.all()):
        raise DataError(
            f"{int(member.sum())} of {counted(len(labels), 'row')} belong to the parent {parent!r}; a probe needs "
            "rows of it and "
            "some of others"
        )
    return member


def _counted(verdicts: _Verdicts) -> dict[int, int]:
    counts = Counter(verdicts.absorber[verdicts.full > 0].tolist())
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _by_child(full: Tensor, children: Sequence[str]) -> dict[str, float]:
    of_child: dict[str, list[float]] = {}
    for child, value in zip(children, full.tolist(), strict=True):
        of_child.setdefault(child, []).append(value)
    return {child: sum(values) / len(values) for child, values in sorted(of_child.items())}
