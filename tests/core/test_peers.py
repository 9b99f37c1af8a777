"""Options of other libraries are answered with ours, and every answer names something that exists."""

from __future__ import annotations

import re

import pytest

import monosema as ms
from monosema.core.config import option_paths
from monosema.core.peers import PEERS_OPTIONS, peers_option
from monosema.runs.config import RunConfig


def test_every_path_of_the_table_is_an_option() -> None:
    paths = option_paths(RunConfig)
    sections = "|".join(sorted({path.partition(".")[0] for path in paths if "." in path} | {"cache"}))
    for name, answer in PEERS_OPTIONS.items():
        for path in re.findall(rf"\b(?:{sections})\.[a-z_0-9]+", answer):
            known = path == "cache.folder" or any(each == path or each.startswith(f"{path}.") for each in paths)
            assert known, f"{name}: {path} is no option"


def test_names_are_found_however_they_are_written() -> None:
    assert peers_option("training-tokens") == peers_option("training_tokens") == "training.tokens"
    assert peers_option("tokens") is None


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda: ms.TrainingConfig(l1_coefficient=5), "here it is training.sparsity"),
        (lambda: ms.TrainingConfig(tokns=5), "did you mean 'tokens'?"),
        (lambda: ms.SAE(8, dict_size=16), "here it is coder.d_sae"),
        (lambda: ms.SAE(8, 16, colour="red"), "SAE has no option 'colour'; known: d_in, d_sae"),
        (lambda: ms.TopK(k=2, lambd=1), "TopK has no option 'lambd'"),
        (lambda: ms.load_model("builtin", llm_dtype="float32"), "load_model has no option 'llm_dtype'; here it is"),
        (lambda: ms.ActivationStream(None, None, "x", out_batch_size=4), "here it is stream.batch_size"),
        (lambda: ms.train(None, None, training_tokens=4), "here it is training.tokens"),
    ],
)
def test_python_calls_are_answered_too(call, answer: str) -> None:
    with pytest.raises(TypeError, match=re.escape(answer)) as raised:
        call()
    assert isinstance(raised.value, ms.UserError)
