"""One offline HTML page that compares dictionaries by their reports.

Its job: tables and pictures of what reports say; it measures nothing. Start in ``write.py``, which puts the parts
together: ``tables.py``, ``curves.py`` (figures over L0), ``densities.py`` and ``latents.py``; ``rows.py`` says what is
compared. Everything but the table of latents is static and needs no script.
"""

from monosema.evaluation.page.write import write_page

__all__ = ["write_page"]
