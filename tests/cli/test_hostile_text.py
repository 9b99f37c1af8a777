"""Names and texts of files that would act on a terminal: every verb shows them by name."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import monosema as ms
from monosema.cli.main import main
from monosema.cli.output import show
from monosema.evaluation.comparison import comparison, write_csv
from monosema.evaluation.report import Report
from monosema.runs.describe import describe

HOSTILE = "a\x1b[2J\x9b1A\r\u202e\u200b\x00\u2028\nfigures fve 1.0"
SHOWN = "⟨U+001B⟩[2J⟨U+009B⟩1A"


def assert_harmless(text: str) -> None:
    acting = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}
    assert not acting
    text.encode()


def report() -> Report:
    numbers = {each.name: 0.5 for each in fields(Report) if each.type == "float"}
    counts = {"n_alive": 3, "d_sae": 8, "n_tokens": 100, "dead_fraction_reliable": False}
    names = {"hook_name": HOSTILE, "model_name": HOSTILE, "notes": (HOSTILE,), "fve_per_site": {HOSTILE: 0.5}}
    return Report(**{**numbers, **counts, **names})


def dictionary(folder: Path) -> Path:
    coder = ms.SAE(4, 8, activation=ms.ReLU(), hook_name=HOSTILE)
    coder.metadata.update(
        model={"name": HOSTILE, "source": f"./{HOSTILE}"},
        tokens={"source": HOSTILE, "context_size": 8},
        hook_names=[HOSTILE],
    )
    path = ms.save(coder, folder / "dictionary")
    (path / "report.json").write_text(json.dumps(report().to_dict()))
    return path


def labelled(folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text(json.dumps({HOSTILE: "a", "label": "b"}))
    return path


def options(folder: Path) -> Path:
    path = folder / "options.json"
    path.write_text(json.dumps({"training": {HOSTILE: 1}}))
    return path


def cache(folder: Path) -> Path:
    path = folder / "cache"
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({"format": "monosema-activations", "version": HOSTILE}))
    return path


VERBS: dict[str, Callable[[Path], list[str]]] = {
    "inspect": lambda folder: ["inspect", str(dictionary(folder))],
    "evaluate": lambda folder: ["evaluate", str(dictionary(folder))],
    "features": lambda folder: ["features", str(dictionary(folder))],
    "benchmark": lambda folder: [
        *("benchmark", "probe", str(dictionary(folder)), "--model", "builtin", "--data", str(labelled(folder)))
    ],
    "plan": lambda folder: ["plan", "--config", str(options(folder))],
    "train": lambda folder: ["train", "--config", str(options(folder)), "--out", str(folder / "run")],
    "cache": lambda folder: ["cache", "export", str(cache(folder)), "--out", str(folder / "new")],
    "pretokenize": lambda folder: [
        *("pretokenize", "--tokens.source", str(labelled(folder)), "--out", str(folder / "new"))
    ],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_what_acts_by_name(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(VERBS[verb](tmp_path))
    printed = capsys.readouterr()
    assert_harmless(printed.out)
    assert_harmless(printed.err)
    text = printed.out + printed.err
    assert "001B" in text or "\\x1b" in text
    assert status == (0 if verb == "inspect" else 2)


def test_no_value_of_a_file_begins_a_line(tmp_path: Path) -> None:
    path = dictionary(tmp_path)
    texts = [describe(path), str(report()), comparison({HOSTILE: report()})]
    for text in texts:
        assert_harmless(text)
        assert SHOWN in text
        assert not any(line.startswith("figures fve") for line in text.split("\n"))
    assert "\x1b" not in report()._repr_html_() and SHOWN in report()._repr_html_()
    write_csv({HOSTILE: report()}, tmp_path / "a.csv")
    table = (tmp_path / "a.csv").read_bytes().decode()
    assert_harmless(table)
    assert table.count("\n") == 2 and SHOWN in table


def test_printing_never_fails_for_want_of_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    show("a\ud800\x1b漢")
    out.flush()
    assert out.buffer.getvalue().decode("ascii").startswith("a\\u27e8ED A0 80\\u27e9")


def test_only_one_place_prints() -> None:
    """Names of files reach people through ``cli.output``, ``core.console``, the logger and errors alone."""
    source = Path(ms.__file__).parent
    statement = re.compile(r"^\s*(print\(|sys\.std(out|err)\.write\()", re.MULTILINE)
    printing = {path.name for path in source.rglob("*.py") if statement.search(path.read_text())}
    assert printing == {"console.py", "output.py"}
    loggers = {path.name for path in source.rglob("*.py") if 'logging.getLogger("monosema.' in path.read_text()}
    assert loggers == set()
