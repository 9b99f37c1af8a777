"""One training step of every architecture, side by side with the peers in one run: float32, on the CPU.

    python tests/parity/environments.py                    # the peers' environments, once
    python tests/parity/environments.py --only sparsify
    python benchmarks/step.py [--cases TopK ...] [--write-docs step] [--json FILE]

Every system runs in its own interpreter as a child process, is fed the same activations and does what its own training
loop does at every step; ours includes statistics, the AuxK policy, the optimiser, and the figures it logs every 50
steps, the peers' logging is off. The children take turns (A B C A B C …), so that a slow minute of the machine meets
all of them; a turn is several steps, and the figure is the median over turns. Warm-up is not counted. Run it on a
machine that does nothing else.

Architectures whose density is learned are timed twice: as each system starts them, and from the same weights with
biases or thresholds shifted so that 64 latents of a token are active.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Problem
from report import ROOT, command, machine, markdown_table, n_processors, processor, refresh_block
from rows import activations

HERE = Path(__file__).resolve().parent
OURS, PRODUCT = "monosema", "the encoder product alone"
N_BATCHES = 16
PRETENDED_STEPS = 25_000
"""Length of the run that schedules are made for: the timed steps are none of its last ones."""
PAUSE_S = 0.2
"""Between turns, for the last child's waiting threads to fall asleep."""


@dataclass(frozen=True)
class System:
    """One column of the table."""

    name: str
    script: str
    python: Path
    only: str | None = None
    """The one architecture that it has, where it has not all."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.name == OURS


SYSTEMS = (
    System(OURS, "step_monosema.py", Path(sys.executable), environment={"PYTHONPATH": str(ROOT / "src")}),
    System("SAELens", "step_saelens.py", ROOT / ".venv-saelens/bin/python"),
    System(
        "SAELens, sparse activations",
        "step_saelens.py",
        ROOT / ".venv-saelens/bin/python",
        only="TopK",
        environment={"SPARSE": "1"},
    ),
    System("dictionary_learning", "step_dictionary_learning.py", ROOT / ".venv-dictionary-learning/bin/python"),
    System("sparsify", "step_sparsify.py", ROOT / ".venv-sparsify/bin/python", only="TopK"),
    System(PRODUCT, "step_product.py", Path(sys.executable)),
)
L0 = 64
CASES: dict[str, tuple[str, int | None]] = {
    "TopK": ("TopK", None),
    "BatchTopK": ("BatchTopK", None),
    "Matryoshka BatchTopK": ("Matryoshka BatchTopK", None),
    **{f"{name}, L0 {L0}": (name, L0) for name in ("JumpReLU", "ReLU", "Gated")},
    **{f"{name} at its start": (name, None) for name in ("JumpReLU", "ReLU", "Gated")},
}
"""Architecture, and the L0 that all systems start with."""


@dataclass
class Timing:
    """What one system did."""

    versions: dict[str, str]
    turns_ms: list[float] = field(default_factory=list)
    """Milliseconds a step, the mean of each turn."""
    fve: float = float("nan")
    """Variance explained after as many steps as all systems have taken: shows that it trained."""
    l0: float = float("nan")
    """Mean number of active latents then."""
    peak_bytes: float = float("nan")
    """Memory beyond weights, gradients and Adam's moments."""

    @property
    def median_ms(self) -> float:
        return statistics.median(self.turns_ms)


class Child:
    """A system's process, waiting for its next turn."""

    def __init__(self, system: System, problem: Problem):
        self.system = system
        threads = {name: str(problem.n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        self._process = subprocess.Popen(
            [system.python, HERE / system.script, json.dumps(asdict(problem))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, **threads, **offline, **system.environment},
        )
        self.timing = Timing(json.loads(self._answer()))

    def run(self, n_steps: int) -> float:
        """Seconds that ``n_steps`` steps took."""
        return float(self._ask(f"run {n_steps}"))

    def look(self) -> None:
        """Ask for FVE and L0."""
        self.timing.fve, self.timing.l0 = json.loads(self._ask("finish"))

    def finish(self, n_steps: int) -> None:
        """Ask for the peak of memory over ``n_steps`` and end the process."""
        self.timing.peak_bytes = float(self._ask(f"peak {n_steps}"))
        self.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.system.name}: its process ended with {self._process.wait()}; see above")
        return answer


def measure(problem: Problem, systems: Sequence[System], options: argparse.Namespace) -> dict[str, Timing]:
    """Timings by system's name."""
    children: list[Child] = []
    try:
        for system in systems:
            print(f"  {system.name}: starting, {options.warmup} steps of warm-up", file=sys.stderr, flush=True)
            children.append(Child(system, problem))
            children[-1].run(options.warmup)
            children[-1].look()
        for turn in range(options.turns):
            for child in children:
                time.sleep(PAUSE_S)
                n_steps = options.steps if child.system.is_ours else options.peer_steps
                child.timing.turns_ms.append(1e3 * child.run(n_steps) / n_steps)
            shown = ", ".join(f"{child.system.name} {child.timing.turns_ms[-1]:.1f}" for child in children)
            print(f"  turn {turn + 1} of {options.turns} (ms a step): {shown}", file=sys.stderr, flush=True)
        for child in children:
            child.finish(options.peer_steps)
    except BaseException:
        for child in children:
            child.close()
        raise
    return {child.system.name: child.timing for child in children}


def ratio(timings: Mapping[str, Timing]) -> float | None:
    """The fastest peer's time over ours; None where one of them was not run."""
    peers = [timing.median_ms for name, timing in timings.items() if name not in (OURS, PRODUCT)]
    return min(peers) / timings[OURS].median_ms if peers and OURS in timings else None


def render(problem: Problem, results: Mapping[str, Mapping[str, Timing]], n_warmup: int) -> str:
    """The table and all that it depends on, as Markdown."""
    rows = []
    for case, timings in results.items():
        best, ours = ratio(timings), timings.get(OURS)
        for name, timing in timings.items():
            low, high = min(timing.turns_ms), max(timing.turns_ms)
            share = f"{timing.median_ms / ours.median_ms:.2f}" if ours else "–"
            trains = name != PRODUCT
            rows.append(
                [
                    case,
                    name,
                    f"{timing.median_ms:.1f}",
                    f"{low:.1f} to {high:.1f}",
                    share,
                    f"{timing.l0:.1f}" if trains else "",
                    f"{timing.fve:.3f}" if trains else "",
                    f"{timing.peak_bytes / 2**20:.0f}" if trains else "",
                ]
            )
        if best is not None:
            rows.append([case, "**fastest peer / ours**", "", "", f"**{best:.2f}**", "", "", ""])
    header = [
        "case",
        "system",
        "ms a step (median)",
        "range of turns",
        "times ours",
        "L0",
        "FVE",
        "MiB beyond the state",
    ]
    table = markdown_table(header, rows).replace("| --- | ---: |", "| --- | --- |", 1)
    versions: dict[str, set[str]] = {}
    for timings in results.values():
        for timing in timings.values():
            for package, version in timing.versions.items():
                versions.setdefault(package, set()).add(version)
    installed = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in versions.items())
    return (
        f"{table}\n\n"
        f"B {problem.batch_size}, d {problem.d_in}, n {problem.d_sae}, k {problem.k}, {problem.precision}, "
        f"{machine(problem.n_threads, problem.device)}; {installed}. L0 and FVE after "
        f"{n_warmup} steps.\n"
        f"Printed by `{command()}`."
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time one training step, side by side with the peers.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="just these; all by default")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cuda for a GPU")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of products")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50, help="our steps in a turn; 50 hold one logging step each")
    parser.add_argument("--peer-steps", type=int, default=10, help="a peer's steps in a turn")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the first turn")
    parser.add_argument("--systems", nargs="+", choices=[s.name for s in SYSTEMS], help="just these; all by default")
    parser.add_argument("--json", type=Path, help="write everything measured to this file as well")
    parser.add_argument("--write-docs", metavar="NAME", help="put the table into this block of docs/benchmarks.md")
    return parser.parse_args()


def main() -> None:
    options = _parse()
    systems = [system for system in SYSTEMS if options.systems is None or system.name in options.systems]
    missing = sorted({str(system.python) for system in systems if not system.python.exists()})
    if missing:
        raise SystemExit(f"no {' and no '.join(missing)}; see the head of this file")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); these timings say little", file=sys.stderr)
    results: dict[str, dict[str, Timing]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, activations(N_BATCHES * options.batch_size, options.d_in).numpy())
        for case in options.cases or CASES:
            architecture, l0 = CASES[case]
            problem = Problem(
                architecture=architecture,
                l0=l0,
                batch_size=options.batch_size,
                d_in=options.d_in,
                d_sae=options.d_sae,
                k=options.k,
                n_threads=options.threads,
                device=options.device,
                precision=options.precision,
                n_steps=PRETENDED_STEPS,
                rows=str(file),
            )
            print(f"{case}:", file=sys.stderr)
            fitting = [system for system in systems if system.only in (None, architecture)]
            results[case] = measure(problem, fitting, options)
    text = render(problem, results, options.warmup)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(_plain(problem, results, load), indent=2) + "\n", encoding="utf-8")
    if options.write_docs:
        refresh_block(options.write_docs, text)


def _plain(problem: Problem, results: Mapping[str, Mapping[str, Timing]], load: float) -> dict[str, Any]:
    return {
        "command": command(),
        "processor": processor(),
        "n_processors": n_processors(),
        "load_before": load,
        "problem": {key: value for key, value in asdict(problem).items() if key not in ("rows", "architecture", "l0")},
        "results": {
            case: {
                "fastest_peer_over_ours": ratio(timings),
                "systems": {name: {**asdict(t), "median_ms": t.median_ms} for name, t in timings.items()},
            }
            for case, timings in results.items()
        },
    }


if __name__ == "__main__":
    main()
