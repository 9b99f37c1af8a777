"""When a run's checkpoints are written, and which of them stay."""

from __future__ import annotations

from dataclasses import dataclass

from monosema.core.errors import ConfigError
from monosema.core.words import counted
from monosema.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """The steps after which a run is checkpointed; each is written once."""

    n_steps: int
    """Steps of the run; the last one is always due."""
    every: int = 0
    """Steps whose multiples are due; 0 for none."""
    newest: int = 2
    """How many of the newest are kept."""
    kept_every: int = 0
    """Steps whose multiples are due and kept for good; 0 for none."""
    kept_steps: frozenset[int] = frozenset()
    """Further steps that are due and kept for good."""

    @staticmethod
    def of(config: TrainingConfig, batch_size: int, n_steps: int) -> CheckpointPlan:
        """The plan of a run; ``ConfigError`` where it ends before a token count that it is to keep."""
        n_tokens = n_steps * batch_size
        if config.checkpoint_tokens and max(config.checkpoint_tokens) > n_tokens:
            raise ConfigError(
                f"checkpoint_tokens has {max(config.checkpoint_tokens):,}, the run ends after "
                f"{counted(n_tokens, 'token')}; "
                "leave that one out, or raise tokens"
            )
        parts = config.n_checkpoints + 1
        spaced = (round(number * n_steps / parts) for number in range(1, parts))
        listed = (-(-count // batch_size) for count in config.checkpoint_tokens)
        return CheckpointPlan(
            n_steps=n_steps,
            every=max(1, n_steps // 10) if config.checkpoint_every is None else config.checkpoint_every,
            newest=config.keep_checkpoints,
            kept_every=config.keep_every,
            kept_steps=frozenset(step for step in (*spaced, *listed) if step > 0),
        )

    @property
    def n_written(self) -> int:
        """Checkpoints that the run writes, those of the best figure left out."""
        return sum(map(self.is_due, range(1, self.n_steps + 1)))

    @property
    def n_at_once(self) -> int:
        """The most of them that are on disk at once, one in the writing."""
        written = [step for step in range(1, self.n_steps + 1) if self.is_due(step)]
        for_good = sum(map(self.is_kept, written[: -self.newest]))
        return min(len(written), for_good + self.newest + 1)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is written after ``step`` steps."""
        return step == self.n_steps or self.is_kept(step) or (self.every > 0 and step % self.every == 0)

    def is_kept(self, step: int) -> bool:
        """Whether the checkpoint of ``step`` is never deleted."""
        return step in self.kept_steps or (self.kept_every > 0 and step % self.kept_every == 0)
