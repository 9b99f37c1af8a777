"""Attributes of other libraries' classes by their names, each with what does the same here.

An attribute of these names does not exist: ``hasattr`` is false, and the ``AttributeError`` says what to use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_LOAD = "ms.load(repository or folder, name)"
_MAKE = "ms.SAE(d_in, d_sae, activation=ms.TopK(32)): the architecture is the activation"
_TRAIN = "ms.train(sae, stream, ms.TrainingConfig(...), out=folder), or `monosema train`"
_STREAM = "ms.ActivationStream(model, tokens, hook_name, batch_size=...)"
_WITH_SAES = (
    "model.edits({hook_name: sae}), a context in which the model computes with the reconstruction; ms.evaluate "
    "compares that with the model itself"
)

OF_MODULE: Mapping[str, str] = {
    "from_pretrained": _LOAD,
    "HookedTransformer": "ms.load_model(name)",
    "HookedSAETransformer": "ms.load_model(name)",
    "SAETrainingRunner": _TRAIN,
    "LanguageModelSAETrainingRunner": _TRAIN,
    "LanguageModelSAERunnerConfig": "ms.RunConfig, or ms.TrainingConfig for the training alone",
    "SAETrainer": "ms.Trainer(coder, config)",
    "trainSAE": _TRAIN,
    "ActivationsStore": _STREAM,
    "ActivationBuffer": _STREAM,
    "CacheActivationsRunner": "`monosema cache`, or monosema.data.write_cache",
    "PretokenizeRunner": "ms.pretokenize, or `monosema pretokenize`",
    "run_evals": "ms.evaluate(coder, model, tokens)",
    "AutoEncoder": _MAKE,
    "StandardSAE": _MAKE,
    "StandardTrainingSAE": _MAKE,
    "TopKSAE": _MAKE,
    "TopKTrainingSAE": _MAKE,
    "BatchTopKTrainingSAE": _MAKE,
    "JumpReLUSAE": _MAKE,
    "JumpReLUTrainingSAE": _MAKE,
    "GatedSAE": _MAKE,
    "GatedTrainingSAE": _MAKE,
    "MatryoshkaBatchTopKTrainingSAE": "ms.TrainingConfig(levels=ms.Matryoshka(...)) with ms.BatchTopK(32)",
    "SkipTranscoder": "ms.Transcoder(d_in, d_out, d_sae, skip=True)",
    "CrossCoder": "ms.Crosscoder(widths, d_sae)",
}
"""Of the module ``monosema``."""

OF_CONSTRUCTOR: Mapping[str, str] = {
    "from_pretrained": _LOAD,
    "from_pretrained_with_cfg_and_sparsity": f"{_LOAD}; its config and metadata are attributes of what that returns",
    "load_from_pretrained": _LOAD,
    "load_from_disk": _LOAD,
    "from_dict": "the constructor's own options",
}
"""Of ``ms.SAE``, ``ms.Transcoder``, ``ms.Crosscoder`` and ``ms.CLT``."""

OF_DICTIONARY: Mapping[str, str] = {
    **{name: OF_CONSTRUCTOR[name] for name in ("from_pretrained", "load_from_pretrained", "load_from_disk")},
    "cfg": "config (widths, activation, sites) and metadata (model, text, training)",
    "save_model": "ms.save(coder, folder)",
    "save_pretrained": "ms.save(coder, folder)",
    "save_inference_model": "ms.save(coder, folder)",
    "run_with_cache": "encode(x) for the latents and decode(latents) for the reconstruction",
    "run_with_hooks": "decode(latents), with latents = encode(x) changed in between",
    "encode_with_hidden_pre": "encode(x), and pre_activations(x) for the values before the activation",
    "hook_sae_input": "the x that encode(x) is given",
    "hook_sae_acts_pre": "pre_activations(x)",
    "hook_sae_acts_post": "encode(x)",
    "hook_sae_recons": "decode(encode(x), x)",
    "hook_sae_error": "x - coder(x)",
    "threshold": "activation.threshold",
    "k": "config.activation.k",
    "encoder": "W_enc [d_in, d_sae] and b_enc",
    "decoder": "W_dec [d_sae, d_out] and b_dec",
    "activation_dim": "d_in",
    "dict_size": "d_sae",
}
"""Of a dictionary."""

OF_MODEL: Mapping[str, str] = {
    "cfg": "hf.config",
    "from_pretrained": "ms.load_model(name)",
    "run_with_cache": "capture(tokens, hook_names), or logits_and_sites(tokens, hook_names) for the logits as well",
    "run_with_hooks": "edits({hook_name: function}), a context",
    "hooks": "edits({hook_name: function}), a context",
    "add_hook": "edits({hook_name: function}), a context",
    "run_with_saes": _WITH_SAES,
    "run_with_cache_with_saes": _WITH_SAES,
    "run_with_hooks_with_saes": _WITH_SAES,
    "saes": _WITH_SAES,
    "add_sae": _WITH_SAES,
    "reset_saes": "nothing: dictionaries are in a model only inside model.edits(...)",
    "hook_dict": "hook_names",
    "to_tokens": "tokenizer(text, return_tensors='pt').input_ids",
    "to_string": "tokenizer.decode(ids)",
    "to_str_tokens": "tokenizer.convert_ids_to_tokens(ids)",
    "generate": "hf.generate(ids); inside model.edits(...) it is edited too",
    "trace": "capture(tokens, hook_names), and edits({hook_name: function})",
}
"""Of a language model."""


def attribute_hint(owner: str, name: str, table: Mapping[str, str]) -> str | None:
    """What to say of an attribute of another library; None for a name that is not in ``table``."""
    return f"{owner} has no attribute {name!r}; here it is {table[name]}" if name in table else None


def hints_attributes(table: Mapping[str, str]) -> Callable[[C], C]:
    """Make the ``AttributeError`` for a name in ``table``, on objects of the class decorated, say what to use here."""

    def decorate(cls: C) -> C:
        inherited: Callable[[Any, str], Any] = getattr(cls, "__getattr__", _unknown)

        def get(self: Any, name: str) -> Any:
            try:
                return inherited(self, name)
            except AttributeError as error:
                hint = attribute_hint(cls.__name__, name, table)
                if hint is None:
                    raise
                raise AttributeError(hint, name=name, obj=self) from error

        cls.__getattr__ = get  # type: ignore[attr-defined]
        return cls

    return decorate


def constructor(function: F) -> F:
    """The same for a function that makes dictionaries and stands for other libraries' class (``ms.SAE``)."""
    return cast(F, _Constructor(function))


class _Constructor:
    """A function whose missing attributes are explained."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__dict__["__wrapped__"](*arguments, **options)

    def __getattr__(self, name: str) -> NoReturn:
        called = self.__dict__.get("__name__", "function")
        hint = attribute_hint(f"ms.{called}", name, OF_CONSTRUCTOR)
        raise AttributeError(hint or f"{called} has no attribute {name!r}")

    def __reduce__(self) -> str:
        return str(self.__dict__["__qualname__"])  # pickled by its name, as functions are

    def __repr__(self) -> str:
        return f"<function {self.__dict__['__module__']}.{self.__dict__['__qualname__']}>"


def _unknown(owner: Any, name: str) -> NoReturn:
    raise AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}", name=name, obj=owner)
