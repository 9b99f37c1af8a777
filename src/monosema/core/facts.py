"""How objects print themselves: a title and a few facts, as text for terminals and as a table for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from monosema.core.printable import escaped, terminal_line, terminal_lines

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Facts:
    """What an object says of itself."""

    title: str
    """One line."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """By name; None values are left out."""

    def __str__(self) -> str:
        shown = {terminal_line(name): value for name, value in self.facts.items() if value is not None}
        width = max(map(len, shown), default=0)
        return terminal_lines([self.title, *(f"  {name:<{width}}  {value}" for name, value in shown.items())])

    def html(self) -> str:
        """Static HTML, everything escaped."""
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left">{escaped(name)}</th>'
            f'<td style="text-align:left">{escaped(str(value))}</td></tr>'
            for name, value in self.facts.items()
            if value is not None
        )
        return f"<table><caption>{escaped(self.title)}</caption><tbody>{rows}</tbody></table>"


def shown_as_facts(cls: C) -> C:
    """Class decorator: ``repr`` and notebooks show the ``Facts`` that the method ``_facts`` returns."""

    def text(self: Any) -> str:
        return str(self._facts())

    def table(self: Any) -> str:
        html: str = self._facts().html()
        return html

    cls.__repr__ = text  # type: ignore[assignment]
    cls._repr_html_ = table  # type: ignore[attr-defined]
    return cls
