"""What is in a folder that is no dictionary: an unfinished run, a sweep, a cache, packed tokens, features. In words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosema.core.errors import FileError, UserError, first_line
from monosema.core.files import read_json
from monosema.data.cache.arrow import is_arrow
from monosema.data.cache.drrik import is_drrik
from monosema.data.cache.manifest import MANIFEST, PLAN, Manifest
from monosema.data.cache.opening import open_source
from monosema.data.packed.manifest import is_packed
from monosema.data.packed.manifest import read_manifest as read_tokens
from monosema.evaluation import Report
from monosema.features import FeatureStore
from monosema.formats import registry
from monosema.formats.checkpoints import checkpoint_folders, is_run, run_progress, tokens_wanted, unfinished_names
from monosema.runs.held_config import held_config

_MOST_RUNS = 200
"""Of a sweep, that are shown."""
_SHOWN_OPTIONS = (
    ("model", "model", "source"),
    ("text", "tokens", "source"),
    ("cache", "cache", "folder"),
    ("reads", "stream", "hook_names"),
    ("writes", "stream", "targets"),
)
"""Of a run's config: label, section and option."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder."""

    is_it: Callable[[Path], bool]
    """Whether a folder is of this kind."""
    lines: Callable[[Path], dict[str, str]]
    """What to say of one, by label."""


def lines_of(folder: Path) -> dict[str, str] | None:
    """What to say of ``folder``, by label; None where it holds a dictionary, or nothing that is known."""
    if not folder.is_dir() or _has_dictionary(folder):
        return None
    return next((kind.lines(folder) for kind in KINDS if kind.is_it(folder)), None)


def _has_dictionary(folder: Path) -> bool:
    return any(registry.claimant(home) is not None for home in (folder, folder / "coder"))


def run_lines(folder: Path) -> dict[str, str]:
    """Of a run without a finished dictionary: how far it is, what it reads, and how to go on."""
    config = held_config(folder) or {}
    lines = {"run": f"not finished: {_how_far(folder)}"}
    failure = folder / "failure.json"
    if failure.exists():
        lines["run"] = f"given up at {_how_far(folder)}"
        lines["reason"] = _failure(failure)
    for label, section, name in _SHOWN_OPTIONS:
        part = config.get(section)
        value = part.get(name) if isinstance(part, Mapping) else None
        if value:
            lines[label] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    names = unfinished_names(folder)
    if names:
        lines["checkpoints"] = ", ".join(path.name for path in checkpoint_folders(folder))
        lines["dictionary"] = (
            f"not written yet; --name {names[0]} (of inspect, evaluate, features) takes a checkpoint's"
        )
    if not failure.exists():
        lines["to go on"] = "the call that began the run resumes it"
    return lines


def _how_far(folder: Path) -> str:
    progress, wanted = run_progress(folder), tokens_wanted(folder)
    if progress is not None:
        return str(progress)
    return "no checkpoint yet" + ("" if wanted is None else f", {wanted:,} tokens to train on")


def _failure(file: Path) -> str:
    plain = read_json(file)
    return str(plain.get("error") if isinstance(plain, dict) else plain)


def _is_unfinished(folder: Path) -> bool:
    return not (folder / "coder").exists() and (is_run(folder) or bool(unfinished_names(folder)))


def _is_cache(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MANIFEST, PLAN)) or is_arrow(folder) or is_drrik(folder)


def _cache_lines(folder: Path) -> dict[str, str]:
    try:
        manifest: Manifest = open_source(folder).manifest
    except FileError as error:
        if (folder / MANIFEST).exists() or not (folder / PLAN).exists():
            raise
        return {"activation cache": first_line(error)}
    plan = manifest.plan
    size = f"{manifest.n_bytes / 2**30:.2f} GiB"
    return {
        "activation cache": f"{manifest.n_rows:,} rows in {len(manifest.shards):,} shards of {plan.dtype}, {size}",
        "reads": _sites(plan.reads),
        **({"writes": _sites(plan.writes)} if plan.writes != plan.reads else {}),
        "model": _name_in(plan.stream, "model", "name"),
        "text": _name_in(plan.stream, "tokens", "source"),
        "to train on it": f"monosema train --cache.folder {folder} --out RUN",
    }


def _sites(sites: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in sites)


def _name_in(record: Mapping[str, Any], part: str, name: str) -> str:
    inner = record.get(part)
    return str(inner[name]) if isinstance(inner, Mapping) and inner.get(name) else "not recorded"


def _tokens_lines(folder: Path) -> dict[str, str]:
    manifest = read_tokens(folder)
    plan, found = manifest.plan, manifest.text
    sides = f"{manifest.train.n_contexts:,} for training, {manifest.heldout.n_contexts:,} held out"
    lines = {
        "packed tokens": f"contexts of {plan.context_size:,} tokens: {sides}",
        "text": plan.source,
        "tokenizer": f"{plan.tokenizer.name}, {plan.tokenizer.vocab_size:,} tokens",
    }
    if found is None:
        return {**lines, "to go on": "not finished: the command that writes it goes on from here"}
    documents = f"{found.n_documents:,}, of which {found.n_heldout_documents:,} are held out"
    return {**lines, "documents": documents, "to train on it": f"monosema train --tokens.source {folder} --out RUN"}


def _feature_lines(folder: Path) -> dict[str, str]:
    store = FeatureStore.load(folder)
    made = store.provenance
    n_tokens = f"{store.numbers.n_tokens:,} tokens ({made.split})"
    return {
        "features": f"{len(store):,} of {store.d_sae:,} latents fired on {n_tokens}",
        "site": made.site,
        "contexts": f"{store.windows.context.shape[1]} best of each latent, {made.context_size} tokens each",
        **{f"note {number}": note for number, note in enumerate(made.notes, 1)},
        "to read it": f"monosema.FeatureStore.load({str(folder)!r})",
    }


def _runs_in(folder: Path) -> list[Path]:
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and (is_run(each) or _has_dictionary(each))]


def _sweep_lines(folder: Path) -> dict[str, str]:
    runs = _runs_in(folder)
    finished = sum(map(_has_dictionary, runs))
    lines = {"runs": f"{len(runs):,}, {finished:,} of them with a finished dictionary"}
    lines |= {run.name: _in_short(run) for run in runs[:_MOST_RUNS]}
    if len(runs) > _MOST_RUNS:
        lines["…"] = f"{len(runs) - _MOST_RUNS:,} more"
    names = " ".join(str(run) for run in runs[:2])
    one = f"monosema inspect {folder} --name {runs[0].name}"
    return {**lines, "one of them": one, "compared": f"monosema evaluate {names} …"}


def _in_short(run: Path) -> str:
    """State and main figures of one run of several."""
    if not _has_dictionary(run):
        return f"{'given up at' if (run / 'failure.json').exists() else 'not finished:'} {_how_far(run)}"
    try:
        report = Report.load(run / "report.json")
    except UserError:
        return "finished, without a report that can be read"
    score = "" if report.ce_loss_score is None else f", ce_loss_score {report.ce_loss_score:.4f}"
    return f"fve {report.fve:.4f}{score}, l0 {report.l0:.1f}, dead_fraction {report.dead_fraction:.4f}"


KINDS = (
    Kind(_is_unfinished, run_lines),
    Kind(_is_cache, _cache_lines),
    Kind(is_packed, _tokens_lines),
    Kind(lambda folder: (folder / "features.json").is_file(), _feature_lines),
    Kind(lambda folder: bool(_runs_in(folder)), _sweep_lines),
)
"""In the order in which they are asked: a cache in sae-lens' layout has a file of the name that packed tokens have."""
