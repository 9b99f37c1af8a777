"""Fuzz one reader: ``python tests/fuzz/run.py --reader cache --cases 20000``.

Cases are mutations of what the library writes itself; those that reach new lines of it are mutated further. What was
found before (``found/``) is read again first. Each case must be read, or refused with a ``UserError`` that names the
file; anything else is printed, and kept with ``--keep``. Deterministic by ``--seed``. The work is done in a child
process with a limit of memory; a case that kills it is found in its folder.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOUND = HERE / "found"
EMPTY = {"cases": 0, "seconds": 0.0, "refused": 0.0, "lines": [0, 0], "corpus": 0}
FAILED = {"key": "failed", "what": "it failed", "files": {}}
_TRACED = 3
"""Every so many cases the lines are looked at: it takes longer than the reading."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}  # fmt: skip


def main() -> int:
    """Parse, fuzz, print; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", action="append", help="one of readers.READERS; all by default")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="add what is found to tests/fuzz/found")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options)
        return 0
    results = parent(options)
    for name, result in results.items():
        print(
            f"{name}: {result['cases']:,} cases in {result['seconds']:.0f} s, {result['refused']:.0%} refused, "
            f"{result['lines'][0]} of {result['lines'][1]} lines, corpus {result['corpus']}, "
            f"{len(result['findings'])} findings"
        )
        for finding in result["findings"]:
            print("   ", finding["what"])
            if options.keep and name != "the fuzzer itself":
                keep(name, finding)
    return int(any(result["findings"] for result in results.values()))


def parent(options: argparse.Namespace) -> dict[str, Any]:
    """Run children until every reader is done; one that dies gives a finding and is started again behind it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        work = Path(name)
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(work)]
        environment = {**os.environ, **ENVIRONMENT, "HF_HOME": str(work / "hub")}
        for _ in range(20):
            status = subprocess.run(command, env=environment, check=False).returncode
            if status in (-signal.SIGTERM, -signal.SIGINT):
                raise SystemExit("stopped from outside")
            results: dict[str, Any] = json.loads((work / "results.json").read_text())
            if status >= 0:
                return results if status == 0 else {**results, "the fuzzer itself": {**EMPTY, "findings": [FAILED]}}
            reader = list(results)[-1]
            paths = [path for path in (work / "case").rglob("*") if path.is_file()]
            case = {str(path.relative_to(work / "case")): path.read_bytes() for path in paths}
            results[reader]["findings"].append(finding_of(f"the process died with status {status}", case))
            (work / "results.json").write_text(json.dumps(results))
        return results


def child(options: argparse.Namespace) -> None:
    """Fuzz in this process; ``results.json`` says what has been done so far."""
    sys.path.insert(0, str(HERE))
    import logging

    import readers
    import traps
    import watch

    traps.set_traps()  # in this process alone
    logging.getLogger("monosema").setLevel(logging.CRITICAL)
    work: Path = options.child
    folder = work / "case"
    done = json.loads((work / "results.json").read_text()) if (work / "results.json").exists() else {}
    guard = watch.Guard(folder)
    seeds = {name: readers.READERS[name].seeds() for name in options.reader or readers.READERS}
    limited = False
    for name, cases in seeds.items():
        fuzzer = Fuzzer(name, readers.READERS[name], folder, guard, random.Random(f"{options.seed} {name}"))
        if name in done and name != list(done)[-1]:
            continue
        if name in done:  # died here: others from now on
            fuzzer.result = done[name]
            fuzzer.rng = random.Random(f"{options.seed} {name} {len(done[name]['findings'])}")
        done[name] = fuzzer.result
        for number, case in enumerate([*cases, *cases]):  # all that is imported late is imported the first time
            what = fuzzer.try_case(case, is_traced=number >= len(cases))
            assert what is None or number < len(cases), f"{name} does not read what the library wrote: {what}"
        if not limited:
            watch.limit_memory()
            limited = True
        write_results(work / "results.json", done)
        save = functools.partial(write_results, work / "results.json", done)
        for kept in found(name):
            fuzzer.judge(kept)
        fuzzer.run(cases, options, save)
        write_results(work / "results.json", done)


def write_results(path: Path, done: dict[str, Any]) -> None:
    """For the parent, which may find this process dead."""
    path.write_text(json.dumps(done))


class Fuzzer:
    """One reader, its corpus and what was found."""

    def __init__(self, name: str, reader: Any, folder: Path, guard: Any, rng: random.Random):
        import watch

        self.name, self.reader, self.folder, self.guard, self.rng = name, reader, folder, guard, rng
        self.lines = watch.Lines()
        self.result: dict[str, Any] = {**EMPTY, "findings": []}
        self._keys = {each["key"] for each in self.result["findings"]}

    def run(self, seeds: list[dict[str, bytes]], options: argparse.Namespace, save: Callable[[], object]) -> None:
        """Mutate ``seeds`` and what comes of them."""
        from mutate import mutated

        corpus, n_refused, start = list(seeds), 0, time.monotonic()
        while self.result["cases"] < options.cases:
            base = self.rng.choice(corpus[-20:] if self.rng.random() < 0.3 else corpus)
            case = mutated(self.rng, base, corpus)
            if self.rng.random() < 0.6:
                case = self.reader.forge(case)
            n_refused += self.judge(case, self.result["cases"] % _TRACED == 0)
            if self.lines.new and sum(map(len, case.values())) < 50_000:
                corpus.append(case)
            self.result["cases"] += 1
            if self.result["cases"] % 500 == 0:
                save()
        self.result["seconds"] += time.monotonic() - start
        self.result["refused"] = n_refused / max(1, self.result["cases"])
        self.result["corpus"], self.result["lines"] = len(corpus), list(self.lines.share())

    def judge(self, case: dict[str, bytes], is_traced: bool = True) -> bool:
        """Note what is wrong with how ``case`` is read; whether it was refused as it should."""
        from watch import key_of

        what = self.try_case(case, is_traced)
        if what is not None:
            finding = finding_of(what, case, key_of(what))
            known = [each for each in self.result["findings"] if each["key"] == finding["key"]]
            if not known:
                self.result["findings"].append(finding)
            elif finding["size"] < known[0]["size"]:
                known[0].update(finding)
        return self.refused

    def try_case(self, case: dict[str, bytes], is_traced: bool = True) -> str | None:
        """Write ``case`` into an empty folder and read it."""
        import watch

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, content in case.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        names = sorted({part for name in case for part in (name, Path(name).name)})
        self.guard.may_write = self.reader.may_write
        lines = self.lines if is_traced else None
        self.lines.new = 0
        what, self.refused = watch.verdict(self.reader.read, self.folder, names, lines, self.guard)
        return what


def finding_of(what: str, case: dict[str, bytes], key: str | None = None) -> dict[str, Any]:
    """A finding as it is kept, JSON-able."""
    files = {name: base64.b64encode(content).decode() for name, content in case.items()}
    return {"key": key or what, "what": what, "size": sum(map(len, case.values())), "files": files}


def found(name: str) -> list[dict[str, bytes]]:
    """The cases of a reader that were found before."""
    path = FOUND / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    return [{file: base64.b64decode(text) for file, text in each["files"].items()} for each in kept]


def keep(name: str, finding: dict[str, Any]) -> None:
    """Add ``finding`` to those replayed."""
    path = FOUND / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    kept = [each for each in (json.loads(path.read_text()) if path.exists() else []) if each["was"] != finding["key"]]
    kept.append({"was": finding["key"], "files": finding["files"]})
    path.write_text("[\n" + ",\n".join(json.dumps(each) for each in kept) + "\n]\n")


if __name__ == "__main__":
    sys.exit(main())
