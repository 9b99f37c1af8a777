"""From text to shuffled activations.

Imports ``models`` and ``core``. Start with ``tokens`` (text to packed contexts with a held-out split), which
``pretokenized`` keeps on disk, then ``stream`` (contexts to shuffled rows); ``cache`` keeps these on disk, ``rows``
serves activations that are already there, and ``synthetic`` makes some from a known dictionary.
"""

from monosema.data.cache import ActivationCache, write_cache
from monosema.data.packing import PackingRule, pack
from monosema.data.pretokenized.push import push_pretokenized
from monosema.data.pretokenized.write import pretokenize
from monosema.data.rows import ArrayRows, IterableRows, as_row_source
from monosema.data.sites import RowLayout
from monosema.data.stream import ActivationStream
from monosema.data.synthetic import SyntheticFeatures
from monosema.data.tokens import Tokens, TokenSplit, load_tokens

__all__ = [
    "ActivationCache",
    "ActivationStream",
    "ArrayRows",
    "IterableRows",
    "PackingRule",
    "RowLayout",
    "SyntheticFeatures",
    "TokenSplit",
    "Tokens",
    "as_row_source",
    "load_tokens",
    "pack",
    "pretokenize",
    "push_pretokenized",
    "write_cache",
]
