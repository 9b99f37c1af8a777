"""What is in a folder, in words: a dictionary or run here, anything else by ``describe_folders``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from monosema import hub
from monosema.core.files import read_json
from monosema.core.printable import terminal_lines
from monosema.core.words import counted
from monosema.data.outliers import recorded_rule
from monosema.data.rebuild import several_models
from monosema.evaluation import Report
from monosema.formats.checkpoints import checkpoint_folders, checkpoint_tokens, run_progress, unfinished_names
from monosema.runs.checksums import Checksums
from monosema.runs.describe_folders import lines_of


def describe(folder: str | os.PathLike[str], name: str | None = None) -> str:
    """Model, site, shapes and figures of the dictionary in ``folder``, a line each.

    Of a run that has not finished, how far it is; of a sweep, the state and main figures of each run; of an activation
    cache, packed tokens or a feature store, what it holds. ``name`` is a checkpoint, or one dictionary of several.
    """
    place = Path(folder) if name is None else Path(folder) / name
    of_folder = lines_of(place)
    if of_folder is not None:
        return _aligned(of_folder)
    coder = hub.load(folder, name)
    tokens = coder.metadata.get("tokens") or {}
    kind, scaling = coder.variant_words, coder.token_scaling
    lines = {
        "dictionary": f"{kind}, {counted(coder.d_sae, 'latent')}, {_brief(coder.config.activation)}",
        "shapes": f"d_in {coder.d_in}, d_out {coder.d_out}, {coder.config.dtype}",
        **({} if scaling == "none" else {"scaling": f"{scaling} of each token"}),
        "model": _model(coder.metadata),
        **({"processed": transform} if (transform := coder.site_transform.words) else {}),
        "reads": coder.hook_name or "not recorded",
        "writes": coder.hook_name_out or "not recorded",
        "text": f"{tokens['source']}, contexts of {tokens.get('context_size')}"
        if "source" in tokens
        else "not recorded",
    }
    density = coder.metadata.get("log10_density")
    if density is not None:
        lines["density"] = f"median {10 ** float(density.median()):.2e}, {int((density < -9).sum())} silent in training"
    lines |= _left_out(coder.metadata)
    home = place if (place / "report.json").exists() else Path(folder)  # one run of several, or a whole run
    report = home / "report.json"
    if report.exists():
        found = Report.load(report)
        figures = found.to_dict()
        for key, losses in (found.models or {}).items():
            figures[f"ce_loss_score of {key}"] = losses.ce_loss_score
        scores = [key for key in figures if key.startswith("ce_loss_score") and figures[key] is not None]
        apart = ("fve_all_rows", "n_outlier_rows") if found.n_outlier_rows else ()
        shown = ("fve", *apart[:1], *scores, "l0", "dead_fraction", "n_tokens", *apart[1:])
        lines["figures"] = ", ".join(f"{key} {_short(figures.get(key))}" for key in shown)
    run = Path(folder)
    if unfinished_names(run):
        lines["run"] = f"not finished: {run_progress(run)}"
    return _aligned(lines | _of_run(home))


def _aligned(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return terminal_lines(f"{label:<{width}}  {text}" for label, text in lines.items())


def _left_out(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Which rows the dictionary was not trained on for their norm."""
    rule = recorded_rule(metadata)
    if rule is None or rule.medians is None:
        return {}
    names = [f"{median:.4g} at {name}" for (name, _), median in zip(rule.sites, rule.medians, strict=True)]
    return {"outliers": f"rows above {rule.multiple:g} times the median norm left out; it is {', '.join(names)}"}


def _of_run(folder: Path) -> dict[str, str]:
    """The checkpoints of a run, each with the tokens it was trained on, and files that are not what was written."""
    lines = {}
    home = folder / "checkpoints"
    steps = {path.name: checkpoint_tokens(path) for path in checkpoint_folders(folder)}
    if steps:
        pointers = {each: home / each for each in ("latest", "best") if (home / each).is_file()}
        named = {each: path.read_text(encoding="utf-8", errors="replace").strip() for each, path in pointers.items()}
        notes = {name: "".join(f", {each}" for each, target in named.items() if target == name) for name in steps}
        lines["checkpoints"] = "; ".join(
            f"{name} ({counted(n_tokens, 'token')}{notes[name]})" for name, n_tokens in steps.items()
        )
    summary = folder / "summary.json"
    if summary.is_file():
        match read_json(summary):
            case {"training": {"n_outlier_rows": int(n_rows)}, "tokens": int(n_tokens)}:
                lines["left out"] = f"{n_rows:,} of {counted(n_tokens, 'training row')}, for their norm"
    damaged = Checksums(folder).damaged()
    return {**lines, "damaged": "; ".join(damaged)} if damaged else lines


def _brief(config: Any) -> str:
    """A config as it would be written, defaults left out."""
    given = ((field.name, getattr(config, field.name), field.default) for field in fields(config))
    return (
        f"{type(config).__name__}({', '.join(f'{name}={value!r}' for name, value, usual in given if value != usual)})"
    )


def _model(metadata: Mapping[str, Any]) -> str:
    """Name, class and dtype of the model; of several, each behind its name."""

    def words(record: Mapping[str, Any]) -> str:
        return " ".join(str(part) for part in (record.get(key) for key in ("name", "class", "dtype")) if part)

    models = several_models(metadata)
    if models:
        return ", ".join(f"{key}: {words(record)}" for key, record in models.items())
    return words(metadata.get("model") or {}) or "not recorded"


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
