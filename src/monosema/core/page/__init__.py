"""Offline HTML pages: one file with its style, its script and its data, that loads nothing.

Its job: what all pages share. ``assemble.py`` puts a page together and packs arrays into it; ``skeleton.html`` has the
policy that keeps the network out, ``base.css`` the colours and controls, ``arrays.js`` and ``elements.js`` what every
script begins with.
"""

from monosema.core.page.assemble import assembled, asset, filled

__all__ = ["assembled", "asset", "filled"]
