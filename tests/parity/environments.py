"""Make the environments in which the peers run: ``.venv-saelens``, ``.venv-dictionary-learning`` and so on.

    python tests/parity/environments.py [--only NAME]

They lie in the repository's root, beside ``.venv``. What is there already (its stamp names the same packages) is left
alone. Needs the network for pip only. torch comes first, so that every environment has the one version we compare with.

dictionary-learning asks for nnsight < 0.4 and with it for releases that torch 2.13 does not go with. It is installed
without its dependencies: its coders and trainers, which are what we compare with, import torch, einops and tqdm only.
Its reader of text imports one name of nnsight, for which an empty module is put there.

sae-bench asks for numpy < 2, datasets < 4 and torchvision, for what its core evaluation does not import. It is
installed without its dependencies beside sae-lens, whose own are all that the core needs but for tabulate.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"
STAMP = "monosema-environment.json"


@dataclass(frozen=True)
class Environment:
    """One peer's interpreter: what pip is asked for, and what must then be importable."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    """pip's arguments, one installation after the other."""
    modules: tuple[str, ...]
    """Imported at the end; an environment that cannot is not stamped."""
    is_for_benchmarks_only: bool = False
    """Whether it is made only where it is named."""
    stubs: tuple[tuple[str, str], ...] = ()
    """Modules written into it, by name and content, in place of packages that cannot be installed."""

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-{self.name}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def is_ready(self) -> bool:
        """Whether a finished environment with exactly these packages is there."""
        try:
            return json.loads((self.folder / STAMP).read_text()) == json.loads(self._stamp())
        except (OSError, ValueError):
            return False

    def create(self) -> None:
        """Make it from nothing (a half-made one is removed first)."""
        started = time.monotonic()
        if self.folder.exists():
            print(f"{self.name}: removing what is left of an older {self.folder.name}", flush=True)
            shutil.rmtree(self.folder)
        print(f"{self.name}: {self.folder}", flush=True)
        venv.create(self.folder, with_pip=True)
        for step in self.steps:
            print(f"{self.name}: pip install {' '.join(step)}", flush=True)
            subprocess.run([self.python, "-m", "pip", "install", "--quiet", *step], check=True)
        for module, content in self.stubs:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            (self.folder / "lib" / version / "site-packages" / f"{module}.py").write_text(content)
        imports = "; ".join(f"import {module}" for module in self.modules)
        subprocess.run([self.python, "-c", imports], check=True, cwd=ROOT / "tests")
        (self.folder / STAMP).write_text(self._stamp())
        print(f"{self.name}: ready after {time.monotonic() - started:.0f} s", flush=True)

    def _stamp(self) -> str:
        return json.dumps({"python": sys.version_info[:2], "steps": self.steps, "stubs": self.stubs})


SAELENS = Environment(
    name="saelens",
    steps=((TORCH,), ("sae-lens==6.54.12", TORCH)),
    modules=("sae_lens",),
)
DICTIONARY_LEARNING = Environment(
    name="dictionary-learning",
    steps=((TORCH,), ("--no-deps", "dictionary-learning==0.1.0"), ("einops", "numpy", "safetensors", "tqdm", TORCH)),
    modules=("dictionary_learning.trainers", "safetensors.torch"),
    stubs=(
        ("nnsight", '"""Stands in for nnsight 0.3, whose one name here is never used."""\n\nLanguageModel = object\n'),
    ),
)
SPARSIFY = Environment(
    name="sparsify",
    steps=((TORCH,), ("eai-sparsify==1.3.3", TORCH)),
    modules=("sparsify",),
    is_for_benchmarks_only=True,
)
SAEBENCH = Environment(
    name="saebench",
    steps=((TORCH,), ("sae-lens==6.54.12", TORCH), ("--no-deps", "sae-bench==0.6.0"), ("tabulate", TORCH)),
    modules=("sae_bench.evals.core.main",),
)
ENVIRONMENTS = {environment.name: environment for environment in (SAELENS, DICTIONARY_LEARNING, SAEBENCH, SPARSIFY)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the peers' environments (minutes, needs pip).")
    parser.add_argument("--only", choices=sorted(ENVIRONMENTS), help="make just this one")
    only = parser.parse_args().only
    usual = [environment for environment in ENVIRONMENTS.values() if not environment.is_for_benchmarks_only]
    for environment in [ENVIRONMENTS[only]] if only else usual:
        if environment.is_ready():
            print(f"{environment.name}: already there", flush=True)
        else:
            environment.create()


if __name__ == "__main__":
    main()
