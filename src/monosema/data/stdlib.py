"""The text of ``"stdlib"``: the running interpreter's own standard library, one document per module.

Every Python installation carries this text, so examples, tests and the demo need no download.
The order is fixed (module name), what is held out depends on the module's name alone, and the
text read is fingerprinted, so that two machines can tell whether they read the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STDLIB = "stdlib"
"""What it is called as a source of text."""

HELDOUT_FRACTION = 0.05
"""Share of modules held out: with about 12 MB of source this leaves well over 100,000 held-out tokens."""

_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "lib-dynload"})
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_GENERATED_PACKAGES = ("encodings.", "pydoc_data.")


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module of the standard library."""

    name: str
    """Dotted name, ``email.mime.text``; a package's ``__init__`` has the package's name."""
    text: str
    """Its source, decoded as Python itself would (PEP 263), newlines as ``\\n``."""

    @property
    def is_generated_table(self) -> bool:
        """Whether the module is data written by a program rather than code written by a person."""
        return self.name.startswith(_GENERATED_PACKAGES) or self.name.endswith("_data")


def stdlib_modules(*, tests: bool = False, folder: Path | None = None) -> list[Module]:
    """The standard library's modules in the order of their names.

    Args:
        tests: also the library's own test packages (left out by default).
        folder: another ``Lib`` folder than the running interpreter's.

    Sources that cannot be decoded (the library's tests keep some on purpose) and the machine's own
    build record (``_sysconfigdata…``) are passed over. Raises ``ValueError`` where no source is left,
    as on an interpreter that ships byte code only.
    """
    root = folder if folder is not None else Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in _sources(root, tests=tests):
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            modules.append(Module(name=_module_name(path.relative_to(root)), text=text))
    if not modules:
        raise ValueError(
            f"no .py sources under {root}: this interpreter ships its standard library without source; "
            "pass text files or a folder instead of 'stdlib'"
        )
    return sorted(modules, key=lambda module: module.name)


def is_heldout_name(name: str, fraction: float) -> bool:
    """Whether the document called ``name`` is held out: ``name_hash(name)`` / 2^64 < ``fraction``."""
    return name_hash(name) < fraction * 2**64


def name_hash(name: str) -> int:
    """The first 64 bits of sha256(``name``)."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _sources(root: Path, *, tests: bool) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in _SKIPPED_FOLDERS and not name.startswith("config-") and (tests or name not in _TEST_FOLDERS)
        )
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder) / name


def _module_name(relative: Path) -> str:
    parts = list(relative.with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)
