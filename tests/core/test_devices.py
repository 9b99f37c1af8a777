"""Devices and dtypes."""

import logging
import platform
from pathlib import Path

import pytest
import torch

from monosema.core import devices
from monosema.core.devices import choose_device, dtype_name, parse_dtype
from monosema.core.errors import ConfigError, UnknownNameError
from monosema.core.words import counted


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_default_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, mps=True)
    assert choose_device() == torch.device("cuda")
    pretend(monkeypatch, cuda=False, mps=True)  # Apple's only when asked for
    assert choose_device() == torch.device("cpu")
    assert choose_device("mps") == torch.device("mps")


def test_a_device_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device(torch.device("meta")) == torch.device("meta")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "torch sees no CUDA device; use device='cpu'"),
        ("cuda:0", "'cuda:0' was asked for"),
        ("mps", "torch sees no Apple GPU"),
        ("gpu", "unknown device 'gpu'; use 'cpu'"),
    ],
)
def test_impossible_devices(monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    pretend(monkeypatch, cuda=False)
    with pytest.raises(ConfigError, match=message):
        choose_device(device)


def test_the_reason_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pretend(monkeypatch, cuda=False)
    devices._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="monosema"):
        choose_device()
        choose_device()
    threads = counted(torch.get_num_threads(), "thread")
    assert [r.message for r in caplog.records] == [f"device cpu: torch sees no CUDA device; {threads}"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_names(dtype: torch.dtype) -> None:
    name = dtype_name(dtype)
    assert parse_dtype(name) is parse_dtype(f"torch.{name}") is parse_dtype(dtype) is dtype


def test_refused_dtypes() -> None:
    with pytest.raises(ConfigError, match=r"expected a floating-point dtype, got torch\.int32"):
        parse_dtype(torch.int32)
    with pytest.raises(UnknownNameError, match="unknown dtype 'bflot16'; did you mean 'bfloat16'"):
        parse_dtype("bflot16")


def test_the_processor_is_named_by_what_tells_kinds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: EPYC\n"
    text = one + "cpu MHz\t\t: 2400.1\n\n" + one.replace("17", "18")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert devices.processor.__wrapped__() == "AuthenticAMD, 25, 17, EPYC"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    assert devices.processor.__wrapped__() == (platform.processor() or platform.machine())
