"""Elements of HTML and SVG; whatever is put into one is escaped when it is written."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, tostring


def element(tag: str, attributes: Mapping[str, object] | None = None, *children: Element | str | None) -> Element:
    """An element with attributes and children, of which those that are None are left out; coordinates, floats, are
    rounded to hundredths."""
    made = Element(tag, {name: _text(value) for name, value in (attributes or {}).items() if value is not None})
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            if last is None:
                made.text = (made.text or "") + child
            else:
                last.tail = (last.tail or "") + child
        elif child is not None:
            made.append(child)
            last = child
    return made


def written(*elements: Element) -> str:
    """The elements as HTML, of which none may be void (``br``)."""
    return "\n".join(tostring(each, encoding="unicode", short_empty_elements=False) for each in elements)


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
