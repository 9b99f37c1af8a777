"""Folders of our own format that are not what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import monosema as ms
from monosema.core.errors import FileError

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]

CROSSCODER: dict[str, tuple[Change, str]] = {
    "lacks a tensor": (lambda _, tensors: tensors.pop("W_dec"), "do not fit its config: it lacks W_dec"),
    "lacks the encoder's bias": (lambda _, tensors: tensors.pop("b_enc"), "do not fit its config: it has no b_enc"),
    "another shape": (
        lambda config, _: config["dictionary"].update(d_sae=9),
        r"W_enc_rows is \[8, 6\], the config says \[9, 6\]",
    ),
    "a tensor too many": (lambda _, tensors: tensors.update(odd=torch.ones(1)), "do not fit its config: odd not expe"),
    "of another activation": (
        lambda _, tensors: tensors.update({"activation.threshold": torch.ones(8)}),
        "do not fit its config: activation.threshold",
    ),
    "not finite": (lambda _, tensors: tensors["b_dec"].fill_(torch.nan), "b_dec holds values that are not finite"),
    "unknown option": (lambda config, _: config["dictionary"].update(d_say=1), "unknown option 'd_say'; did you mean"),
    "wrong type": (lambda config, _: config["dictionary"].update(skip="no"), "skip: expected true or false"),
    "unknown activation": (
        lambda config, _: config["dictionary"].update(activation={"kind": "TopQ", "k": 1}),
        "did you mean 'TopK'",
    ),
    "very many sites": (
        lambda config, _: config["dictionary"].update(read_widths=[1] * 9),
        "do not fit its config: 9 read_widths",
    ),
    "widths that do not add up": (lambda config, _: config["dictionary"].update(read_widths=[3, 4]), "add up to 7"),
    "another kind": (lambda config, _: config.update(kind="heap"), "does not describe a dictionary"),
    "another version": (lambda config, _: config.update(version=2), "is version 2, this library reads 1"),
}
STACK: dict[str, tuple[Change, str]] = {
    "lacks a layer": (
        lambda _, tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("layers.1.")],
        "it lacks layers.1.W_enc_rows",
    ),
    "a layer too many": (
        lambda _, tensors: tensors.update({"layers.2.W_dec": torch.ones(8, 3)}),
        "layers.2.W_dec not expected",
    ),
    "other sites written": (
        lambda config, _: config["dictionary"].update(write_widths=[6]),
        "as many sites as it reads, got 2 and 1",
    ),
    "no sites": (
        lambda config, _: config["dictionary"].update(read_widths=[], write_widths=[]),
        "as many sites as it reads, got 0 and 0",
    ),
}


def changed(folder: Path, change: Change) -> Path:
    config = json.loads((folder / "cfg.json").read_text())
    tensors = load_file(folder / "monosema.safetensors")
    change(config, tensors)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "monosema.safetensors")
    return folder


@pytest.mark.parametrize("what", list(CROSSCODER))
def test_a_coder_that_is_not_what_was_written_is_refused(what: str, tmp_path: Path) -> None:
    change, words = CROSSCODER[what]
    folder = changed(ms.save(ms.Crosscoder([3, 3], 8, activation=ms.ReLU()), tmp_path / "d"), change)
    with pytest.raises(FileError, match=words):
        ms.load(folder)


@pytest.mark.parametrize("what", list(STACK))
def test_a_stack_that_is_not_what_was_written_is_refused(what: str, tmp_path: Path) -> None:
    change, words = STACK[what]
    folder = changed(ms.save(ms.CLT([3, 3], [3, 3], 8, activation=ms.ReLU()), tmp_path / "d"), change)
    with pytest.raises(FileError, match=words):
        ms.load(folder)


def test_options_that_an_older_file_does_not_have_take_their_defaults(tmp_path: Path) -> None:
    coder = ms.Crosscoder([3, 3], 8, activation=ms.ReLU(), seed=5)

    def without(config: dict[str, Any], _: dict[str, Tensor]) -> None:
        for name in ("token_scaling", "causal", "decoder_init", "decoder_init_norm"):
            del config["dictionary"][name]

    loaded = ms.load(changed(ms.save(coder, tmp_path / "d"), without))
    assert loaded.config == coder.config
    assert torch.equal(loaded.W_dec, coder.W_dec)
