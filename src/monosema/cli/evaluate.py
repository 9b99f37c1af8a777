"""``monosema evaluate``: measure a dictionary on held-out text, as it was saved; or several in place of the MLPs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosema.cli.options import parse
from monosema.core.errors import ConfigError
from monosema.runs.config import EvaluationOptions

if TYPE_CHECKING:
    from monosema.evaluation import CrosscoderReport, ReplacementReport, Report

_NAMED_MODEL = re.compile(r"(\w[\w-]*)=(.+)")


def run(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(prog="monosema evaluate", description=__doc__, add_help=False)
    parser.add_argument("folder", nargs="?", help="run folder, dictionary folder, or hub repository")
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument("--text", help="evaluate on this text instead of the recorded one")
    parser.add_argument(
        "--model",
        action="append",
        help="evaluate on this model instead of the recorded one; of several, NAME=MODEL, once for each to change",
    )
    parser.add_argument("--out", type=Path, help="also write the report as JSON")
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
    parsed = parse(EvaluationOptions, _joined(arguments), parser)
    extra, options = parsed.extra, parsed.config
    if (extra.folder is None) == (extra.replace is None):
        parser.error("name the folder of a run or of a dictionary, or several after --replace")
    if extra.crosscoder and extra.replace is not None:
        raise ConfigError("--crosscoder measures one dictionary; leave out --replace")
    if extra.site_units is not None and not extra.crosscoder:
        raise ConfigError("--site-units compares the sites of a crosscoder; add --crosscoder")
    if extra.saebench is not None and (extra.crosscoder or extra.replace is not None):
        raise ConfigError("--saebench writes the figures of one dictionary; leave out --crosscoder and --replace")
    if extra.crosscoder:
        sites = _crosscoder(extra, options)
        print(sites)
        if extra.out is not None:
            sites.save(extra.out)
        return 0
    from monosema.core.files import write_json

    report = _replacement(extra, options) if extra.replace is not None else _one(extra, options)
    print(report)
    if extra.out is not None:
        write_json(extra.out, report.to_dict())
    return 0


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


def _one(extra: argparse.Namespace, options: EvaluationOptions) -> Report:
    from monosema.core.config import to_plain
    from monosema.core.files import write_json
    from monosema.evaluation import core_layout, evaluate
    from monosema.runs import open_session

    session = open_session(extra.folder, extra.name, **_overrides(extra))
    report = evaluate(
        session.coder,
        session.models,
        session.tokens,
        n_tokens=options.n_tokens,
        n_loss_tokens=options.n_loss_tokens,
        ablation=options.ablation,
        progress=not extra.quiet,
    )
    if extra.saebench is not None:
        text = extra.text or (session.coder.metadata.get("tokens") or {}).get("source", "data")
        config, name = to_plain(session.coder.config), extra.name or extra.folder
        write_json(extra.saebench, core_layout(report, name=name, coder_config=config, dataset=str(text)))
    return report


def _crosscoder(extra: argparse.Namespace, options: EvaluationOptions) -> CrosscoderReport:
    if options.ablation != "both" or options.n_loss_tokens is not None:
        raise ConfigError("--crosscoder runs no model with edits; leave out --ablation and --n-loss-tokens")
    from monosema.evaluation import evaluate_crosscoder
    from monosema.runs import open_session

    session = open_session(extra.folder, extra.name, **_overrides(extra))
    return evaluate_crosscoder(
        session.coder,
        session.models,
        session.tokens,
        n_tokens=options.n_tokens,
        site_units=extra.site_units or "raw",
        progress=not extra.quiet,
    )


def _replacement(extra: argparse.Namespace, options: EvaluationOptions) -> ReplacementReport:
    """All dictionaries in the model and on the text of the first."""
    if options.ablation != "both" or options.n_loss_tokens is not None:
        raise ConfigError("--replace compares all tokens with zero ablation; leave out --ablation and --n-loss-tokens")
    from monosema import hub
    from monosema.data.rebuild import recorded_options
    from monosema.evaluation import evaluate_replacement
    from monosema.runs import open_session

    first, *others = extra.replace
    session = open_session(first, extra.name, **_overrides(extra))
    coders = [session.coder, *(hub.load(folder, extra.name) for folder in others)]
    if extra.model is None:
        sources = [_source(recorded_options(coder.metadata)) for coder in coders]
        for folder, source in zip(extra.replace, sources, strict=True):
            if source != sources[0]:
                raise ConfigError(
                    f"{folder} was trained on the model {source}, {first} on {sources[0]}; all must belong to one "
                    "model, which --model names"
                )
    return evaluate_replacement(
        coders, session.model, session.tokens, n_tokens=options.n_tokens, progress=not extra.quiet
    )


def _source(recorded: dict[str, dict[str, Any]]) -> str:
    return str(recorded["model"]["source"]) if "model" in recorded else ", ".join(recorded["models"])


def _overrides(extra: argparse.Namespace) -> dict[str, Any]:
    """What is given in place of what the dictionary recorded."""
    overrides = {} if extra.text is None else {"text": extra.text}
    if extra.model is not None:
        pairs = [_NAMED_MODEL.fullmatch(given) for given in extra.model]
        named = {pair[1]: pair[2] for pair in pairs if pair is not None}
        if len(extra.model) > 1 and len(named) < len(extra.model):
            raise ConfigError(f"--model: give one model, or NAME=MODEL each, got {' '.join(extra.model)}")
        overrides["model"] = named or extra.model[0]
    return overrides
