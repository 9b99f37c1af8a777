"""Errors name flags, and help is plain."""

import argparse
from pathlib import Path

import pytest

from monosema.cli.main import main
from monosema.cli.wording import Flags, plain_help


@pytest.fixture
def flags() -> Flags:
    known = Flags()
    known.add_options(
        ["stream.epochs", "tokens.column", "model.dtype", "stream.dtype", "tokens.in_memory", "out_of"],
        switches=["tokens.in_memory"],
    )
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
        ("use in_memory=False", "use --tokens.no-in-memory"),
        ("say trust_me=True", "say --trust-me"),
        ("another out= (--out) here", "another out= (--out) here"),
        ("load_tokens(..., column='text')", "load_tokens(..., column='text')"),
        ("in words (epochs=3)", "in words (--stream.epochs=3)"),
        ("--stream.epochs=3, and a==b, stranger=4", "--stream.epochs=3, and a==b, stranger=4"),
    ],
)
def test_errors_name_flags(flags: Flags, message: str, expected: str):
    assert flags.named_in(message) == expected


def test_what_python_raises_names_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.yaml").write_text("tokens: {packing: {mode: windows, separator: bos}}")
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--out", "x"]) == 2
    message = capsys.readouterr().err
    assert "--tokens.packing.separator='bos' parts the documents" in message
    assert "with --tokens.packing.mode='windows'" in message


def test_help_is_plain(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "``" not in text
    assert "{None}|" not in text
    assert "--tokens.context-size INT or None" in text


def test_lines_of_help_keep_their_boxes():
    line = "│ --a.b {None}|{[STR [STR ...]]} ``x``         │\n"
    assert plain_help(line) == "│ --a.b STR [STR ...] or None x                │\n"
