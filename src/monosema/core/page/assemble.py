"""A page as text: a body, a JSON header and one block of arrays, deflated and in base64.

Text of users may occur in the title, which is escaped, in the header, where markup characters are, and in a body whose
maker escaped it; scripts write text with ``textContent`` only.
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

Layout = dict[str, tuple[str, int, int]]
"""Of each array by name: the script's typed array, its first byte (a multiple of 8) and its number of elements."""

_STYLES = ("base.css",)
_SCRIPTS = ("arrays.js", "elements.js")


def assembled(
    *,
    title: str,
    body: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> str:
    """The whole page. ``styles`` and ``scripts`` follow those that all pages share; ``header`` also gets ``arrays``,
    where they lie in the block."""
    layout, data = _packed(arrays)
    text = json.dumps({**header, "arrays": layout}, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    shared = __package__
    parts = {
        "title": html.escape(title),
        "body": body,
        "style": "\n".join([*(asset(shared, name) for name in _STYLES), *styles]),
        "script": "\n".join([*(asset(shared, name) for name in _SCRIPTS), *scripts]),
        "header": text,
        "arrays": data,
    }
    return filled(asset(shared, "skeleton.html"), parts)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with a part for each ``{{name}}``; in one pass, so that no part is read as a template."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _packed(arrays: Mapping[str, np.ndarray]) -> tuple[Layout, str]:
    """Where each array lies, and the block in base64. Integers, which must not be negative, get the smallest type that
    holds them; the rest is float32."""
    layout: Layout = {}
    block = bytearray()
    for name, array in arrays.items():
        kind, smallest = "Float32Array", "<f4"
        if not np.issubdtype(array.dtype, np.floating):
            largest = int(array.max(initial=0))
            assert largest < 2**32, name
            assert int(array.min(initial=0)) >= 0, name
            bits = 8 if largest < 2**8 else 16 if largest < 2**16 else 32
            kind, smallest = f"Uint{bits}Array", f"<u{bits // 8}"
        block += b"\0" * (-len(block) % 8)
        layout[name] = (kind, len(block), array.size)
        block += np.ascontiguousarray(array.astype(smallest)).tobytes()
    return layout, base64.b64encode(zlib.compress(bytes(block), 6)).decode("ascii")


def asset(package: str, name: str) -> str:
    """A file of the library's: the text at ``name`` below the folder of ``package``."""
    return resources.files(package).joinpath(*name.split("/")).read_text(encoding="utf-8")
