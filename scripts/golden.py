"""Golden runs: short float64 runs whose figures and weights no refactoring may change.

Each file of ``tests/golden/runs`` holds a complete config, the curves that it gave, a hash of its final weights, and
the versions that made them. Curves are the same on every processor to the file's ``tolerance``: 1e-9, and 1e-6 for a
run that draws normal numbers. Hashes are those of one processor.

    python scripts/golden.py record [NAME ...]    run again and rewrite the files
    python scripts/golden.py add NAME FILE.yaml   the same for a new run, from a config with ``run`` and ``cache``
    python scripts/golden.py compare BASE         run the commit BASE and this tree here; weights must have equal hashes

``compare`` takes one thread, and the configs of this tree for both. BASE must have this script.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import monosema as ms
from monosema.core.config import from_plain, parse_yaml, to_plain
from monosema.core.plain import dump_json, parse_json
from monosema.data.named_models import NamedModels
from monosema.runs.cache import make_cache
from monosema.runs.config import CacheConfig, ModelOptions
from monosema.runs.session import build_layout, build_model, build_stream, build_tokens, coder_for

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
RUNS = GOLDEN / "runs"
TIMES = ("tokens_per_second", "seconds")
"""Logged figures that depend on the machine's speed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a golden run gave."""

    starting_weights: dict[str, list[float]]
    """Of each parameter as the library draws it: its sum of magnitudes and its first values."""
    curves: dict[str, list[float | None]]
    """Logged figures by name, one value for each logged line; None where a line has no such figure."""
    report: dict[str, float]
    """Figures of the evaluation at the end."""
    weights_sha256: str
    """Hash of the final weights; it depends on the processor."""


def run(plain: Mapping[str, Any], folder: Path) -> Outcome:
    """The run that ``plain`` describes, kept in ``folder``."""
    cache = folder / "cache"
    text = dump_json(dict(plain)).replace("{golden}", str(GOLDEN)).replace("{cache}", str(cache))
    described = parse_json(text)
    config = from_plain(ms.RunConfig, described["run"])
    rows: Any
    if config.cache is not None:
        make_cache(from_plain(CacheConfig, described["cache"]), cache, progress=False)
        rows = config.cache.build()
        coder = coder_for(config.coder, rows.layout, rows.record())
    else:
        models: Any = _model(config.model)
        if config.other_models:
            models = {"base": models, **{name: _model(options) for name, options in config.other_models.items()}}
        coder = coder_for(config.coder, build_layout(config.stream, models), NamedModels(models).record())
        rows = build_stream(config.stream, models, build_tokens(config.tokens, models))
    starting = {name: _in_short(parameter) for name, parameter in coder.named_parameters()}
    set_starting_weights_(coder)
    result = ms.train(coder, rows, config.training, out=folder / "run", evaluation=config.evaluation, progress=False)
    report = {} if result.report is None else result.report.to_dict()
    return Outcome(
        starting_weights=starting,
        curves=_curves(folder / "run" / "metrics.jsonl"),
        report={name: value for name, value in report.items() if type(value) in (int, float)},
        weights_sha256=weights_hash(result.coder.state_dict().values()),
    )


@torch.no_grad()
def set_starting_weights_(coder: torch.nn.Module) -> None:
    """Draw the matrices again, in place, from uniform numbers that every processor makes alike.

    Normal numbers and norms in float32 differ in their last bit between processors. What is zero stays zero, rows keep
    about their norm, and an encoder that is the decoder's transpose stays so.
    """
    drawn: list[tuple[Tensor, Tensor]] = []
    for name, parameter in sorted(coder.named_parameters()):
        if parameter.ndim != 2 or not bool(parameter.any()):
            continue
        alike = [new for old, new in drawn if _are_parallel(old, parameter)]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        fresh = 2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1
        before = parameter.clone()
        norm = round(float(before.norm(dim=1).mean()), 4)
        base = alike[0] if alike else fresh * (before != 0)
        drawn.append((before, base))
        parameter.copy_(base * (norm * math.sqrt(3 / parameter.shape[1])))


def weights_hash(tensors: Iterable[Tensor]) -> str:
    """One hash of several tensors, whatever they are called."""
    each = sorted(hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest() for tensor in tensors)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def environment() -> dict[str, str]:
    """What the bits of the weights depend on."""
    return {
        "monosema": version("monosema"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


@functools.cache
def _model_of(options: str) -> ms.LanguageModel:
    return build_model(from_plain(ModelOptions, parse_json(options)))


def _model(options: ModelOptions) -> ms.LanguageModel:
    return _model_of(dump_json(to_plain(options)))


def _in_short(parameter: Tensor) -> list[float]:
    values = parameter.detach().double().flatten()
    return [float(values.abs().sum()), *values[:2].tolist()]


def _are_parallel(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    cosines = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1)
    return bool((cosines > 0.999).all())


def _curves(file: Path) -> dict[str, list[float | None]]:
    lines = [parse_json(line) for line in file.read_text(encoding="utf-8").splitlines()]
    names = sorted({name for line in lines for name in line if name not in TIMES})
    return {name: [line.get(name) for line in lines] for name in names}


# -- the verbs


def names() -> list[str]:
    """The golden runs."""
    return sorted(path.stem for path in RUNS.glob("*.json"))


def recorded(name: str, folder: Path = RUNS) -> dict[str, Any]:
    """The file of a golden run."""
    found: dict[str, Any] = parse_json((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def run_recorded(name: str, folder: Path = RUNS) -> Outcome:
    """Run a golden run again, in a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        return run(recorded(name, folder)["config"], Path(scratch))


def record(name: str, config: Mapping[str, Any], tolerance: float = 1e-9) -> None:
    """Run ``config`` and write its file."""
    with tempfile.TemporaryDirectory() as scratch:
        outcome = run(config, Path(scratch))
    file = {
        "command": f"OMP_NUM_THREADS=1 python scripts/golden.py record {name}",
        "environment": environment(),
        "tolerance": tolerance,
        "config": config,
        **vars(outcome),
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / f"{name}.json").write_text(_compact(file), encoding="utf-8")


def _compact(value: Mapping[str, Any]) -> str:
    """JSON with one line for each value two levels down."""
    lines = []
    for key, part in value.items():
        if isinstance(part, Mapping):
            inner = ",\n".join(f"  {json.dumps(name)}: {dump_json(each)}" for name, each in part.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {dump_json(part)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def hashes(folder: Path) -> dict[str, str]:
    """The hash of the final weights of every run in ``folder``."""
    return {path.stem: run_recorded(path.stem, folder).weights_sha256 for path in sorted(folder.glob("*.json"))}


def compare(base: str) -> list[str]:
    """Which runs end with other weights at the commit ``base`` than in this tree; both run here with one thread."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), base], cwd=ROOT, check=True)
        try:
            before, after = _hashes_in(tree), _hashes_in(ROOT)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    return [name for name in sorted(before | after) if before.get(name) != after.get(name)]


def _hashes_in(tree: Path) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(tree / "scripts" / "golden.py"), "hashes", str(RUNS)]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record").add_argument("names", nargs="*")
    add = verbs.add_parser("add")
    add.add_argument("name")
    add.add_argument("file", type=Path)
    verbs.add_parser("compare").add_argument("base")
    verbs.add_parser("hashes").add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    match options.verb:
        case "record":
            for name in options.names or names():
                held = recorded(name)
                record(name, held["config"], held["tolerance"])
        case "add":
            described = parse_yaml(options.file.read_text(encoding="utf-8"), options.file)
            kinds = {"run": ms.RunConfig, "cache": CacheConfig}
            plain = {part: to_plain(from_plain(kinds[part], value)) for part, value in described.items()}
            record(options.name, plain)
        case "hashes":
            print(json.dumps(hashes(options.folder)))
        case "compare":
            different = compare(options.base)
            print("\n".join(f"{name}: other weights" for name in different) or f"equal weights in {len(names())} runs")
            return 1 if different else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
