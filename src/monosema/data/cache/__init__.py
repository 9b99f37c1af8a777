"""Activations on disk: written once, by one process or several, and trained on without the model.

Start with ``write`` and ``rows``; ``manifest`` says what lies in the folder, ``shards`` what lies in a file.
"""

from monosema.data.cache.manifest import CachePlan, Manifest, read_manifest
from monosema.data.cache.rows import ActivationCache
from monosema.data.cache.write import write_cache

__all__ = ["ActivationCache", "CachePlan", "Manifest", "read_manifest", "write_cache"]
