"""Errors name flags, and help is plain."""

import argparse
import re
from pathlib import Path

import pytest

from monosema.cli.main import VERBS, main
from monosema.cli.wording import Flags, plain_help
from monosema.coders.config import TopK
from monosema.core.errors import ConfigError
from monosema.runs.benchmarking import BENCHMARKS
from monosema.training.config import TrainingConfig
from monosema.training.terms import L1


@pytest.fixture
def flags() -> Flags:
    known = Flags()
    known.add_options(
        {
            "stream.epochs": int,
            "stream.batch_size": int,
            "tokens.column": str,
            "tokens.mixture": dict[str, str],
            "model.dtype": str,
            "stream.dtype": str,
            "tokens.in_memory": bool,
            "out_of": int,
        }
    )
    known.add_kinds({"training.sparsity": {"L1": L1, "none": None}, "coder.activation": {"TopK": TopK}})
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--trust-me", action="store_true")
    known.add_arguments(parser)
    return known


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("set epochs=3, lower tokens to 9", "set --stream.epochs=3, lower tokens to 9"),
        ("name a column with column=", "name a column with --tokens.column="),
        ("dtype='x' is ambiguous", "dtype='x' is ambiguous"),
        ("leave out in_memory=True", "leave out --tokens.in-memory"),
        ("leave out in_memory=true", "leave out --tokens.in-memory"),
        ("use in_memory=False", "use --tokens.no-in-memory"),
        ("say trust_me=True", "say --trust-me"),
        ("another out= (--out) here", "another out= (--out) here"),
        ("load_tokens(..., column='text')", "load_tokens(..., column='text')"),
        ("in words (epochs=3)", "in words (--stream.epochs=3)"),
        ("batch_size and epochs must be 1", "--stream.batch-size and --stream.epochs must be 1"),
        ("two epochs of a column", "two epochs of a column"),
        ("tokens.column was 'a'", "--tokens.column was 'a'"),
        ("unknown option 'tokens.column'", "unknown option 'tokens.column'"),
        ("/data/tokens.column, tokens.column.txt", "/data/tokens.column, tokens.column.txt"),
        ("tokens.mixture.my_part.weight must", "--tokens.mixture.my-part.weight must"),
        ("training.sparsity.target_l0 must", "--training.sparsity.target-l0 must"),
        ("coder.activation.k=3", "--coder.activation.k=3"),
        ("k must, target_l0", "k must, target_l0"),
        ("tokens.in_memory is set, tokens.in_memory=False", "--tokens.in-memory is set, --tokens.no-in-memory"),
        ("--stream.epochs=3, and a==b, stranger=4", "--stream.epochs=3, and a==b, stranger=4"),
    ],
)
def test_errors_name_flags(flags: Flags, message: str, expected: str):
    assert flags.named_in(message) == expected


CHECKED = {
    "--training.lr -1": "--training.lr must be positive or 'auto', got -1",
    "--coder.activation TopK --coder.activation.k 0": "--coder.activation.k must be at least 1, got 0",
    "--coder.activation.k 0": "--coder.activation.k must be positive, got 0",
    "--coder.d-sae 4 --coder.expansion-factor 2": "give --coder.d-sae or --coder.expansion-factor, not both",
    "--coder.start-name x": "--coder.start-name is a dictionary inside --coder.start-from",
    "--training.sparsity L1 --training.sparsity.coefficient -1": "--training.sparsity.coefficient must be positive",
    "--training.finetuning.tokens 0": "--training.finetuning.tokens must be at least 1",
    "--training.levels Matryoshka": "give --training.levels.widths or --training.levels.fractions",
    "--training.compile reduce-overhead": "--training.compile='reduce-overhead' cannot",
    "--tokens.positions.step 0": "--tokens.positions.step must be at least 1",
    "--tokens.packing.mode windows --tokens.packing.separator bos": "with --tokens.packing.mode='windows'",
    "--stream.epochs a": "Error parsing --stream.epochs: expected a whole number, got 'a'",
    "--training.finetuning.lr 1": "Tokens of the phase, beyond TrainingConfig.tokens.",
}
"""What the config refuses, or the parser before it."""


@pytest.mark.parametrize("arguments", CHECKED)
def test_checks_of_configs_name_the_flags_that_were_typed(arguments: str, capsys: pytest.CaptureFixture[str]):
    try:
        status: object = main(["train", *arguments.split(), "--out", "x"])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    words = capsys.readouterr().err.replace("│", "").split()
    assert CHECKED[arguments] in " ".join(words)


def test_python_names_its_arguments():
    with pytest.raises(ConfigError, match=r"^lr must be positive"):
        TrainingConfig(tokens=1, lr=-1)
    with pytest.raises(ConfigError, match=r"^TopK: k must be at least 1"):
        TopK(0)


@pytest.mark.parametrize(
    ("given", "arguments", "expected"),
    [
        ("training: {lr: -1}", [], "training.lr must be positive"),
        ("coder: {activation: {kind: TopK, k: 0}}", [], "coder.activation.k must be at least 1"),
        (
            "tokens: {packing: {mode: windows, separator: bos}}",
            [],
            "tokens.packing.separator='bos' parts the documents of a packed context; with tokens.packing.mode='win",
        ),
        ("tokens: {mixture: {wiki: {source: x, weight: -1}}}", [], "tokens.mixture.wiki.weight must be positive"),
        (
            "tokens: {mixture: {wiki: {source: x}}}",
            ["--tokens.mixture.wiki.weight", "-1"],
            "--tokens.mixture.wiki.weight must be positive",
        ),
        (
            "tokens: {mixture: {wiki: {source: x}}}",
            ["--tokens.column", "a"],
            "--tokens.mixture has parts with options of their own; leave out --tokens.column",
        ),
    ],
)
def test_what_a_file_says_is_named_by_its_key(
    given: str, arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.yaml").write_text(given)
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *arguments, "--out", "x"]) == 2
    assert f"monosema train: {expected}" in capsys.readouterr().err


HELPS = [
    *([verb] for verb in VERBS if verb != "benchmark"),
    *(["benchmark", name] for name in BENCHMARKS),
    *(["cache", action] for action in ("shuffle", "export", "push")),
]


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_is_plain(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert "``" not in text
    assert not re.search(r"[\]}A-Z]\|[{A-Z]|\{None\}|\{auto\}|\{\[", text)
    if command == ["train"]:
        assert "--tokens.context-size INT or None" in text
        assert "--training.lr FLOAT or auto" in text
        assert "--tokens.exclude-special-tokens {True,False} or INT [INT ...]" in text


def test_lines_of_help_keep_their_boxes():
    line = "│ --a.b {None}|{[STR [STR ...]]} ``x``         │\n"
    assert plain_help(line) == "│ --a.b STR [STR ...] or None x                │\n"
