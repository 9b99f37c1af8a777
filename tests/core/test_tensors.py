"""Tensors written by hand are what the library reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from monosema.core.tensors import _NAMES, write_tensors


def test_the_library_reads_every_type_and_shape(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(7).to(dtype) for dtype in _NAMES}
    tensors |= {
        "nothing": torch.zeros(0, 3),
        "number": torch.tensor(1.5),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "trained": torch.nn.Parameter(torch.ones(2, 2)),
        "größe": torch.ones(1),
    }
    path = tmp_path / "x.safetensors"
    assert write_tensors(path, tensors) == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {})
    assert load_file(tmp_path / "x.safetensors") == {}


def test_an_error_of_the_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_tensors(tmp_path / "absent" / "x.safetensors", {})
