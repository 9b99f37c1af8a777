"""Write the table of figures in docs/metrics.md: `python scripts/figures_table.py --write`."""

from __future__ import annotations

import argparse
from pathlib import Path

from monosema.metrics.figures import FIGURES

FILE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD, TAIL = "| name | formula | values | best |\n|---|---|---|---|\n", "\nThe report also holds, "


def rows() -> str:
    """A line for each figure, in the table's order."""
    lines = (f"| `{name}` | {row.formula} | {row.values} | {row.better or ''} |" for name, row in FIGURES.items())
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


def with_table(page: str) -> str:
    """``page`` with the rows as they are now."""
    before, rest = page.split(HEAD, 1)
    return before + HEAD + rows() + TAIL + rest.split(TAIL, 1)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file instead of printing the rows")
    if parser.parse_args().write:
        FILE.write_text(with_table(FILE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(rows(), end="")


if __name__ == "__main__":
    main()
