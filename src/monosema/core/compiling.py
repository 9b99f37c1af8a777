"""``torch.compile`` as the library uses it: without CUDA graphs, and with a clear error where nothing compiles."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar, cast

from monosema.core.errors import ConfigError

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Function = TypeVar("Function", bound=Callable[..., object])


def check_compile_mode(mode: CompileMode | None, what: str, reason: str) -> None:
    """Raise ``ConfigError`` for a mode that works by CUDA graphs, which ``what`` cannot use for ``reason``."""
    if mode == "reduce-overhead":
        raise ConfigError(
            f"compile='reduce-overhead' cannot be used for {what}: {reason}; use compile='default' or 'max-autotune'"
        )


def compiled(function: Function, mode: str, *, dynamic: bool | None = None) -> Function:
    """``function`` by ``torch.compile``, made at its first call; ``max-autotune`` is the one without CUDA graphs.

    The call raises ``ConfigError`` where compiling fails (no C compiler, for example).
    """
    import torch  # configs name modes without it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations, while it imports its compiler
        mode = "max-autotune-no-cudagraphs" if mode == "max-autotune" else mode
        optimised = torch.compile(function, mode=mode, dynamic=dynamic)

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        try:
            return optimised(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            first = next(iter(str(error).splitlines()), "")
            raise ConfigError(f"torch.compile failed here ({first}); leave compile out") from error

    return cast(Function, call)
