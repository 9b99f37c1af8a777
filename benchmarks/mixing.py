"""How many contexts a training batch draws on: our stream and cache beside SAELens' and dictionary_learning's buffers.

    python tests/parity/environments.py        # the peers' environments, once
    python benchmarks/mixing.py --write-docs

Every system runs its own code in its own interpreter on activations whose first number says which context they come
from. Contexts have 256 tokens, batches 4,096 rows; counting starts when what is carried over has settled. "Contexts"
are those that a batch draws on; "effective" is in how many equally likely contexts two rows of successive batches
would coincide as often as they do (all contexts of the run, were it perfectly shuffled).

The same memory is given to all in two ways: as rows held to be mixed, and at the peak of the process, measured
with rows of d 768 in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixing_protocol import Case
from report import ROOT, command, markdown_table, refresh_block

HERE = Path(__file__).resolve().parent
ROW_BYTES = 768 * 4
LARGE, SMALL = 2**30, 2**27
PEAK_OF = 2**29
"""Bytes of rows held where memory is measured."""
NARROW, WIDE = 4, 768
"""Numbers in a row where contexts are counted and where memory is measured."""


@dataclass(frozen=True)
class System:
    """What serves batches."""

    name: str
    script: str
    python: Path
    settings: str = "held"
    """Of equal memory."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def answer(self, case: Case) -> dict[str, Any]:
        """What its child process says of ``case``."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [self.python, HERE / self.script, json.dumps({**asdict(case), "folder": folder})],
                stdout=subprocess.PIPE,
                env={**inherited, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", **self.environment},
            )
        if done.returncode:
            raise SystemExit(f"{self.name}: its process ended with {done.returncode}; see above")
        result: dict[str, Any] = json.loads(done.stdout)
        return result


OURS = {"PYTHONPATH": str(ROOT / "src")}
STREAM = System("monosema, stream", "mix_monosema.py", Path(sys.executable), environment=OURS)
CACHE = System("monosema, cache", "mix_monosema.py", Path(sys.executable), "cache", OURS)
SAELENS = System("SAELens", "mix_saelens.py", ROOT / ".venv-saelens/bin/python")
DICTIONARY_LEARNING = System(
    "dictionary_learning", "mix_dictionary_learning.py", ROOT / ".venv-dictionary-learning/bin/python"
)
SYSTEMS = (STREAM, CACHE, SAELENS, DICTIONARY_LEARNING)


def rows_in(n_bytes: float) -> int:
    """Rows of d 768 in float32."""
    return int(n_bytes / ROW_BYTES)


def counting(settings: str, pool_rows: int, *, width: int = NARROW, settling: float = 4, buffers: float = 6) -> Case:
    return Case(settings, pool_rows, width, settling, buffers, folder="")


DEFAULTS = (
    ("stream, a long run", STREAM, counting("default", rows_in(LARGE), width=WIDE, settling=0, buffers=2)),
    ("stream, the least chunk", STREAM, counting("shortest", 64 * 4096, width=WIDE, settling=0, buffers=2)),
    ("cache", CACHE, counting("cache", rows_in(LARGE), settling=0)),
    ("SAELens, `n_batches_in_buffer` 20, contexts of 128", SAELENS, counting("default", rows_in(LARGE))),
    ("SAELens, its tutorial", SAELENS, counting("tutorial", rows_in(LARGE))),
    (
        "dictionary_learning, its 3.84 million rows",
        DICTIONARY_LEARNING,
        counting("default", rows_in(LARGE), settling=0.5, buffers=0.1),
    ),
)
"""What each system does when it is told nothing."""


def show(answer: Mapping[str, Any]) -> list[str]:
    """MiB of rows held, contexts of a batch at least and in the median, effective contexts."""
    if "refused" in answer:
        return [f"refused: {answer['refused']}", "", "", ""]
    contexts, pairs = answer["contexts"], statistics.mean(answer["pairs"])
    held = f"{answer['held_rows'] * ROW_BYTES / 2**20:,.0f}"
    return [held, f"{min(contexts):,}", f"{statistics.median(contexts):,.0f}", f"{1 / pairs:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true", help="refresh the table in docs/benchmarks.md")
    options = parser.parse_args()
    missing = sorted({str(system.python) for system in SYSTEMS if not system.python.exists()})
    if missing:
        raise SystemExit(f"no {' and no '.join(missing)}; see the head of this file")
    versions: dict[str, str] = {}
    rows: list[list[str]] = []

    def measure(label: list[str], system: System, case: Case) -> None:
        answer = system.answer(case)
        versions.update(answer.get("versions", {}))
        rows.append([*label, *show(answer)])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    for name, system, case in DEFAULTS:
        measure(["by default", name], system, case)
    peaks = {}
    for system in SYSTEMS:
        answer = system.answer(counting(system.settings, rows_in(PEAK_OF), width=WIDE, settling=0, buffers=2))
        peaks[system.name] = answer["peak_bytes"] / (answer["held_rows"] * ROW_BYTES)
        print(f"{system.name}: peak {peaks[system.name]:.2f} times the rows held", file=sys.stderr, flush=True)
    for n_bytes in (LARGE, SMALL):
        for how in ("held", "at the peak"):
            for system in SYSTEMS:
                share = 1.0 if how == "held" else peaks[system.name]
                case = counting(system.settings, rows_in(n_bytes / share))
                measure([f"{n_bytes // 2**20:,} MiB {how}", system.name], system, case)
    table = markdown_table(
        ["memory", "system", "MiB held", "contexts, least", "contexts, median", "effective contexts"], rows
    ).replace("| --- | ---: |", "| --- | --- |", 1)
    shown = ", ".join(f"{name} {times:.2f}" for name, times in peaks.items())
    text = (
        f"{table}\n\n"
        f"Peak of memory as a multiple of the rows held, {PEAK_OF // 2**20} MiB of d 768 in float32: {shown}. "
        f"{', '.join(f'{package} {version}' for package, version in versions.items())}.\n"
        f"Printed by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("mixing", text)


if __name__ == "__main__":
    main()
