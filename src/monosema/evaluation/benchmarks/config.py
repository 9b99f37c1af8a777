"""Options of the benchmarks, and the report's record of them."""

from __future__ import annotations

from dataclasses import dataclass

from monosema.core.config import check_types
from monosema.core.errors import ConfigError
from monosema.core.peers import explains_options


@explains_options
@dataclass(frozen=True, kw_only=True)
class TruthConfig:
    """Of ``ground_truth``."""

    n_rows: int = 50_000
    """Rows to draw from ``SyntheticFeatures``; all rows of ``KnownFeatures`` are used."""
    threshold: float = 0.9
    """Cosine above which a feature counts as found."""
    seed: int = 1
    """Of the rows drawn and of the intervals; training draws its rows with seed 0 unless told otherwise."""

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(self, "n_rows")
        if not -1 <= self.threshold < 1:
            raise ConfigError(f"threshold must be in [-1, 1), got {self.threshold}")


@explains_options
@dataclass(frozen=True, kw_only=True)
class ProbingConfig:
    """Of ``probe_texts`` and ``probe_tokens``; the defaults are SAEBench's (0.6.0, ``sparse_probing``)."""

    ks: tuple[int, ...] = (1, 2, 5)
    """Numbers of latents (and of the activations' dimensions) a probe may read."""
    n_train: int = 4000
    """Examples a probe is fitted on, half of each class; fewer where a class has fewer."""
    n_test: int = 1000
    """Held-out examples, likewise; their share of both is the share of texts held out."""
    context_size: int = 128
    """Tokens of a context, framing included; longer texts are cut, documents go on in the next context."""
    C: float = 1.0
    """Inverse strength of the L2 penalty, as in scikit-learn."""
    min_examples: int = 20
    """A task with fewer examples of a class, on either side, is left out."""
    n_tokens: int = 200_000
    """Of documents whose tokens are labelled: so many of them, from the first document on."""
    seed: int = 0
    """Decides what is held out, which examples are taken, and the intervals' resamples."""

    def __post_init__(self) -> None:
        check_types(self)
        _rising(self, "ks")
        for name in ("n_train", "n_test"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, one example of each class, got {getattr(self, name)}")
        _at_least_one(self, "min_examples", "n_tokens", "context_size")
        _positive(self, "C")


@explains_options
@dataclass(frozen=True, kw_only=True)
class AbsorptionConfig:
    """Constants of ``measure_absorption``; the defaults are those of SAEBench 0.6.0."""

    least_probe_f1: float = 0.6
    """Parents whose probe has no higher F1 on test rows are left out: the site does not hold the label."""
    most_main_latents: int = 10
    """Latents tried as a parent's own."""
    f1_gain: float = 0.03
    """A further latent is a parent's own where it raises the F1 of the k-sparse probe by more than this."""
    silent_below: float = 1e-8
    """Activation under which a latent is silent."""
    least_cosine: float = 0.025
    """Cosine of decoder row and probe from which one latent may absorb fully."""
    least_cosine_partial: float = 0.1
    """The same for the latents counted in the absorption fraction."""
    least_share: float = 0.4
    """Share of the row's projection on the probe that absorbing latents must bring."""
    most_absorbing: int = 3
    """Latents counted in the absorption fraction."""
    C: float = 1.0
    """Inverse strength of the probes' penalty (``fit_probe``)."""
    test_fraction: float = 0.2
    """Share of the rows that probes and latents are judged on."""
    seed: int = 0
    """Decides the split and the resamples."""

    def __post_init__(self) -> None:
        check_types(self)
        _at_least_one(self, "most_main_latents", "most_absorbing")
        for name in ("least_probe_f1", "least_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        _share(self, "test_fraction")
        _positive(self, "C")


@explains_options
@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """How latents are taken out under probes, in ``targeted_perturbation`` and ``spurious_removal``."""

    n_latents: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents ablated, each measured (SAEBench's)."""
    C: float = 1.0
    """Inverse strength of the probes' penalty (``fit_probe``)."""
    test_fraction: float = 0.2
    """Share of the rows that accuracies are measured on."""
    seed: int = 0
    """Decides the split and the resamples."""

    def __post_init__(self) -> None:
        check_types(self)
        _rising(self, "n_latents")
        _share(self, "test_fraction")
        _positive(self, "C")


@explains_options
@dataclass(frozen=True, kw_only=True)
class RavelConfig:
    """How ``cause_and_isolation`` chooses latents and draws pairs; SAEBench's (0.6.0, ``ravel``) where it has them."""

    n_epochs: int = 2
    """Passes over the training pairs that the mask over latents is trained in; 0 trains none."""
    lr: float = 1e-3
    """Adam's learning rate for the mask."""
    n_latents: tuple[int, ...] = ()
    """Also exchange so many latents, those that vary most between answers, each number measured."""
    n_answer_tokens: int = 6
    """Of an answer so many tokens are compared with what the model would generate."""
    keep_error: bool = False
    """Whether the edited site keeps what the dictionary does not reconstruct; SAEBench drops it."""
    test_fraction: float = 0.3
    """Share of the entities that scores are measured on; latents are chosen on the others."""
    most_pairs: int = 5000
    """Pairs of base and source entity for each attribute and side; drawn where there are more."""
    batch_size: int = 64
    """Prompts in a forward pass, and pairs in a step of the mask."""
    seed: int = 0
    """Decides the entities held out, the pairs and their order, and the resamples."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.n_latents or not self.n_epochs:
            _rising(self, "n_latents")
        if self.n_epochs < 0:
            raise ConfigError(f"n_epochs must be at least 0, got {self.n_epochs}")
        _at_least_one(self, "most_pairs", "batch_size", "n_answer_tokens")
        _share(self, "test_fraction")
        _positive(self, "lr")


@explains_options
@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """How ``monosema.runs.decoder_structure`` trains meta-dictionaries; SAEBench's (0.6.0, ``meta_structure``)."""

    width_fraction: float = 0.25
    """Meta-latents for each latent."""
    k: float = 4.0
    """Mean number of meta-latents of a decoder direction (BatchTopK)."""
    n_steps: int = 1500
    """Training steps."""
    lr: float = 5e-4
    """Learning rate."""
    batch_size: int = 1024
    """Directions in a step; all of them where there are fewer."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One meta-dictionary for each: initial weights, order of the directions and resamples of them."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different numbers, at least one, got {self.seeds}")
        _at_least_one(self, "n_steps", "batch_size")
        _positive(self, "width_fraction", "k", "lr")


def _rising(config: object, name: str) -> None:
    numbers = getattr(config, name)
    if not numbers or min(numbers) < 1 or list(numbers) != sorted(set(numbers)):
        raise ConfigError(f"{name} must be one or more rising numbers of at least 1, got {numbers}")


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be above 0, got {getattr(config, name)}")


def _share(config: object, name: str) -> None:
    if not 0 < getattr(config, name) < 1:
        raise ConfigError(f"{name} must be between 0 and 1, got {getattr(config, name)}")
