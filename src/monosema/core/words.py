"""Numbers beside the things they count."""

from __future__ import annotations


def counted(n: int, thing: str, things: str | None = None) -> str:
    """``1 thread``, ``2 threads``, ``1,024 threads``; ``things`` is the plural where it is not ``thing`` and an s."""
    return f"{n:,} {thing if n == 1 else things or thing + 's'}"
