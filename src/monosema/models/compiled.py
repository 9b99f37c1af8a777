"""A model's blocks by ``torch.compile`` while sites are captured: whatever no hook looks into."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import nn

from monosema.core.compiling import CompileMode, check_compile_mode, compiled
from monosema.models.language_model import LanguageModel, SiteName


def refuse_cuda_graphs(mode: CompileMode | None) -> None:
    """Raise ``ConfigError`` for ``reduce-overhead``."""
    reason = "blocks share one compiled function, and a CUDA graph's next run overwrites its result"
    check_compile_mode(mode, "a language model's blocks", reason)


@final
class CompiledBlocks:
    """Compiles the blocks of ``model``, or their parts, around the sites asked for.

    Hooks inside a compiled function would be passed over in silence, so a block that holds a hooked module is not
    compiled whole: its parts are that hold none, and single layers stay eager. Hooks on a compiled module itself run
    outside of what is compiled. The model is changed inside ``active`` only.

    Raises ``ConfigError`` for ``reduce-overhead``: blocks share one compiled function, and the result of a CUDA graph
    is overwritten by its next run.
    """

    def __init__(self, model: LanguageModel, mode: CompileMode):
        refuse_cuda_graphs(mode)
        self._model, self._mode = model, mode
        self._functions: dict[nn.Module, Callable[..., Any]] = {}

    @contextmanager
    def active(self, names: Sequence[SiteName]) -> Iterator[None]:
        """Inside, forward passes that capture ``names`` run compiled."""
        hooked = self._model.hooked_modules(names)
        replaced: list[tuple[nn.Module, Any]] = []
        try:
            for block in self._model.blocks:
                for module in compilable(block, hooked):
                    if module not in self._functions:
                        self._functions[module] = compiled(module.forward, self._mode)
                    replaced.append((module, module.__dict__.get("forward")))
                    module.__dict__["forward"] = self._functions[module]
            yield
        finally:
            for module, before in replaced:
                del module.__dict__["forward"]
                if before is not None:
                    module.__dict__["forward"] = before


def compilable(module: nn.Module, hooked: Collection[nn.Module]) -> list[nn.Module]:
    """``module``, or those of its parts that are compiled whole, because nothing inside them is hooked."""
    children = list(module.children())
    if not children:
        return []
    inside = [each for each in module.modules() if each is not module]
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or any(each in hooked for each in inside):
        return [part for child in children for part in compilable(child, hooked)]
    return [module]
