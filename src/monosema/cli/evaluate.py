"""``monosema evaluate``: measure dictionaries on held-out text, as they were saved; or all in place of the MLPs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monosema.cli.options import add_consent, load_libraries, models_given, parse
from monosema.cli.output import show
from monosema.core.errors import ConfigError
from monosema.core.logs import get_logger
from monosema.core.words import counted
from monosema.runs.config import EvaluationOptions

if TYPE_CHECKING:
    from monosema.coders import Dictionary
    from monosema.evaluation import CrosscoderReport, ReplacementReport, Report

logger = get_logger("monosema.cli.evaluate")


def run(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(prog="monosema evaluate", description=__doc__, add_help=False)
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="run folder, dictionary folder, sweep (all its finished runs), or hub repository; several are compared on "
        "model and text of the first",
    )
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument("--text", help="evaluate on this text instead of the recorded one")
    parser.add_argument(
        "--model",
        action="append",
        help="evaluate on this model instead of the recorded one; of several, NAME=MODEL, once for each to change",
    )
    add_consent(parser)
    parser.add_argument("--full", action="store_true", help="print every figure instead of those that are read first")
    parser.add_argument("--out", type=Path, help="also write the report as JSON; of several, by folder")
    parser.add_argument(
        "--csv", type=Path, help="also write the figures and their intervals as CSV, a line a dictionary"
    )
    parser.add_argument(
        "--html", type=Path, help="also write one offline page: figures, curves over L0, densities, tables of latents"
    )
    parser.add_argument("--latents-csv", type=Path, help="also write a line for each latent of the one dictionary")
    parser.add_argument(
        "--saebench", type=Path, metavar="FILE", help="also write it as SAEBench does its core results, for its graphs"
    )
    parser.add_argument(
        "--replace",
        nargs="+",
        metavar="FOLDER",
        help="instead: put the transcoders of these runs, or one cross-layer transcoder, in the place of all the MLPs "
        "they write at once, and measure what the model still predicts",
    )
    parser.add_argument(
        "--crosscoder",
        action="store_true",
        help="instead: which latents of a crosscoder belong to one site alone, by decoder norms and by latent scaling; "
        "--out also writes each latent's numbers, as .safetensors beside the JSON",
    )
    parser.add_argument(
        "--site-units",
        choices=["raw", "mean_norm"],
        help="with --crosscoder: what each site is divided by before its decoder norms are compared",
    )
    parser.add_argument(
        "--outlier-norm-multiple",
        type=_multiple,
        default="recorded",
        metavar="X",
        help="leave out rows whose norm is more than X times the median, or none with 'none'; by default as the "
        "dictionary was trained",
    )
    parsed = parse(EvaluationOptions, _joined(arguments), parser, section="evaluation", recorded=_recorded)
    extra, options = parsed.extra, parsed.config
    if extra.name is None:
        extra.folders = [each for folder in extra.folders for each in _dictionaries(folder, is_said=True)]
    if bool(extra.folders) == (extra.replace is not None):
        parser.error("name the folder of a run or of a dictionary, several to compare, or several after --replace")
    if extra.crosscoder and (extra.replace is not None or len(extra.folders) > 1):
        raise ConfigError(
            "--crosscoder measures one dictionary; leave out --replace and further folders, and name one of a sweep "
            "with --name"
        )
    if extra.site_units is not None and not extra.crosscoder:
        raise ConfigError("--site-units compares the sites of a crosscoder; add --crosscoder")
    if extra.outlier_norm_multiple != "recorded" and extra.replace is not None:
        raise ConfigError("--replace measures rows of any norm; leave out --outlier-norm-multiple")
    for option in ("saebench", "latents_csv"):
        if getattr(extra, option) is not None and (extra.crosscoder or len(extra.folders) != 1):
            raise ConfigError(
                f"--{option.replace('_', '-')} writes the figures of one dictionary; leave out --crosscoder and "
                "--replace, and name one folder (of a sweep, one run with --name)"
            )
    for option in ("csv", "html", "full"):
        if getattr(extra, option) and (extra.crosscoder or extra.replace is not None):
            raise ConfigError(
                f"--{option} is for the figures of dictionaries by themselves; leave out --crosscoder and --replace"
            )
    load_libraries("monosema.runs.session")
    _say_what_was_recorded(extra, options)
    if extra.crosscoder:
        sites = _crosscoder(extra, options)
        show(sites)
        if extra.out is not None:
            sites.save(extra.out)
        return 0
    from monosema.core.files import write_json

    if extra.replace is not None:
        replaced = _replacement(extra, options)
        show(replaced)
        if extra.out is not None:
            write_json(extra.out, replaced.to_dict())
        return 0
    from monosema.evaluation import short_report, write_page
    from monosema.evaluation.comparison import comparison, write_csv

    reports = _reports(extra, options)
    for name, report in reports.items():
        text = str(report) if extra.full else short_report(report)
        show(f"{name}\n{text}\n" if len(reports) > 1 else text)
    if len(reports) > 1:
        show(comparison(reports))
    plain = {name: report.to_dict() for name, report in reports.items()}
    if extra.out is not None:
        write_json(extra.out, plain if len(plain) > 1 else next(iter(plain.values())))
    if extra.csv is not None:
        write_csv(reports, extra.csv)
    if extra.html is not None:
        write_page(reports, extra.html)
    return 0


def _dictionaries(folder: str, *, is_said: bool = False) -> list[str]:
    """The folders of the finished runs of a sweep; ``folder`` itself where it is none, or none is finished."""
    from monosema.formats.checkpoints import is_finished, runs_in

    runs = runs_in(Path(folder))
    finished = [run for run in runs if is_finished(run)]
    if finished and is_said:
        left = len(runs) - len(finished)
        logger.info(
            "%s is a sweep: evaluating %s%s; --name takes one alone",
            folder,
            ", ".join(run.name for run in finished),
            f", without {counted(left, 'run')} that did not finish" if left else "",
        )
    return [str(run) for run in finished] or [folder]


def _recorded(extra: argparse.Namespace) -> dict[str, Any]:
    """The options of evaluation that the first run recorded, as far as the verb takes them."""
    folders = extra.replace or extra.folders
    if not folders:
        return {}
    first = folders[0] if extra.name is not None else _dictionaries(folders[0])[0]
    from monosema.runs.recorded_evaluation import recorded_evaluation

    found = recorded_evaluation(first, extra.name)
    only = ("n_tokens",) if extra.replace or extra.crosscoder else tuple(found)
    return {name: value for name, value in found.items() if name in only}


def _say_what_was_recorded(extra: argparse.Namespace, options: EvaluationOptions) -> None:
    kept = {name: value for name, value in _recorded(extra).items() if getattr(options, name) == value}
    if kept:
        words = ", ".join(f"{name} {'all' if value is None else value}" for name, value in kept.items())
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in kept)
        logger.info("options of the run: %s; %s on the command line change them", words, flags)


def _multiple(text: str) -> float | Literal["recorded"] | None:
    if text == "recorded":
        return "recorded"
    return None if text.lower() in ("none", "null") else float(text)


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--n-tokens 9`` as ``--n-tokens=9``: the value of an option the parser leaves to others is no folder."""
    flags = {f"--{each.name}" for each in fields(EvaluationOptions)}
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].replace("-", "_").replace("__", "--", 1) in flags:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _reports(extra: argparse.Namespace, options: EvaluationOptions) -> dict[str, Report]:
    """By folder."""
    from monosema import hub
    from monosema.core.config import to_plain
    from monosema.core.files import write_json
    from monosema.evaluation import core_layout, evaluate_many
    from monosema.runs import open_session

    first, *others = extra.folders
    if len(set(extra.folders)) < len(extra.folders):
        raise ConfigError(f"a folder is named twice in {' '.join(extra.folders)}")
    session = open_session(first, extra.name, progress=True, **_overrides(extra))
    coders = {first: session.coder, **{folder: hub.load(folder, extra.name) for folder in others}}
    _require_one_model(extra, coders)
    reports = evaluate_many(
        coders,
        session.models,
        session.tokens,
        n_tokens=options.n_tokens,
        n_loss_tokens=options.n_loss_tokens,
        ablation=options.ablation,
        outlier_norm_multiple=extra.outlier_norm_multiple,
        progress=not extra.quiet,
    )
    if extra.saebench is not None:
        text = extra.text or (session.coder.metadata.get("tokens") or {}).get("source", "data")
        config, name = to_plain(session.coder.config), extra.name or first
        layout = core_layout(reports[first], name=name, coder_config=config, dataset=str(text))
        write_json(extra.saebench, layout)
    if extra.latents_csv is not None:
        table = reports[first].latents
        assert table is not None, "evaluate_many looks at weights by default"
        table.write_csv(extra.latents_csv)
    return reports


def _crosscoder(extra: argparse.Namespace, options: EvaluationOptions) -> CrosscoderReport:
    if options.ablation != "both" or options.n_loss_tokens is not None:
        raise ConfigError("--crosscoder runs no model with edits; leave out --ablation and --n-loss-tokens")
    from monosema.evaluation import evaluate_crosscoder
    from monosema.runs import open_session

    session = open_session(extra.folders[0], extra.name, progress=True, **_overrides(extra))
    return evaluate_crosscoder(
        session.coder,
        session.models,
        session.tokens,
        n_tokens=options.n_tokens,
        site_units=extra.site_units or "raw",
        outlier_norm_multiple=extra.outlier_norm_multiple,
        progress=not extra.quiet,
    )


def _replacement(extra: argparse.Namespace, options: EvaluationOptions) -> ReplacementReport:
    """All dictionaries in the model and on the text of the first."""
    if options.ablation != "both" or options.n_loss_tokens is not None:
        raise ConfigError("--replace compares all tokens with zero ablation; leave out --ablation and --n-loss-tokens")
    from monosema import hub
    from monosema.evaluation import evaluate_replacement
    from monosema.runs import open_session

    first, *others = extra.replace
    session = open_session(first, extra.name, progress=True, **_overrides(extra))
    coders = [session.coder, *(hub.load(folder, extra.name) for folder in others)]
    _require_one_model(extra, dict(zip(extra.replace, coders, strict=True)))
    return evaluate_replacement(
        coders, session.model, session.tokens, n_tokens=options.n_tokens, progress=not extra.quiet
    )


def _require_one_model(extra: argparse.Namespace, coders: Mapping[str, Dictionary]) -> None:
    """Raise ``ConfigError`` where dictionaries recorded several models and none is named in their place."""
    from monosema.data.rebuild import recorded_options

    if extra.model is not None or len(coders) == 1:
        return
    first, *others = sources = {folder: _source(recorded_options(coder.metadata)) for folder, coder in coders.items()}
    for folder in others:
        if sources[folder] != sources[first]:
            raise ConfigError(
                f"{folder} was trained on the model {sources[folder]}, {first} on {sources[first]}; all must belong to "
                "one model, which --model names"
            )


def _source(recorded: dict[str, dict[str, Any]]) -> str:
    return str(recorded["model"]["source"]) if "model" in recorded else ", ".join(recorded["models"])


def _overrides(extra: argparse.Namespace) -> dict[str, Any]:
    """What is given in place of what the dictionary recorded."""
    overrides: dict[str, Any] = {"trust_remote_code": True} if extra.trust_remote_code else {}
    if extra.text is not None:
        overrides["text"] = extra.text
    if extra.model is not None:
        overrides["model"] = models_given(extra.model)
    return overrides
