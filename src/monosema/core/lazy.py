"""Exports that are imported when first used, so that configs and help load without torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of ``package`` for names that live in the modules ``homes``."""
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, sorted(home_of)


def open_exports(package: str, homes: Mapping[str, Sequence[str]], whole: str) -> Callable[[str], Any]:
    """``__getattr__`` of ``package`` for names that live in the modules ``homes``, and for all that ``whole`` exports.

    It answers to ``__all__`` too, so the package must not set that.
    """
    get, names = lazy_exports(package, homes)

    def get_open(name: str) -> Any:
        if name == "__all__":
            return sorted({*names, *importlib.import_module(whole).__all__})
        if name in names or name.startswith("_"):
            return get(name)
        exported = importlib.import_module(whole)
        if name not in exported.__all__:
            return get(name)
        setattr(sys.modules[package], name, getattr(exported, name))
        return getattr(exported, name)

    return get_open
