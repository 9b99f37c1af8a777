"""From text to shuffled activations.

Imports ``models`` and ``core``. Start with ``config`` (the options of text) and ``loading`` (text to ``tokens``: packed
contexts with a held-out split), which ``packed`` keeps on disk, then ``stream`` (contexts to shuffled rows). ``cache``
keeps these on disk, ``rows`` serves activations that are already there, and ``synthetic`` makes some from a known
dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.data.cache": ("ActivationCache", "push_cache", "shuffle_cache", "write_cache"),
    "monosema.data.config": ("Mixture", "TextSource", "load_tokens", "pretokenize"),
    "monosema.data.packed.push": ("push_pretokenized",),
    "monosema.data.packing": ("PackedBlock", "PackingRule", "pack", "pack_blocks", "packing_rule"),
    "monosema.data.packing_config": ("Packing", "Positions"),
    "monosema.data.rows": ("ArrayRows", "IterableRows", "as_row_source"),
    "monosema.data.sites": ("RowLayout",),
    "monosema.data.stream": ("ActivationStream",),
    "monosema.data.synthetic": ("SyntheticFeatures",),
    "monosema.data.tokens": ("TokenSplit", "Tokens"),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.data.cache import ActivationCache, push_cache, shuffle_cache, write_cache
    from monosema.data.config import Mixture, TextSource, load_tokens, pretokenize
    from monosema.data.packed.push import push_pretokenized
    from monosema.data.packing import PackedBlock, PackingRule, pack, pack_blocks, packing_rule
    from monosema.data.packing_config import Packing, Positions
    from monosema.data.rows import ArrayRows, IterableRows, as_row_source
    from monosema.data.sites import RowLayout
    from monosema.data.stream import ActivationStream
    from monosema.data.synthetic import SyntheticFeatures
    from monosema.data.tokens import Tokens, TokenSplit
