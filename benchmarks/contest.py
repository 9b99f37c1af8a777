"""The parents' end of the quality benchmarks: systems side by side, a learning rate each, L0 matched.

Every system trains on the same rows in the same order. For each architecture the learning rate is the best of
a few on the first seed, by the score of the benchmark; other seeds use it. A system that
cannot be told an L0 gets its sparsity coefficient by bisection until the L0 on held-out rows, as saved, is within
``L0_TOLERANCE``. Results are kept line by line in a file, and a benchmark that is run again goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jobs import Job
from report import ROOT

HERE = Path(__file__).resolve().parent
RATES = (3e-3, 1e-2, 3e-2)
L0_TOLERANCE = 0.05
SEARCH = 7
"""Runs that may be spent on matching L0 at one learning rate and seed."""


@dataclass(frozen=True)
class System:
    """One library under test."""

    name: str
    script: str
    python: Path
    searched: dict[str, float] = field(default_factory=dict)
    """Architectures whose sparsity coefficient is searched for, with a first guess."""
    architectures: tuple[str, ...] = ()


SYSTEMS = (
    System(
        "monosema",
        "jobs_monosema.py",
        Path(sys.executable),
        {},
        (
            "ReLU",
            "ReLU, p-annealing",
            "Tanh-ReLU",
            "Gated",
            "JumpReLU",
            "TopK",
            "AbsTopK",
            "Hierarchical TopK",
            "BatchTopK",
            "Matryoshka BatchTopK",
        ),
    ),
    System(
        "SAELens",
        "jobs_saelens.py",
        ROOT / ".venv-saelens/bin/python",
        {"ReLU": 1.0, "Gated": 1.0, "JumpReLU": 0.1},
        ("ReLU", "Gated", "JumpReLU", "TopK", "BatchTopK", "Matryoshka BatchTopK"),
    ),
    System(
        "dictionary_learning",
        "jobs_dictionary_learning.py",
        ROOT / ".venv-dictionary-learning/bin/python",
        {"ReLU": 0.1, "ReLU, p-annealing": 0.1, "Gated": 0.1, "JumpReLU": 1.0},
        ("ReLU", "ReLU, p-annealing", "Gated", "JumpReLU", "TopK", "BatchTopK", "Matryoshka BatchTopK"),
    ),
)


class Worker:
    """A system's process, which trains one job after the other."""

    def __init__(self, system: System):
        self.system = system
        self._lock = threading.Lock()
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if system.name == "monosema":
            inherited["PYTHONPATH"] = str(ROOT / "src")
        quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [system.python, HERE / system.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**inherited, **quiet},
        )

    def train(self, job: Job) -> dict[str, float]:
        """L0, FVE and seconds of one job."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asdict(job)) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise SystemExit(f"{self.system.name} could not train {job}:\n{self._log.read()[-3000:]}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


Score = Callable[[Path, Job], dict[str, float]]
"""What a benchmark measures on a child's ``.npz`` of a job."""


@dataclass
class Contest:
    """Runs jobs and remembers their results."""

    results: Path
    score: Score
    best_by: str
    """The figure of ``score`` by which a learning rate is chosen; more is better."""
    n_seeds: int
    rates: tuple[float, ...]
    """Learning rates to try."""
    search_at: str | None
    """The label at which the learning rate is searched for, the others taking the one found there; None for each."""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.results.exists():
            for line in self.results.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry

    def run(self, tasks: Iterable[tuple[System, str, str, Job]]) -> None:
        """Run ``(system, architecture, label, job)`` with one process per system, two systems at a time."""
        by_system: dict[str, list[tuple[System, str, str, Job]]] = {}
        failed = False
        for task in tasks:
            by_system.setdefault(task[0].name, []).append(task)
        with ThreadPoolExecutor(2) as pool:
            for done in as_completed([pool.submit(self._run_system, each) for each in by_system.values()]):
                if done.exception() is not None:
                    print(done.exception(), file=sys.stderr, flush=True)
                    failed = True
        if failed:
            raise SystemExit("a system stopped; what it had finished is kept, run again to go on")

    def _run_system(self, tasks: list[tuple[System, str, str, Job]]) -> None:
        worker = Worker(tasks[0][0])
        try:
            for system, architecture, label, job in tasks:
                self._run_one(worker, system, architecture, label, job)
        finally:
            worker.close()

    def _run_one(self, worker: Worker, system: System, architecture: str, label: str, job: Job) -> None:
        tried = [e for e in self.known.values() if (e["system"], e["architecture"]) == (system.name, architecture)]
        guesses = {entry["lr"]: entry["coefficient"] for entry in tried}
        guess = system.searched.get(architecture, 1.0)
        rates = self.rates
        if self.search_at not in (None, label):
            found = self.chosen(system.name, architecture, self.search_at, job.l0)
            rates = (found[0]["lr"],)
        best_rate, best, best_guess = rates[0], -math.inf, guess
        for rate in rates:
            guess = guesses.get(rate, guess)
            entry = self._matched(worker, label, replace(job, architecture=architecture, lr=rate, coefficient=guess))
            guess = entry["coefficient"]
            if entry[self.best_by] > best:
                best_rate, best, best_guess = rate, entry[self.best_by], guess
        for seed in range(1, self.n_seeds):
            self._matched(
                worker,
                label,
                replace(job, architecture=architecture, lr=best_rate, coefficient=best_guess, seed=seed),
            )

    def _matched(self, worker: Worker, label: str, job: Job) -> dict[str, Any]:
        """The result of a job, its L0 matched where the system's coefficient must be searched for."""
        key = "|".join([worker.system.name, job.architecture, label, f"{job.l0:g}", f"{job.lr:g}", str(job.seed)])
        if key in self.known:
            return self.known[key]
        searched = job.architecture in worker.system.searched
        entry: dict[str, Any] = {}
        low, high, nearest = None, None, math.inf
        coefficient = job.coefficient
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(SEARCH if searched else 1):
                out = Path(folder) / "out.npz"
                answer = worker.train(replace(job, coefficient=coefficient, out=str(out)))
                off = math.log(max(answer["l0"], 1e-3) / job.l0)
                if abs(off) < nearest:
                    nearest = abs(off)
                    with self._lock:  # hooks on one model: one measurement at a time
                        entry = {**answer, **self.score(out, job), "coefficient": coefficient}
                if nearest <= math.log(1 + L0_TOLERANCE):
                    break
                low, high = (coefficient, high) if off > 0 else (low, coefficient)
                if low is not None and high is not None:
                    coefficient = math.sqrt(low * high)
                else:
                    coefficient *= math.exp(min(1.6, max(-1.6, 1.5 * off)))
        entry = {
            "key": key,
            "system": worker.system.name,
            "architecture": job.architecture,
            "label": label,
            "target_l0": job.l0,
            "lr": job.lr,
            "seed": job.seed,
            **entry,
        }
        with self._lock:
            self.known[key] = entry
            with self.results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        shown = " ".join(f"{name} {entry[name]:.4g}" for name in ("l0", "seconds", self.best_by))
        print(key, shown, flush=True)
        return entry

    def chosen(self, system: str, architecture: str, label: str, l0: float) -> list[dict[str, Any]]:
        """The results at the chosen learning rate, one a seed."""
        matching = [
            entry
            for entry in self.known.values()
            if (entry["system"], entry["architecture"], entry["label"], entry["target_l0"])
            == (system, architecture, label, l0)
        ]
        first = [entry for entry in matching if entry["seed"] == 0]
        if not first:
            return []
        rate = max(first, key=lambda entry: entry[self.best_by])["lr"]
        return [entry for entry in matching if entry["lr"] == rate]


def spread(entries: list[dict[str, Any]], name: str, digits: int = 3) -> str:
    """``mean ± standard deviation`` over seeds."""
    values = np.array([entry[name] for entry in entries])
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}"
