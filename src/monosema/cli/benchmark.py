"""``monosema benchmark``: one of the deeper benchmarks, on a dictionary as it was saved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from monosema.cli.options import add_consent, parse, whole
from monosema.cli.output import show, show_error
from monosema.core.progress import doing

_USAGE = """\
usage: monosema benchmark NAME FOLDER [options]

Whether a dictionary has found what is known to be there. NAME, and what its --data FILE holds:

  truth       known features (.yaml or .json of SyntheticFeatures, or .safetensors with directions and magnitudes)
  probe       k-sparse probing; lines with a text and a label, or none for --labels python
  absorption  feature absorption; lines with a word and its parents (first letters without)
  tpp         targeted probe perturbation; lines with a text and a label
  scr         spurious correlation removal; lines with a text, target and spurious (true or false)
  ravel       cause and isolation; lines with an attribute and its template, and with an entity and its answers
  meta        meta-dictionaries of the decoder; no file

Lines are JSON (.jsonl). `monosema benchmark NAME --help` lists the options of one.\
"""


_HELP = {
    "data": "file of data, as `monosema benchmark` lists them",
    "labels": "in place of a file: built-in labels of tokens (python, which is the default)",
    "text_column": "column of the file that holds text (default text)",
    "label_column": "column of the file that holds its label (default label)",
    "template": "prompt around each word, with {word} in its place (default the word alone)",
    "context_size": "tokens read of each text (default 128)",
}


def run(arguments: Sequence[str]) -> int:
    """Parse, measure, print."""
    names = [argument for argument in arguments[:2] if not argument.startswith("-")]
    if not names:
        is_asked_for = any(argument in ("-h", "--help") for argument in arguments)
        (show if is_asked_for else show_error)(_USAGE)
        raise SystemExit(0 if is_asked_for else 2)  # as the parsers of other verbs do
    with doing("loading libraries", enabled=not {"-h", "--help", "--quiet", "--print-config"} & set(arguments)):
        from monosema.runs.benchmarking import DataOptions, find_benchmark, run_benchmark

    name, *folder = names
    benchmark = find_benchmark(name)
    parser = argparse.ArgumentParser(
        prog=f"monosema benchmark {name}", usage=f"monosema benchmark {name} FOLDER [options]", add_help=False
    )
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument("--model", help="measure on this model instead of the recorded one")
    add_consent(parser)
    for option in benchmark.takes:
        kind = whole if option == "context_size" else str
        parser.add_argument(f"--{option.replace('_', '-')}", type=kind, help=_HELP[option])
    parser.add_argument("--out", type=Path, help="also write the report as JSON")
    parser.add_argument("--saebench", type=Path, help="also write it in the layout of SAEBench's results")
    parsed = parse(benchmark.config, arguments[len(names) :], parser)
    if not folder:
        parser.error("name the folder of a run or of a dictionary behind the benchmark")
    from monosema import hub
    from monosema.core.config import to_plain
    from monosema.core.files import write_json

    extra = parsed.extra
    options = {each.name: getattr(extra, each.name, None) for each in fields(DataOptions)}
    coder = hub.load(folder[0], extra.name)
    report = run_benchmark(
        name,
        coder,
        parsed.config,
        DataOptions(**options),
        model=extra.model,
        trust_remote_code=extra.trust_remote_code,
        progress=not extra.quiet,
    )
    show(report)
    if extra.out is not None:
        report.save(extra.out)
    if extra.saebench is not None:
        from monosema.evaluation.benchmarks import to_saebench

        written = to_saebench(report, name=Path(folder[0]).name, coder_config=to_plain(coder.config))
        write_json(extra.saebench, written)
    return 0
