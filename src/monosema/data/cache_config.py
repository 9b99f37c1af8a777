"""A cache of activations, read and written, as configs without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

from monosema.core.errors import ConfigError

if TYPE_CHECKING:
    from monosema.data.cache.manifest import Manifest
    from monosema.data.cache.rows import ActivationCache
    from monosema.data.stream import ActivationStream


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What is written of a stream: ``write_cache``."""

    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "bfloat16"
    """Type the activations are stored in; ``int8`` has a scale for each channel of each shard."""
    tokens: int | None = None
    """Rows wanted, in whole chunks; all of the text by default."""
    shard_bytes: int = 2**27
    """About the size of a file."""
    rank: int = 0
    """Which of several processes that write into one folder this one is."""
    n_writers: int = 1
    """How many there are."""

    def write(
        self, stream: ActivationStream, folder: str | os.PathLike[str], progress: Callable[[int], None]
    ) -> Manifest | None:
        """``write_cache`` with these options."""
        from monosema.data.cache.write import write_cache

        return write_cache(stream, folder, **asdict(self), progress=progress)


@dataclass(frozen=True, kw_only=True)
class CacheSource:
    """A cache of activations in place of model, text and stream; see ``ActivationCache``."""

    folder: str
    """What ``monosema cache`` wrote: a path, a URL, or the hub's name of a dataset repository."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    batch_size: int = 2048
    """Rows in a training step."""
    hook_names: tuple[str, ...] | None = None
    """Sites read, of those in the cache; those it was made for by default."""
    targets: tuple[str, ...] | None = None
    """Sites written, where they are others (a transcoder)."""
    seed: int = 0
    """Seed of the order of shards and rows."""
    epochs: int = 1
    """How often the cache may be read."""
    mix_bytes: int = 2**30
    """Memory for the shards that are mixed."""
    validation_fraction: float = 0.0
    """Share of the shards set aside for evaluation."""
    prefetch: bool = True
    """Whether the next shards are read while some are trained on, which takes as much memory again."""
    model: str | None = None
    """Model that the cache must be of."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """Type it must be stored in."""
    outlier_norm_multiple: float | None = 10.0
    """A row whose norm at a site exceeds so many times the median there is left out; null leaves no row out."""
    fingerprint: str | None = None
    """Content it must have; runs record it."""
    device: str | None = None
    """Where the dictionary is trained; a GPU where there is one."""

    def build(self) -> ActivationCache:
        """The ``ActivationCache`` of these options; ``ConfigError`` where its content has another ``fingerprint``."""
        from monosema.data.cache.rows import ActivationCache

        names = [each.name for each in fields(self) if each.name not in ("fingerprint", "device")]
        cache = ActivationCache(**{name: getattr(self, name) for name in names})
        if self.fingerprint not in (None, cache.manifest.fingerprint):
            raise ConfigError(
                f"{self.folder} is another cache than the one recorded (fingerprint {cache.manifest.fingerprint}, not "
                f"{self.fingerprint}); restore that one, or leave out cache.fingerprint for a new run"
            )
        return cache
