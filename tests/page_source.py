"""Pages as files: their tags, and the data that their scripts read."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np


class Elements(HTMLParser):
    """Start tags of a page, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def embedded(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays, read as the page's script reads them."""
    header_text, data_text, _ = Elements(path.read_text(encoding="utf-8")).scripts
    header = json.loads(header_text)
    block = zlib.decompress(base64.b64decode(data_text))
    kinds = {"Uint8Array": "<u1", "Uint16Array": "<u2", "Uint32Array": "<u4", "Float32Array": "<f4"}
    arrays = {
        name: np.frombuffer(block, kinds[kind], length, start)
        for name, (kind, start, length) in header["arrays"].items()
    }
    return header, arrays


def require_offline(path: Path) -> None:
    """Nothing in the page names a place to load from, handles events in markup, or makes markup of text."""
    page = path.read_text(encoding="utf-8")
    elements = Elements(page)
    for tag, attributes in elements.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert str(attributes.get(name, "data:,")).startswith(("data:", "#")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(attributes for _, attributes in elements.tags if "http-equiv" in attributes)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in str(policy["content"])
    assert "connect-src" not in str(policy["content"])
    style = re.search("<style>(.*)</style>", page, re.DOTALL)
    assert style is not None
    for source in (elements.scripts[2], style[1]):
        assert not re.search(r"https?:|//\w+\.\w|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(|sendBeacon", source)
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert unsafe not in elements.scripts[2]
