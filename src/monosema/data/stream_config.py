"""The stream of activations as a config without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from monosema.core.compiling import CompileMode
from monosema.core.foreign import are_texts, is_number_or_null, is_text, is_whole
from monosema.core.option_fields import by_caller, from_file, recorded

if TYPE_CHECKING:
    from monosema.data.stream import ActivationStream
    from monosema.data.tokens import Tokens
    from monosema.models.language_model import LanguageModel

Autocast = Literal["bfloat16", "float16"]
"""Types of a float32 model's products."""

_ALWAYS_RECORDED = (
    "batch_size",
    "seed",
    "epochs",
    "chunk_contexts",
    "model_batch_size",
    "dtype",
    "autocast",
    "compile",
)
_RECORDED_APART = ("hook_names", "targets", "outlier_norm_multiple")
"""The layout of the rows records the sites, and the filter of outliers its multiple with the medians."""
_CHANGES_NO_BATCH = ("epochs", "chunk_contexts")
"""How far the stream goes, and what its state has by itself."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The activations; see ``ActivationStream``."""

    hook_names: tuple[str, ...] = from_file("sites read", are_texts, default=("blocks.2.hook_resid_post",))
    """Sites read; with ``other_models``, each behind its model's name (``base:blocks.2.hook_resid_post``)."""
    targets: tuple[str, ...] | None = from_file("sites written", are_texts, default=None)
    """Sites written, where they are others (a transcoder)."""
    batch_size: int = from_file("rows in a step", is_whole, default=2048)
    """Rows in a training step."""
    seed: int = from_file("order of the rows", is_whole, default=0)
    """Seed of the order of contexts and rows."""
    epochs: int = from_file("how often the text is read", is_whole, default=1)
    """How often the text may be read."""
    chunk_contexts: int | None = from_file("contexts in a chunk", is_whole, default=None)
    """Contexts in a shuffled chunk."""
    chunk_bytes: int | None = None
    """Instead, how large a chunk of activations may be."""
    model_batch_size: int = from_file("contexts in a forward pass", is_whole, default=32)
    """Contexts in one forward pass."""
    dtype: str | None = from_file("type of the rows", is_text, default=None)
    """Type of the activations; the model's own by default."""
    autocast: Autocast | None = from_file("type of the model's products", is_text, default=None)
    """Type of a float32 model's products while activations are made."""
    compile: CompileMode | None = by_caller(default=None)  # it starts a compiler
    """Mode of ``torch.compile`` for the model's blocks meanwhile; ``reduce-overhead`` is refused."""
    prefetch: bool | None = None
    """Whether the next chunk is harvested while one is trained on, which takes the memory of a second chunk; by default
    on GPUs, without ``compile``."""
    outlier_norm_multiple: float | None = from_file(
        "which rows are left out for their norm; null for none", is_number_or_null, default=10.0
    )
    """A row whose norm at a site exceeds so many times the median there is left out; null leaves no row out."""

    def build(self, model: LanguageModel | Mapping[str, LanguageModel], tokens: Tokens) -> ActivationStream:
        """An ``ActivationStream`` with these options."""
        from monosema.data.stream import ActivationStream

        return ActivationStream(model, tokens, **{each.name: getattr(self, each.name) for each in fields(self)})

    def record(self) -> dict[str, Any]:
        """What is recorded of them, but for the sites and outliers; JSON-able."""
        return recorded(self, _ALWAYS_RECORDED, _RECORDED_APART)

    def identity(self) -> dict[str, Any]:
        """The part of ``record`` that decides the rows of a batch: a state belongs to streams with the same."""
        return {name: value for name, value in self.record().items() if name not in _CHANGES_NO_BATCH}
