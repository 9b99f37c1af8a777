"""What an installation holds: the files of the package, its extras, and what make installs for what."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "monosema"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_package_is_installed() -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]["monosema"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert not there - shipped, "name them under package-data in pyproject.toml"
    for pattern in patterns:
        assert any(PACKAGE.glob(pattern)), f"{pattern} of package-data matches nothing"


def test_presets_pages_and_the_model_are_found_in_the_package() -> None:
    package = files("monosema")
    for name in ("examples/builtin/clt.yaml", "examples/recipes/gpt2_small_relu.yaml"):
        assert "hook_names" in package.joinpath(name).read_text(encoding="utf-8"), name
    for name in ("features/page/body.html", "evaluation/page/body.html", "models/builtin/model.safetensors"):
        assert package.joinpath(name).is_file(), name


def test_extras_are_those_that_the_library_names() -> None:
    extras = set(project()["project"]["optional-dependencies"])
    pages = [*PACKAGE.rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {page: set(re.findall(r"monosema\[(\w+)\]", page.read_text(encoding="utf-8"))) for page in pages}
    for page, names in named.items():
        assert names <= extras, f"{page.name} names an extra that pyproject.toml lacks"
    used = {name for page, names in named.items() if page.suffix == ".py" for name in names}
    assert used == extras - {"dev"}, "an extra that nothing uses"


def commands(target: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    return subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_the_demo_installs_the_library_alone() -> None:
    demo = commands("demo")
    assert "pip install --quiet -c constraints.txt -e .\n" in demo
    assert "dev" not in demo


@pytest.mark.parametrize("target", ["check", "test", "lint", "types", "imports", "fault", "parity", "bench"])
def test_the_checks_install_the_tools(target: str) -> None:
    assert commands(target).count('-e ".[dev]"') == 1
