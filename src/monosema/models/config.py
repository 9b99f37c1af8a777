"""The language model, and a tokenizer alone, as configs without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from monosema.core.errors import ConfigError
from monosema.core.foreign import are_model_kwargs, are_switches, is_name, is_placement, is_text, is_tokenizer
from monosema.core.option_fields import by_caller, from_file

if TYPE_CHECKING:
    from monosema.models.language_model import LanguageModel

IN_MEMORY = "model in memory"
"""Recorded as the source of a model that has no name to load it by again."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The language model; see ``load_model``."""

    source: str = from_file(
        "the model: a hub id or a local folder, of which weights and tokenizer are read", is_name, default="builtin"
    )
    """Hub id, local folder, or ``builtin``."""
    revision: str | None = from_file("its commit", is_text, default=None)
    """Branch, tag or commit on the hub."""
    dtype: str | None = from_file("type of its weights", is_text, default=None)
    """Type of the weights; the checkpoint's own by default."""
    device: str | None = from_file("where it goes", is_text, default=None)
    """Where the model goes; a GPU where there is one."""
    device_map: str | None = from_file("where its parts go", is_placement, default=None)
    """Placement over several devices (``auto``), in place of ``device``."""
    trust_remote_code: bool = by_caller(default=False)
    """Whether code that comes with the model may run; the command line or the environment says so, no file can."""
    tokenizer: str | None = from_file(
        "another tokenizer: a hub id or a local folder, or false for none", is_tokenizer, default=None
    )
    """Another tokenizer than the model's own."""
    model_kwargs: dict[str, Any] = from_file("MODEL_KWARGS", are_model_kwargs, default_factory=dict)
    """Further arguments of ``from_pretrained``; a file can name ``attn_implementation``, ``low_cpu_mem_usage`` and
    ``quantization_config``, the environment any."""
    forward_kwargs: dict[str, Any] = from_file(
        "numbers and switches of the forward pass", are_switches, default_factory=dict
    )
    """Arguments added to every forward pass."""
    fingerprint: str | None = from_file(
        "its weights' checksum, compared with that of the weights loaded", is_text, default=None
    )
    """That of the weights; a run records it, and one that is given is held against the weights loaded."""

    def arguments(self) -> dict[str, Any]:
        """What ``load_model`` and ``load_outline`` are called with; what is None is left out."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "fingerprint"}
        return {name: value for name, value in values.items() if value is not None}

    def build(self) -> LanguageModel:
        """``load_model`` with these options; ``fingerprint`` is not compared.

        Raises ``ConfigError`` for a model that was recorded without a name.
        """
        from monosema.models.load import load_model

        refuse_unnamed(self.source)
        return load_model(**self.arguments())


def refuse_unnamed(source: Any) -> None:
    """Raise ``ConfigError`` for what stands in a record for a model that has no name."""
    if source == IN_MEMORY:
        raise ConfigError("it was trained with a model object in memory; hand one in, or name a model")


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The tokenizer alone, as it comes with a model."""

    source: str = "builtin"
    """Hub id or local folder of the model or tokenizer, or ``builtin``."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Whether code that comes with it may run; the command line or the environment says so, no file can."""

    def build(self) -> Any:
        """``load_tokenizer`` with these options."""
        from monosema.models.load import load_tokenizer

        return load_tokenizer(self.source, revision=self.revision, trust_remote_code=self.trust_remote_code)
