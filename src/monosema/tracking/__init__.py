"""Tracking: where the figures of a run go.

Its job: one sink. What a run logs, while it trains and on held-out text alike, is given to ``Sink.log(step, figures)``,
and the sink hands it to its subscribers in the order given: the run folder's ``metrics.jsonl`` (``JsonLines``), the
progress bar, and whatever ``ms.train(subscribers=...)`` was given. A subscriber is an object with a method
``log(step, figures)``.

May import: ``core``. Start reading in ``sink.py``; ``json_lines.py`` is the default subscriber of a run with a folder.
"""

from monosema.tracking.json_lines import JsonLines
from monosema.tracking.sink import Named, Sink, Subscriber

__all__ = ["JsonLines", "Named", "Sink", "Subscriber"]
