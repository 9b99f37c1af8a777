"""Options of k-sparse probing."""

from __future__ import annotations

from dataclasses import dataclass

from monosema.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ProbingConfig:
    """Sizes and seeds of k-sparse probing; the defaults are SAEBench's (0.6.0, ``sparse_probing``)."""

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
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
            raise ConfigError(f"ks must be one or more ascending numbers of at least 1, got {self.ks}")
        for name in ("n_train", "n_test"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, one example of each class, got {getattr(self, name)}")
        for name in ("min_examples", "n_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.C > 0:
            raise ConfigError(f"C must be above 0, got {self.C}")
