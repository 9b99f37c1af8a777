"""What a comparison with known features found."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from monosema.core.words import counted
from monosema.evaluation.benchmarks.config import TruthConfig
from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.benchmarks.report import BenchmarkReport, Table

_GROUPS = {
    "directions": ("mean_matched_cosine", "mean_max_cosine", "recovered_fraction"),
    "detection": ("precision", "recall", "f1", "magnitude_ratio"),
    "latents": ("uniqueness", "n_recovered", "n_duplicate", "n_false", "n_dead", "d_sae"),
    "data": ("l0", "true_l0", "n_features", "n_silent_features", "n_rows"),
}


@dataclass(frozen=True, kw_only=True)
class FeatureMatches:
    """Each true feature and the latent it was given; ``[n_features]`` on the CPU, float64 but for ``latent``."""

    latent: Tensor
    """int64; -1 where there are fewer latents than features."""
    cosine: Tensor
    """Of the true direction and the latent's decoder row; 0 without a latent."""
    precision: Tensor
    """Share of the latent's firings at which the feature is there; 0 where the latent never fires."""
    recall: Tensor
    """Share of the feature's firings at which the latent fires."""
    f1: Tensor
    """Harmonic mean of the two. All three are NaN for features that no row has."""
    magnitude_ratio: Tensor
    """What the latent adds along the direction over what is there, where both fire; NaN where they never do."""
    frequency: Tensor
    """Share of rows that have the feature."""


@dataclass(frozen=True, kw_only=True)
class GroundTruthReport(BenchmarkReport):
    """How much of a known dictionary a coder has found; ``ground_truth`` defines each number.

    Intervals are over features. A value is NaN where there was nothing to average.
    """

    benchmark = "truth"

    mean_matched_cosine: Interval
    """Mean over features of the cosine with the latent assigned to it: 1 is perfect, also permuted and scaled."""
    mean_max_cosine: Interval
    """The same with each feature's nearest latent, which several may share; never below."""
    recovered_fraction: Interval
    """Share of features whose assigned latent has a cosine above ``threshold``."""
    precision: Interval
    """Mean over features of the assigned latent's precision as a detector of the feature."""
    recall: Interval
    """Mean over features of its recall."""
    f1: Interval
    """Mean over features of their harmonic mean."""
    magnitude_ratio: Interval
    """Mean over recovered features of contribution over truth: 1 is unbiased, below 1 is shrinkage."""
    uniqueness: float
    """Distinct nearest features of the latents, over the number of latents; at most ``n_features / d_sae``."""
    n_recovered: int
    """Latents that are the assigned one of a recovered feature."""
    n_duplicate: int
    """Other latents above ``threshold`` with some feature."""
    n_false: int
    """Latents near no feature."""
    n_dead: int
    """Latents that fired on no row; each is also one of the three above."""
    l0: float
    """Mean number of latents that fire on a row."""
    true_l0: float
    """Mean number of features in a row."""
    n_features: int
    """True features."""
    n_silent_features: int
    """Features that no row has, left out of precision, recall, F1 and magnitudes."""
    n_rows: int
    """Rows measured."""
    config: TruthConfig
    """The options."""
    features: FeatureMatches | None = field(default=None, repr=False, compare=False)
    """Each feature's numbers."""

    def _title(self) -> str:
        return f"{counted(self.d_sae, 'latent')} against {counted(self.n_features, 'known feature')}"

    def _tables(self) -> list[Table]:
        return [
            Table((group, ""), [(f"  {name}", getattr(self, name)) for name in names])
            for group, names in _GROUPS.items()
        ]
