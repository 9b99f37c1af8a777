"""Features: what each latent of a coder responds to, for people to read.

Its job: read text once, keep each latent's numbers, strongest contexts and logits, and show them: as text, in a
notebook, and as one offline HTML page.

May import: ``core``, ``metrics``, ``coders``, ``models``, ``data``. Start reading in ``collect.py``; ``statistics.py``,
``windows.py`` and ``logits.py`` define the numbers, ``texts.py`` turns tokens into something readable, ``store.py``
and ``feature.py`` are what a user holds, ``dashboard.py`` fills the page in ``page/``. ``read_prompt.py`` reads one
prompt token by token, and ``render_prompt.py`` shows it.
"""

from monosema.features.collect import collect_features
from monosema.features.feature import Feature, FeatureContext, Histogram, LogitEffect, TokenSpan
from monosema.features.logits import ExtremeLogits
from monosema.features.prompt_reading import PromptReading, TokenLatent, TokenReading
from monosema.features.read_prompt import read_prompt
from monosema.features.statistics import LatentNumbers
from monosema.features.store import ContextTexts, FeatureStore, LatentRow, Provenance
from monosema.features.windows import Windows

__all__ = [
    "ContextTexts",
    "ExtremeLogits",
    "Feature",
    "FeatureContext",
    "FeatureStore",
    "Histogram",
    "LatentNumbers",
    "LatentRow",
    "LogitEffect",
    "PromptReading",
    "Provenance",
    "TokenLatent",
    "TokenReading",
    "TokenSpan",
    "Windows",
    "collect_features",
    "read_prompt",
]
