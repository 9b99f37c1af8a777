"""The sink: who receives what, in which order, and what the lines of a file are."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from monosema.core.errors import FileError
from monosema.tracking import JsonLines, Named, Sink, Subscriber


class Heard:
    def __init__(self, heard: list, name: str = "") -> None:
        self.heard, self.name = heard, name

    def log(self, step, figures):
        self.heard.append((self.name, step, dict(figures)))


def test_every_subscriber_gets_every_figure_in_order():
    heard: list = []
    sink = Sink([Heard(heard, "a")])
    sink.add(Named("run", Heard(heard, "b")))
    assert isinstance(sink, Subscriber)
    sink.log(3, {"loss": 0.5, "heldout/fve": None})
    sink.log(3, {"k": 1})
    assert heard == [
        ("a", 3, {"loss": 0.5, "heldout/fve": None}),
        ("b", 3, {"run/loss": 0.5, "run/heldout/fve": None}),
        ("a", 3, {"k": 1}),
        ("b", 3, {"run/k": 1}),
    ]


def test_lines_are_json_with_the_step_first_and_their_checksum_is_kept(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    assert lines.content() == b""
    lines.keep(b"")
    lines.log(1, {"loss": 0.5, "fve": math.nan, "histogram": [1, 2]})
    lines.log(2, {"loss": 0.25})
    content = (tmp_path / "metrics.jsonl").read_bytes()
    assert lines.content() == content
    assert [*json.loads(content.splitlines()[0])][:2] == ["step", "loss"]
    assert lines.record() == {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    lines.keep(content.splitlines(keepends=True)[0])
    lines.log(2, {"loss": 0.25})
    assert lines.content() == content
    assert lines.record()["sha256"] == hashlib.sha256(content).hexdigest()
    lines.flush()


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    lines = JsonLines(tmp_path / "missing" / "metrics.jsonl")
    with pytest.raises(FileError, match=r"metrics\.jsonl"):
        lines.log(1, {"loss": 0.5})
    with pytest.raises(FileError, match=r"metrics\.jsonl"):
        lines.flush()
