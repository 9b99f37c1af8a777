"""How a stream runs its models: in which precision, and compiled or not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from monosema.core.compiling import CompileMode
from monosema.core.devices import dtype_name, parse_dtype
from monosema.core.errors import ConfigError, DataError
from monosema.data.contexts import Contexts
from monosema.data.named_models import NamedModels, split_site_name
from monosema.data.stream_config import Autocast
from monosema.models.compiled import CompiledBlocks
from monosema.models.documents import has_several


@final
class Harvester:
    """Captures ``names`` from one model or several; training rows only, evaluation runs the models as they are.

    Args:
        autocast: type of a float32 model's products, by ``torch.autocast``.
        compile: mode of ``torch.compile`` for its blocks, see ``CompiledBlocks``.

    Raises ``ConfigError`` where a model's weights are not float32, or torch has no autocast for its device.
    """

    def __init__(
        self, models: NamedModels, names: Sequence[str], autocast: Autocast | None, compile: CompileMode | None
    ):
        self._models, self._names = models, tuple(names)
        self._autocast = None if autocast is None else parse_dtype(autocast)
        by_name = models.by_name or {"": models.first}
        self.models = tuple(by_name.values())
        for model in self.models:
            if autocast is not None and model.dtype != torch.float32:
                raise ConfigError(
                    f"autocast={autocast!r} lowers the precision of float32 products; {model.name!r} has "
                    f"{dtype_name(model.dtype)} weights: load it with dtype='float32', or leave autocast out"
                )
            if autocast is not None and not is_autocast_available(model.device.type):
                raise ConfigError(f"torch has no autocast for the device {model.device.type!r}; leave autocast out")
        self._devices = sorted({model.device.type for model in self.models})
        self._compiled: list[tuple[CompiledBlocks, list[str]]] = []
        if compile is not None:
            places = [split_site_name(name, by_name) if models.is_mapping else ("", name) for name in names]
            for key, model in by_name.items():
                own = [hook for owner, hook in places if owner == key]
                self._compiled.append((CompiledBlocks(model, compile), own))

    @property
    def depends_on_caller(self) -> bool:
        """Whether edits, or modes that torch keeps for each thread, make another thread's captures differ from ours."""
        modes = [torch.is_inference_mode_enabled(), *map(torch.is_autocast_enabled, self._devices)]
        return any(modes) or any(model.hooked_modules(()) for model in self.models)

    def check(self, contexts: Contexts) -> None:
        """``DataError`` for tokens that a model does not know, ``ConfigError`` for documents it cannot keep apart."""
        highest = int(contexts.ids.max()) if contexts.ids.numel() else 0
        for model in self.models:
            if highest >= model.vocab_size:
                raise DataError(
                    f"the text holds token id {highest}, those of {model.name!r} are 0 to {model.vocab_size - 1}; "
                    "tokenise it with the model's own tokenizer"
                )
            if contexts.documents is not None and has_several(contexts.documents):
                model.check_separates_documents()

    def capture(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> dict[str, Tensor]:
        """The values of the sites on token ids [B, T], as {name: [B, T, width]}; ``LanguageModel.capture`` of each."""
        with contextlib.ExitStack() as stack:
            for blocks, names in self._compiled:
                stack.enter_context(blocks.active(names))
            if self._autocast is not None:
                for device in self._devices:
                    stack.enter_context(torch.autocast(device, dtype=self._autocast))
            return self._models.capture(tokens_BT, self._names, documents_BT)
