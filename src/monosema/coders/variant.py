"""Which of the named variants a dictionary is."""

from __future__ import annotations

from monosema.coders.coder import SparseCoder
from monosema.coders.stack import Dictionary

_WORDS = {
    "SAE": "SAE",
    "Transcoder": "transcoder",
    "SkipTranscoder": "skip transcoder",
    "Crosscoder": "crosscoder",
    "CrossLayerTranscoder": "cross-layer transcoder",
}


def variant_of(coder: Dictionary) -> str:
    """The name of the variant: that of the class that makes one."""
    if not isinstance(coder, SparseCoder):
        return "CrossLayerTranscoder"
    if len(coder.config.write_widths) > 1 or len(coder.config.read_widths) > 1:
        return "Crosscoder"
    if coder.W_skip is not None:
        return "SkipTranscoder"
    return "SAE" if coder.hook_name == coder.hook_name_out and coder.d_in == coder.d_out else "Transcoder"


def variant_words(coder: Dictionary) -> str:
    """The variant in words."""
    return _WORDS[variant_of(coder)]
