"""The file tree in the README, made from the first line of each file's docstring.

python scripts/readme_tree.py            # prints it
python scripts/readme_tree.py --write    # puts it into README.md
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- tree -->\n```text\n", "```\n<!-- /tree -->"
FOLDERS = {
    "src/monosema": "the library",
    "src/monosema/examples": "presets for --config examples:NAME, for the embedded model and of published runs",
    "src/monosema/models/builtin": "the embedded model: weights, tokenizer, card",
    "src/monosema/features/page": "the features page: HTML, style, script",
    "scripts": "what makes the embedded model, and this tree",
    "benchmarks": "side-by-side measurements with the peers",
    "docs": "reference pages and the log of what was measured",
    "tests": "mirror src/, one folder a room; plus fault/ (killed processes), fuzz/ (hostile files), parity/ (peers)",
}
SHOWN_WHOLE = {"src/monosema/examples", "src/monosema/models/builtin", "src/monosema/features/page", "docs", "tests"}
"""Folders shown as one line."""


def tree() -> str:
    lines: list[tuple[str, str]] = []
    for top in ("src/monosema", "scripts", "benchmarks", "docs", "tests"):
        _add(ROOT / top, 0, lines)
    width = max(len(name) for name, _ in lines) + 2
    return "".join(f"{name:<{width}}{comment}".rstrip() + "\n" for name, comment in lines)


def _add(folder: Path, depth: int, lines: list[tuple[str, str]]) -> None:
    key = folder.relative_to(ROOT).as_posix()
    label = key if depth == 0 else folder.name
    init = folder / "__init__.py"
    lines.append(("  " * depth + label + "/", FOLDERS.get(key) or (_first_line(init) if init.exists() else "")))
    if key in SHOWN_WHOLE:
        return
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            lines.append(("  " * (depth + 1) + file.name, _first_line(file)))
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"):
        _add(sub, depth + 1, lines)


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    line = docstring.split("\n\n")[0].replace("\n", " ").replace("``", "").split(". ")[0].rstrip(".")
    name, colon, rest = line.partition(": ")
    line = rest if colon and len(name.split()) <= 2 else line
    return line[0].lower() + line[1:] if line[1:2].islower() else line


def with_tree(readme: str) -> str:
    """``readme`` with the tree between its marks brought up to date."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + tree() + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        readme = ROOT / "README.md"
        readme.write_text(with_tree(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tree(), end="")


if __name__ == "__main__":
    main()
