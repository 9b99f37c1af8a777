"""Activations on disk: written once, by one process or several, and trained on without the model.

Start with ``write`` and ``rows``; ``manifest`` says what lies in the folder, ``shards`` what lies in a file,
``folders`` where it lies. ``shuffle`` makes another order of a whole cache; ``arrow`` is sae-lens' layout, ``drrik``
another system's, ``repository`` the hub.
"""

from monosema.data.cache.arrow import export_arrow
from monosema.data.cache.drrik_export import export_npy
from monosema.data.cache.manifest import CachePlan, Manifest
from monosema.data.cache.opening import is_cache, open_source
from monosema.data.cache.repository import push_cache
from monosema.data.cache.rows import ActivationCache
from monosema.data.cache.shuffle import shuffle_cache
from monosema.data.cache.write import write_cache

__all__ = [
    "ActivationCache",
    "CachePlan",
    "Manifest",
    "export_arrow",
    "export_npy",
    "is_cache",
    "open_source",
    "push_cache",
    "shuffle_cache",
    "write_cache",
]
