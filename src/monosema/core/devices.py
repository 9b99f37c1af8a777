"""Which device and which floating-point type, and why: the reason is logged once."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

from monosema.core.errors import ConfigError, unknown_name
from monosema.core.logs import get_logger
from monosema.core.openmp import threads_spin
from monosema.core.words import counted

logger = get_logger("monosema.core.devices")

FLOAT_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_IDENTIFIES_PROCESSOR = (
    "vendor_id", "cpu family", "model", "model name",  # x86
    "CPU implementer", "CPU part", "CPU variant",  # ARM
)  # fmt: skip


def say_if_threads_spin(device: torch.device) -> None:
    """Log, once a process, that waiting threads spin, where several are about to compute on a CPU; see ``openmp``."""
    if device.type == "cpu" and torch.get_num_threads() > 1 and threads_spin():
        _say_that_threads_spin()


@functools.cache
def _say_that_threads_spin() -> None:
    logger.warning(
        "torch was imported before monosema, so threads spin while they wait, and beside another busy process a step "
        "takes three times as long; import monosema first, or set OMP_WAIT_POLICY=PASSIVE"
    )


@functools.cache
def processor() -> str:
    """Vendor, family, model and name of the processor; two that differ here may add up in another order."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    found = {name.strip(): value.strip() for name, _, value in pairs}
    values = [found[name] for name in _IDENTIFIES_PROCESSOR if found.get(name)]
    return ", ".join(values) or platform.processor() or platform.machine()


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best one present (CUDA, then CPU; Apple's only when asked for)."""
    if device is not None:
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"unknown device {str(device)!r}; use 'cpu', 'cuda', 'cuda:0', … or 'mps'") from error
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device {str(device)!r} was asked for, but torch sees no CUDA device; use device='cpu'")
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise ConfigError("device 'mps' was asked for, but torch sees no Apple GPU; use device='cpu'")
        return chosen
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _say_once(str(chosen), "torch sees a CUDA device" if chosen.type == "cuda" else "torch sees no CUDA device")
    return chosen


@functools.cache
def _say_once(device: str, reason: str) -> None:
    logger.info("device %s: %s; %s", device, reason, counted(torch.get_num_threads(), "thread"))


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``"float32"``, ``"torch.float32"`` or ``torch.float32`` as a torch dtype; floating point only."""
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise ConfigError(f"expected a floating-point dtype, got {dtype}; use one of {', '.join(FLOAT_DTYPES)}")
        return dtype
    name = dtype.removeprefix("torch.")
    if name not in FLOAT_DTYPES:
        raise unknown_name("dtype", name, FLOAT_DTYPES)
    return FLOAT_DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` as a tensor that nobody changes; it is copied to the device once, as every copy waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)


class LateNumbers:
    """Whole numbers made on a device, for the host to read later.

    Reading waits for what was queued before, and for nothing that was queued since.
    """

    def __init__(self, numbers: Tensor):
        self._numbers = numbers
        self._made: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._made = torch.cuda.Event()
            self._made.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[int]:
        if self._made is not None:
            self._made.synchronize()
        return [int(number) for number in self._numbers.tolist()]
