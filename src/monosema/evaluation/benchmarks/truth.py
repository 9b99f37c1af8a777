"""``ground_truth``: a coder against the features that its activations were made of.

Shape letters: B rows of a step, N features, F latents, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, DataError, ShapeError
from monosema.data.synthetic import SyntheticFeatures
from monosema.evaluation.activations import ROWS_PER_STEP
from monosema.evaluation.benchmarks.config import TruthConfig
from monosema.evaluation.benchmarks.intervals import bootstrap_mean, few_units
from monosema.evaluation.benchmarks.truth_report import FeatureMatches, GroundTruthReport
from monosema.evaluation.measure import evaluation_mode, require_finite_weights
from monosema.metrics import best_assignment, require_finite


@dataclass(frozen=True, kw_only=True)
class KnownFeatures:
    """Activations whose features are known, such as ``x = Σ_i a_i d_i`` and noise."""

    directions: Tensor
    """``[n_features, d]``, of any length but zero; a feature adds its magnitude times its direction."""
    magnitudes: Tensor
    """``[n, n_features]``: how strongly each row has each feature; above 0 where it has it."""
    rows: Tensor | None = None
    """``[n, d]``: the activations, where they are more than ``magnitudes @ directions``."""

    def __post_init__(self) -> None:
        if self.directions.dim() != 2 or 0 in self.directions.shape:
            raise ShapeError(f"directions must be [n_features, d], got {list(self.directions.shape)}")
        n_features, width = self.directions.shape
        if self.magnitudes.dim() != 2 or self.magnitudes.shape[1] != n_features or not len(self.magnitudes):
            raise ShapeError(
                f"magnitudes must be [n, {n_features}], a column for each direction, got {list(self.magnitudes.shape)}"
            )
        if self.rows is not None and self.rows.shape != (len(self.magnitudes), width):
            raise ShapeError(f"rows must be [{len(self.magnitudes)}, {width}], got {list(self.rows.shape)}")
        require_finite("directions", self.directions)
        require_finite("magnitudes", self.magnitudes)
        if not bool(self.directions.any(dim=1).all()):
            raise DataError("a direction is zero, so no latent can have it; leave out the feature")


def ground_truth(
    coder: Dictionary,
    features: SyntheticFeatures | KnownFeatures,
    config: TruthConfig | None = None,
) -> GroundTruthReport:
    """How much of a known dictionary ``coder`` has found, in its decoder and in what it detects.

    With ``C_ij = cos(d_i, w_j)`` of feature i's direction and latent j's decoder row (0 for a zero row; signs count),
    and π the pairing of features and latents with the largest ``Σ_i C_iπ(i)``:

    - ``mean_matched_cosine = mean_i C_iπ(i)``, 0 for a feature without a latent (-1 to 1). A latent found twice counts
      once, which the usual ``mean_max_cosine = mean_i max_j C_ij`` does not see.
    - ``recovered_fraction = mean_i 1[C_iπ(i) > threshold]`` (0 to 1).
    - ``uniqueness = |{argmax_i C_ij}| / d_sae``, zero rows naming none (0 to ``min(1, n_features / d_sae)``).
    - precision ``P(a_i > 0 | f_π(i) > 0)``, recall ``P(f_π(i) > 0 | a_i > 0)`` and their harmonic mean, averaged over
      the features that some row has (0 to 1; 0 where the latent never fires or there is none).
    - ``magnitude_ratio = Σ f_π(i) <w_π(i), d̂_i> / Σ a_i ‖d_i‖`` over the rows where both fire, averaged over recovered
      features: 1 is unbiased, below 1 is shrinkage. Where one latent stands for several features that fire together it
      is above 1.

    What it cannot tell: in few dimensions, or with many latents, random rows have large cosines too (compare with an
    untrained coder); any firing however small counts in precision; a hierarchy may be learned as its usual sums
    (parent plus child), which scores as a loss though the rows are explained; and synthetic rows are kinder than those
    of language models.

    Args:
        coder: an SAE as wide as the directions.
        features: what the activations are made of.
        config: rows, threshold and seed; by default ``TruthConfig()``. Intervals are of 1,000 resamples of features.

    Raises:
        ConfigError: a coder that is no SAE.
        ShapeError: the coder's width is not the features'.
        DataError: weights or rows that are not finite.
    """
    config = config or TruthConfig()
    seed, threshold = config.seed, config.threshold
    known = features if isinstance(features, KnownFeatures) else _drawn(features, config.n_rows, seed)
    coder = _plain_sae(coder, known.directions.shape[1])
    decoder_FD = coder.decoder_rows(range(coder.d_sae)).detach().double().cpu()
    directions_ND = known.directions.double().cpu()
    cosine_NF = normalize(directions_ND, dim=1) @ normalize(decoder_FD, dim=1).T
    latent = best_assignment(cosine_NF)
    matched, own = latent >= 0, latent.clamp(min=0)
    cosine = cosine_NF.gather(1, own[:, None])[:, 0].where(matched, torch.tensor(0.0, dtype=torch.float64))
    recovered = matched & (cosine > threshold)
    found = torch.zeros(coder.d_sae, dtype=torch.bool)
    found[latent[recovered]] = True
    near = cosine_NF.amax(dim=0) > threshold

    counts = _counted(coder, known, own)
    both, fires = counts.both * matched, counts.latent_fires[own] * matched
    seen = counts.feature_fires > 0
    precision = torch.where(fires > 0, both / fires.clamp(min=1), 0.0)
    recall = both / counts.feature_fires.clamp(min=1)
    f1 = 2 * both / (fires + counts.feature_fires).clamp(min=1)
    along = (decoder_FD[own] * normalize(directions_ND, dim=1)).sum(1)
    ratio = counts.latent_sum * along / (counts.feature_sum * directions_ND.norm(dim=1))
    notes = []
    if coder.token_scaling != "none":
        ratio, notes = ratio * torch.nan, ["no magnitude_ratio: the coder scales tokens, so its latents have no unit"]
    if not bool(seen.all()):
        notes.append(
            f"features that fire on no row: {int((~seen).sum()):,}; draw more (n_rows) to measure their detection"
        )
    notes += few_units(len(cosine), "features")
    matches = FeatureMatches(
        latent=latent,
        cosine=cosine,
        precision=_where(seen, precision),
        recall=_where(seen, recall),
        f1=_where(seen, f1),
        magnitude_ratio=_where(matched & (both > 0), ratio),
        frequency=counts.feature_fires / len(known.magnitudes),
    )
    n_recovered, n_near = int(found.sum()), int((near & ~found).sum())
    return GroundTruthReport(
        mean_matched_cosine=bootstrap_mean(cosine, seed),
        mean_max_cosine=bootstrap_mean(cosine_NF.amax(dim=1), seed),
        recovered_fraction=bootstrap_mean(recovered.double(), seed),
        precision=bootstrap_mean(matches.precision, seed),
        recall=bootstrap_mean(matches.recall, seed),
        f1=bootstrap_mean(matches.f1, seed),
        magnitude_ratio=bootstrap_mean(matches.magnitude_ratio[recovered], seed),
        uniqueness=len(cosine_NF[:, decoder_FD.any(dim=1)].argmax(dim=0).unique()) / coder.d_sae,
        n_recovered=n_recovered,
        n_duplicate=n_near,
        n_false=coder.d_sae - n_recovered - n_near,
        n_dead=int((counts.latent_fires == 0).sum()),
        d_sae=coder.d_sae,
        l0=float(counts.latent_fires.sum()) / len(known.magnitudes),
        true_l0=float(counts.feature_fires.sum()) / len(known.magnitudes),
        n_features=len(latent),
        n_silent_features=int((~seen).sum()),
        n_rows=len(known.magnitudes),
        config=config,
        hook_name=coder.hook_name or "",
        notes=tuple(notes),
        features=matches,
    )


@dataclass
class _Counts:
    """Firings and magnitudes, summed over rows in float64."""

    feature_fires: Tensor
    latent_fires: Tensor
    both: Tensor
    """[N]: rows where a feature and its latent fire."""
    feature_sum: Tensor
    """[N]: the feature's magnitudes there."""
    latent_sum: Tensor
    """[N]: the latent's values there."""


def _counted(coder: Dictionary, known: KnownFeatures, own: Tensor) -> _Counts:
    """``own [N]`` is the latent to compare each feature with."""
    n_features = len(own)
    zeros = [torch.zeros(n, dtype=torch.float64) for n in (n_features, coder.d_sae, *[n_features] * 3)]
    counts = _Counts(*zeros)
    with evaluation_mode(coder):
        for start in range(0, len(known.magnitudes), ROWS_PER_STEP):
            part = slice(start, start + ROWS_PER_STEP)
            a_BN = known.magnitudes[part].cpu().double()
            x_BD = a_BN @ known.directions.cpu().double() if known.rows is None else known.rows[part]
            require_finite(f"rows from {start}", x_BD)
            f_BF = coder.encode_sparse(x_BD.to(device=coder.device, dtype=coder.dtype)).to_dense().cpu()
            has_BN, f_BN = a_BN > 0, f_BF[:, own].double()
            both_BN = has_BN & (f_BN > 0)
            counts.feature_fires += has_BN.sum(0)
            counts.latent_fires += (f_BF > 0).sum(0)
            counts.both += both_BN.sum(0)
            counts.feature_sum += (a_BN * both_BN).sum(0)
            counts.latent_sum += (f_BN * both_BN).sum(0)
    return counts


def _drawn(features: SyntheticFeatures, n_rows: int, seed: int) -> KnownFeatures:
    return KnownFeatures(directions=features.directions(), magnitudes=features.latents(n_rows, seed))


def _plain_sae(coder: Dictionary, width: int) -> Dictionary:
    if coder.is_layered or not coder.reconstructs:
        raise ConfigError("ground_truth compares the decoder of an SAE, which writes what it reads; give one")
    if coder.d_in != width:
        raise ShapeError(
            f"the coder's width is {coder.d_in}, that of the true directions {width}; train it on their rows"
        )
    require_finite_weights(coder)
    return coder


def _where(kept: Tensor, values: Tensor) -> Tensor:
    return values.where(kept, torch.tensor(torch.nan, dtype=torch.float64))
