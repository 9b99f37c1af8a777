"""Presets that come with the package: ``--config examples:NAME`` reads one, ``--config examples:`` lists them."""

from __future__ import annotations

from pathlib import Path

from monosema.core.config import MOST_YAML_BYTES
from monosema.core.errors import UnknownNameError, nearest_names
from monosema.core.files import read_text

PREFIX = "examples:"
FOLDER = Path(__file__).parents[1] / "examples"


def presets() -> dict[str, Path]:
    """The presets' files by name: ``clt`` for the embedded model, ``recipes/gpt2_small_relu`` for a published run."""
    files = {folder: sorted((FOLDER / folder).glob("*.yaml")) for folder in ("builtin", "recipes")}
    return {path.stem: path for path in files["builtin"]} | {f"recipes/{path.stem}": path for path in files["recipes"]}


def options_file(given: str) -> Path:
    """The file that ``--config`` names: the path itself, or that of a preset; ``UnknownNameError`` for another name."""
    if not given.startswith(PREFIX):
        return Path(given)
    name, known = given.removeprefix(PREFIX), presets()
    if name not in known:
        near = nearest_names(name.lower(), known, n=1)
        hint = f"; did you mean '{PREFIX}{near[0]}'?" if near else "."
        raise UnknownNameError(f"unknown preset {given!r}{hint} The presets are {', '.join(known)}")
    return known[name]


def preset_table() -> str:
    """A line for each preset: what ``--config`` takes, and what it trains."""
    known = presets()
    width = max(map(len, known)) + len(PREFIX)
    return "\n".join(f"{PREFIX + name:<{width}}  {_title(path)}" for name, path in known.items())


def _title(path: Path) -> str:
    """The comment at the head of a preset, up to its first colon or its end."""
    lines = read_text(path, MOST_YAML_BYTES).splitlines()
    n_comments = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    comment = " ".join(line.removeprefix("#").strip() for line in lines[:n_comments])
    return comment.partition(": ")[0].rstrip(".")
