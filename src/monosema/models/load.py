"""``load_model``: one door for hub ids, local folders, transformers models in memory, and the model in the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from monosema.core.devices import choose_device, parse_dtype
from monosema.core.errors import ConfigError, FileError, UserError, refuse_misspelling
from monosema.core.foreign import ATTENTION, EXPERTS
from monosema.core.peers import explains_options
from monosema.models.causes import CONSENT, model_said_plainly, tokenizer_said_plainly
from monosema.models.language_model import LanguageModel
from monosema.models.source import resolve_source

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).parent / "builtin"
_NO_CODE = {"trust_remote_code": False}
BUILTIN_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@explains_options
def load_model(
    source: Any,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
    tokenizer: Any | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    data_only: bool = False,
) -> LanguageModel:
    """Load a language model and find its sites.

    Args:
        source: a hub id (``"gpt2"``), a local folder, a transformers model in memory, or ``"builtin"``: the small
            decoder that comes with the package and needs no network. A local folder is recorded by its absolute path
            and never looked up on the hub.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; by default the checkpoint's own, and float32 for ``"builtin"``.
        device: where the model goes; by default CUDA where there is one, and the CPU for ``"builtin"``.
        device_map: transformers' and accelerate's placement over several devices, in place of ``device``.
        trust_remote_code: whether code that comes with the model (a hub repository or a folder) may run. A tokenizer
            named beside it never brings code.
        token: the hub's access token; never recorded.
        tokenizer: a transformers tokenizer, a hub id or a folder, in place of the model's own; False for none. With a
            model in memory this is the only way to have one.
        model_kwargs: further arguments of ``from_pretrained`` (``attn_implementation``, ``quantization_config``, …).
        forward_kwargs: arguments added to every forward pass.
        data_only: for a model that somebody else's file names: weights are read from safetensors alone, and its
            configuration cannot choose an implementation of attention or experts that is fetched from the hub.

    Returns:
        The model in eval mode, its map checked numerically on a few random tokens.

    Raises:
        ConfigError: options that contradict each other, or that a model in memory cannot take.
        FileError: the built-in model's files are missing, or ``source`` or ``tokenizer`` is a path to nothing.
        UserError: the hub id or folder cannot be loaded (the message names the cause: a wrong place, a package that is
            not installed, damaged weights, …), or the model's structure is refused.
        MemoryError, torch.OutOfMemoryError: the model does not fit into memory.
    """
    options = {"model_kwargs": dict(model_kwargs or {}), "forward_kwargs": dict(forward_kwargs or {})}
    if "token" in options["model_kwargs"]:
        raise ConfigError("model_kwargs has 'token'; pass it as load_model(..., token=...), where it is never recorded")
    if device is not None and device_map is not None:
        raise ConfigError("device and device_map are both given; device_map alone places the whole model")
    if isinstance(source, (str, Path)) and source != BUILTIN:
        refuse_misspelling("model", str(source), BUILTIN)
        source = resolve_source(source)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = resolve_source(tokenizer, "tokenizer")
    provenance: dict[str, Any] = {
        "source": source if isinstance(source, str) else "model in memory",
        "revision": revision,
        "requested_dtype": None if dtype is None else str(parse_dtype(dtype)).removeprefix("torch."),
        "device": None if device is None else str(device),
        "device_map": _plain(device_map),
        "trust_remote_code": trust_remote_code,
        "tokenizer": tokenizer if isinstance(tokenizer, (str, bool, NoneType)) else type(tokenizer).__name__,
        **{name: _plain(value) for name, value in options.items()},
    }
    if not isinstance(source, str):
        _refuse_options_for_model_in_memory(source, revision, dtype, device, device_map, trust_remote_code, options)
        loaded_tokenizer = _load_tokenizer(tokenizer, _NO_CODE) if isinstance(tokenizer, str) else tokenizer or None
        name = getattr(source.config, "name_or_path", "") or type(source).__name__
        return LanguageModel(
            source, loaded_tokenizer, name=name, forward_kwargs=options["forward_kwargs"], provenance=provenance
        )

    builtin = source == BUILTIN
    path = str(_builtin_folder()) if builtin else source
    if builtin:
        dtype = dtype or torch.float32
        device = device or (None if device_map is not None else "cpu")
    hub_options = _hub_options(builtin, revision, token, trust_remote_code)
    hf = _load_hf(path, hub_options, dtype, device_map, options["model_kwargs"], data_only)
    if device_map is None and not getattr(hf, "is_quantized", False):
        hf = hf.to(choose_device(device))
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = _load_tokenizer(tokenizer or path, hub_options if tokenizer is None else _NO_CODE)
    elif tokenizer is False:
        tokenizer = None
    return LanguageModel(
        hf,
        tokenizer,
        name=source,
        forward_kwargs=options["forward_kwargs"],
        provenance=provenance | {"commit": getattr(hf.config, "_commit_hash", None) or _cached_commit(path, revision)},
    )


def load_tokenizer(
    source: str | Path = BUILTIN, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer that ``load_model(source)`` comes with, without the model.

    Raises ``UserError`` where ``source`` (a hub id, a folder, ``"builtin"``) has none or cannot be loaded,
    ``FileError`` where it is a path to nothing.
    """
    refuse_misspelling("model", str(source), BUILTIN)
    if source == BUILTIN:
        return _load_tokenizer(str(_builtin_folder()), {"local_files_only": True})
    source = resolve_source(source, "tokenizer")
    named = {} if revision is None else {"revision": revision}
    return _load_tokenizer(source, {"trust_remote_code": trust_remote_code, **named})


def _refuse_options_for_model_in_memory(
    model: Any,
    revision: str | None,
    dtype: Any,
    device: Any,
    device_map: Any,
    trust_remote_code: bool,
    options: dict[str, dict[str, Any]],
) -> None:
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_input_embeddings"):
        raise UserError(f"expected a hub id, a folder, 'builtin' or a transformers model, got {type(model).__name__}")
    given = {
        "revision": revision,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code or None,
        "model_kwargs": options["model_kwargs"] or None,
    }
    refused = [name for name, value in given.items() if value is not None]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot be applied to a model in memory, which is never reconfigured; "
            "change the model before handing it in, for example with model.to(...)"
        )


def _cached_commit(source: str, revision: str | None) -> str | None:
    """The commit of a hub model just loaded: its files lie in the cache under ``snapshots/{commit}``."""
    if Path(source).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def _builtin_folder() -> Path:
    missing = [name for name in BUILTIN_FILES if not (BUILTIN_FOLDER / name).is_file()]
    if missing:
        raise FileError(
            f"the built-in model is incomplete: {BUILTIN_FOLDER} has no {', '.join(missing)}. It comes with the "
            "installed package; in a checkout of the repository, make it with scripts/builtin_train.py"
        )
    return BUILTIN_FOLDER


def _load_hf(
    path: str,
    hub_options: dict[str, Any],
    dtype: str | torch.dtype | None,
    device_map: Any,
    model_kwargs: dict[str, Any],
    data_only: bool,
) -> Any:
    arguments = {**hub_options, **model_kwargs, **({"use_safetensors": True} if data_only else {})}
    arguments.setdefault(_dtype_argument(), "auto" if dtype is None else parse_dtype(dtype))
    if device_map is not None:
        arguments["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
    with model_said_plainly(path, data_only):
        config = _configuration(path, hub_options)
        if data_only and not hub_options["trust_remote_code"]:
            _refuse_fetched_kernels(path, config)
        return _model_class(config).from_pretrained(path, **arguments)


def load_outline(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """The model of ``load_model`` with these options, from its configuration alone: all its weights are on meta.

    It has sites, widths and a tokenizer, and a forward pass of shapes. The architecture table's map is believed, as
    there are no numbers to check it on. Without ``dtype``, weights are of the type the configuration names, float32
    where it names none.

    Raises:
        ConfigError: the model is quantised or placed by ``device_map``: what that comes to is known once it is loaded.
        UserError: the configuration cannot be read, or its architecture is not in the table.
    """
    path = str(_builtin_folder()) if source == BUILTIN else resolve_source(source)
    kwargs = dict(model_kwargs or {})
    hub_options = _hub_options(source == BUILTIN, revision, None, trust_remote_code)
    with model_said_plainly(path):
        config = _configuration(path, hub_options)
    quantised = getattr(config, "quantization_config", None) or kwargs.get("quantization_config")
    if device_map is not None or quantised:
        what = "quantised" if quantised else "placed by device_map"
        raise ConfigError(f"{source!r} is {what}: what it takes on which device is known only once it is loaded")
    if dtype is None:
        dtype = torch.float32 if source == BUILTIN else getattr(config, _dtype_argument(), None) or torch.float32
    arguments = {key: kwargs[key] for key in ("attn_implementation",) if key in kwargs}
    arguments[_dtype_argument()] = parse_dtype(dtype)
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    with model_said_plainly(path), torch.device("meta"):
        hf = _model_class(config).from_config(config, **arguments)
    words = _load_tokenizer(
        path if tokenizer is None else resolve_source(tokenizer, "tokenizer"),
        hub_options if tokenizer is None else _NO_CODE,
    )
    return LanguageModel(
        hf, words, name="builtin" if source == BUILTIN else path, forward_kwargs=forward_kwargs, is_outline=True
    )


def model_device(source: str, device: str | None) -> torch.device:
    """Where ``load_model`` puts a model."""
    return choose_device(device or ("cpu" if source == BUILTIN else None))


def _hub_options(builtin: bool, revision: str | None, token: str | None, trust_remote_code: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if builtin:
        options["local_files_only"] = True
    named = {"revision": revision, "token": token}
    return options | {option: value for option, value in named.items() if value is not None}


def _refuse_fetched_kernels(path: str, config: Any) -> None:
    """``UserError`` where a model's configuration asks for compiled code that transformers fetches from the hub."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for part in parts:
        for name, known in (("_attn_implementation", ATTENTION), ("_experts_implementation", EXPERTS)):
            chosen = getattr(part, name, None)
            if chosen is not None and chosen not in known:
                raise UserError(
                    f"the configuration of {path!r} asks for {name.lstrip('_')} = {chosen!r:.100}, which may fetch and "
                    f"run code; a model that a file names can have {', '.join(known)}. If you trust it, "
                    f"{CONSENT}"
                )


def _configuration(path: str, hub_options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, **hub_options)


def _model_class(config: Any) -> Any:
    """The one of transformers' auto classes that makes a model of ``config``."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    architectures = " ".join(getattr(config, "architectures", None) or [])
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    remote = getattr(config, "auto_map", None) or {}
    causal = type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in remote
    # Encoders such as BERT are in both lists; their causal variant is one that says is_decoder or …LMHead.
    if masked and not getattr(config, "is_decoder", False) and "LMHead" not in architectures:
        return AutoModelForMaskedLM
    return AutoModelForCausalLM if causal else AutoModel


def _load_tokenizer(path: str, hub_options: dict[str, Any]) -> Any | None:
    from transformers import AutoTokenizer

    with tokenizer_said_plainly(path):
        return AutoTokenizer.from_pretrained(path, **hub_options)


def _dtype_argument() -> str:
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _plain(value: Any) -> Any:
    """``value`` in JSON's types: dtypes and devices by name, configurations by ``to_dict``, others by ``repr``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return repr(value)
