"""The README, the docs and the public names say what is there."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import monosema as ms
from monosema.evaluation import LatentSites, ReplacedLayer, SiteFigures
from monosema.evaluation.benchmarks import AbsorptionReport, GroundTruthReport, ProbingReport
from monosema.evaluation.benchmarks.ravel_report import AttributeScore
from monosema.evaluation.benchmarks.tpp import PerturbationScore
from monosema.features import Feature, LatentRow

ROOT = Path(__file__).parents[1]

PUBLIC_NAMES = [
    "AbsTopK",
    "ActivationCache",
    "ActivationStream",
    "AuxK",
    "BatchTopK",
    "CLT",
    "Callback",
    "CrossLayerTranscoder",
    "Crosscoder",
    "CrosscoderReport",
    "CrosscoderThresholds",
    "EvaluationOptions",
    "FeatureStore",
    "FineTuning",
    "Gated",
    "GhostGradients",
    "HierarchicalTopK",
    "JumpReLU",
    "L0",
    "L1",
    "LanguageModel",
    "Latents",
    "Lp",
    "Matryoshka",
    "Mixture",
    "Packing",
    "Positions",
    "Plan",
    "PreActivationLoss",
    "PromptReading",
    "QuadraticL0",
    "RatioL0",
    "ReLU",
    "ReplacementReport",
    "Report",
    "Resample",
    "RunConfig",
    "RunInterrupted",
    "SAE",
    "Session",
    "SparseCoder",
    "SparseConnection",
    "Tanh",
    "TanhReLU",
    "TextSource",
    "Tokens",
    "TopK",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "Transcoder",
    "UserError",
    "calibrate_threshold",
    "collect_features",
    "evaluate",
    "evaluate_crosscoder",
    "evaluate_many",
    "evaluate_replacement",
    "geometric_median",
    "load",
    "load_model",
    "load_tokens",
    "loss_recovered",
    "open_session",
    "pretokenize",
    "plan",
    "read_prompt",
    "save",
    "train",
]


def test_public_names_are_these() -> None:
    assert sorted(PUBLIC_NAMES) == ms.__all__
    for name in PUBLIC_NAMES:
        assert getattr(ms, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'SEA'"):
        ms.SEA  # noqa: B018


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_what_goes_together_is_the_table() -> None:
    page = (ROOT / "docs" / "allowed.md").read_text(encoding="utf-8")
    assert script("allowed_table").table() == page, "run: python scripts/allowed_table.py --write"


def test_the_table_of_figures_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert script("figures_table").with_table(page) == page, "run: python scripts/figures_table.py --write"


def test_readme_tree_is_true() -> None:
    module = script("readme_tree")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.with_tree(readme) == readme, "run: python scripts/readme_tree.py --write"
    for line in module.tree().splitlines():
        assert len(line.split(None, 1)) == 2, f"no comment: {line}"


def test_readme_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_docs_metric_is_logged_or_reported() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    report, log = text.split("## The training log")
    documented = set(re.findall(r"^\| ((?:`[^`]+`(?:, )?)+)", report, re.M))
    names = {name for cell in documented for name in re.findall(r"`([^`]+)`", cell)}
    fields = set(ms.Report.__dataclass_fields__) | set(ms.ReplacementReport.__dataclass_fields__)
    for part in (
        ReplacedLayer,
        ms.CrosscoderReport,
        SiteFigures,
        LatentSites,
        AbsorptionReport,
        AttributeScore,
        PerturbationScore,
        GroundTruthReport,
        ProbingReport,
        Feature,
        LatentRow,
    ):
        fields |= set(part.__dataclass_fields__)
    assert names <= fields, names - fields
    assert "threshold" in log


def test_the_project_speaks_of_itself_alone() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    absolute = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".html", ".js", ".css"}
            and path.name != "test_repository.py"
        ):
            assert not absolute.search(path.read_text(encoding="utf-8")), f"{name} holds a path of one machine"
