"""Compat: our dictionaries under the names that other tools look for.

Its job: one thin file per tool, with calls to ours and nothing of its own, so that a tool takes our objects as if they
were its own. No tool is imported: what one asks of an object is written out here, and works where the tool is.

May import: everything. Nothing imports it. Start reading in ``saebench.py``, which serves SAEBench and sae-lens.
"""
