"""Count the assertions of tests at two commits: `python scripts/count_assertions.py BEFORE [AFTER]`.

An assertion is an assert statement, or a call of pytest.raises or pytest.warns. One that is parametrized counts once.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
CALLS = {"pytest.raises", "pytest.warns", "raises", "warns"}


def n_assertions(source: str) -> int:
    """How many assertions stand in ``source``."""
    return sum(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS)
        for node in ast.walk(ast.parse(source))
    )


def counts_at(commit: str, root: Path = ROOT) -> dict[str, int]:
    """The count of each file of ``tests`` at ``commit``. Raises ``CalledProcessError`` where git knows no such one."""
    command = ["git", "archive", "--format=tar", commit, "tests"]
    packed = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout
    counts = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".py") else None
            if content is not None:
                counts[member.name] = n_assertions(content.read().decode("utf-8"))
    return counts


def table(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """A line for each file whose count differs, and one for all files: before, after, difference, name."""
    rows = [(before.get(name, 0), after.get(name, 0), name) for name in sorted({*before, *after})]
    changed = [row for row in rows if row[0] != row[1]]
    total = (sum(before.values()), sum(after.values()), "all files")
    return "".join(f"{old:>6} {new:>6} {new - old:>+6}  {name}\n" for old, new, name in [*changed, total])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", default="HEAD", help="another one")
    given = parser.parse_args()
    print(table(counts_at(given.before), counts_at(given.after)), end="")


if __name__ == "__main__":
    main()
