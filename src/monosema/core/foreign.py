"""What files may decide: the fields that are used and for what, and what only the caller can say.

Nothing that is read from a file may make anything run, fetch or write. A field of a config that a recorded file may
decide says so where it is declared, with ``core/option_fields.py``'s ``from_file`` and one of the checks of this module
(``ModelOptions``, ``TokenOptions``, ``StreamOptions``, ``EvaluationOptions``). Every other field of the record that a
dictionary, a run or a cache keeps is ignored. ``FILES`` lists what is used of each kind of file. ``CALLER_ALONE`` are
consent and options that take effect when they come from a Python argument, the command line or the environment of the
process, and from no file, the caller's own (``--config``, ``.env``) included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monosema.core.errors import ConfigError
from monosema.core.logs import get_logger
from monosema.core.option_fields import Field, file_fields

logger = get_logger("monosema.core.foreign")


def is_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "it is no text"


def is_name(value: Any) -> str | None:
    """A hub id or a path on this machine."""
    if not isinstance(value, str):
        return "it is no text"
    return "it is a URL" if "://" in value or "::" in value else None


def is_tokenizer(value: Any) -> str | None:
    """The same, or false for none."""
    return None if value is False else is_name(value)


def is_source(value: Any) -> str | None:
    """Of text: a hub id, a path on this machine, or a file on the hub."""
    if isinstance(value, str) and value.startswith("hf://") and value.count("://") == 1 and "::" not in value:
        return None
    return is_name(value)


def are_sources(value: Any) -> str | None:
    return _first(map(is_source, value)) if isinstance(value, (list, tuple)) else is_source(value)


def is_mixture(value: Any) -> str | None:
    if not isinstance(value, Mapping) or not all(isinstance(part, Mapping) for part in value.values()):
        return "it is no mapping of sources by name"
    checks = {"source": is_source, "data_files": are_sources, "data_dir": is_source}
    return _first(checks[name](part[name]) for part in value.values() for name in checks if part.get(name) is not None)


def is_placement(value: Any) -> str | None:
    """One of accelerate's words, or a device for each module."""
    places = list(value.values()) if isinstance(value, Mapping) else [value]
    for each in places:
        if not isinstance(each, int) and not (isinstance(each, str) and re.fullmatch(r"[a-z_0-9]+(:\d+)?", each)):
            return "it is no placement on devices"
        if each == "disk":
            return "it writes weights to the disk"
    return None


def are_switches(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return "it is no mapping"
    plain = all(each is None or isinstance(each, (bool, int, float)) for each in value.values())
    return None if plain else "only numbers and switches are taken"


def are_model_kwargs(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return "it is no mapping"
    return _first(_model_kwarg(str(name), each) for name, each in value.items())


def _model_kwarg(name: str, value: Any) -> str | None:
    if name not in MODEL_KWARGS:
        return f"{name!r} is not among those taken from files ({', '.join(MODEL_KWARGS)})"
    reason = MODEL_KWARGS[name].refuses(value)
    return None if reason is None else f"{name}: {reason}"


def _is_own_attention(value: Any) -> str | None:
    return None if value in ATTENTION else f"only {', '.join(ATTENTION)} are known to need no further code"


def _is_bitsandbytes(value: Any) -> str | None:
    if not isinstance(value, Mapping) or value.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return "only bitsandbytes' configuration is taken"
    odd = [str(key) for key in value if not re.match(r"_?load_in_[48]bit$|bnb_4bit_|llm_int8_|quant_method$", str(key))]
    return f"{odd[0]!r} is not one of bitsandbytes' options" if odd else None


def is_whole(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) else "it is no whole number"


def is_count(value: Any) -> str | None:
    return None if value is None else is_whole(value)


def is_ablation(value: Any) -> str | None:
    return None if value in ("zero", "mean", "both") else "it is not zero, mean or both"


def is_number(value: Any) -> str | None:
    return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "it is no number"


def is_number_or_null(value: Any) -> str | None:
    return None if value is None else is_number(value)


def is_mapping(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "it is no mapping"


def are_texts(value: Any) -> str | None:
    return _first(map(is_text, value)) if isinstance(value, (list, tuple)) else is_text(value)


def are_tokens(value: Any) -> str | None:
    """True, false, or ids."""
    return _first(map(is_whole, value)) if isinstance(value, (list, tuple)) else is_switch(value)


def is_switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "it is not true or false"


def _first(reasons: Any) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


@dataclass(frozen=True)
class Consent:
    """An option that only the caller can give."""

    why: str
    """What it would do."""
    how: str
    """How the caller gives it to a command."""


ATTENTION = ("eager", "sdpa", "flex_attention")
"""Attention implementations that transformers and torch have themselves; others fetch and run compiled code."""
EXPERTS = ("eager", "batched_mm", "grouped_mm")
"""The same of mixtures of experts."""

MODEL_KWARGS: Mapping[str, Field] = {
    "attn_implementation": Field("how attention is computed", _is_own_attention),
    "low_cpu_mem_usage": Field("how weights are loaded", is_switch),
    "quantization_config": Field("the weights' type", _is_bitsandbytes),
}
"""Arguments of ``from_pretrained`` that are taken from a file."""

CALLER_ALONE: Mapping[str, Consent] = {
    "trust_remote_code": Consent(
        "it runs code that comes with a repository",
        "{flag} on the command line, or {variable}=true in the environment of the command",
    ),
    "model_kwargs": Consent(
        f"of model_kwargs a file can name {', '.join(MODEL_KWARGS)} only, with values that bring no code",
        "{variable}=... in the environment of the command",
    ),
    "token": Consent("it is a secret", "HF_TOKEN in the environment of the command or in .env"),
    "endpoint": Consent("it is where files are fetched from", "HF_ENDPOINT in the environment of the command"),
}
"""What no file can say, at any depth of it."""

SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
"""Variables beside ours that the caller's own ``.env`` may set; no other file may."""

FILES: Mapping[str, str] = {
    "manifest.json": "a cache's sites, type and shards (files of its folder, with sizes and checksums); its record of "
    "model and text is kept, and compared with a dictionary's",
    "plan.json": "the same of a cache that is being written",
    "chunk-*.json": "shards of a chunk, with sizes and checksums",
    "chunk-*.safetensors": "activations",
    "state.json": "a checkpoint's step, position and figures, and the checksums of its files; of a dataset, the files "
    "of its folder",
    "state.safetensors": "a checkpoint's tensors",
    "latest": "the name of a checkpoint beside it",
    "checksums.json": "checksums of a run's files",
    "config.yaml": "compared with the options of a resuming call; evaluation of it is used by `monosema evaluate`, and "
    "`monosema inspect` shows its model, text, sites and number of tokens",
    "run.json": "what a run ran on; compared",
    "metrics.jsonl": "logged figures",
    "failure.json": "why a run was given up; printed",
    "report.json": "figures",
    "crosscoder.json": "figures",
    "crosscoder.safetensors": "figures by latent",
    "features.json": "texts and figures of features, and what they were collected on, to be shown",
    "features.safetensors": "figures, contexts and tokens of features",
    "monosema.json": "packed tokens' plan, tokenizer and shards (files of its folder), or the record of a cache in "
    "sae-lens' layout; compared, never loaded from",
    "sae_lens.json": "context size, framing tokens and the tokenizer's name; compared",
    "dataset_dict.json": "names of the splits of a dataset",
    "dataset_info.json": "the columns of a dataset",
    "data-*.arrow": "rows of a dataset",
    "README.md": "nothing",
    ".lock": "nothing",
    "metadata.json": "drrik's sites, samples and what the activations were made from; its config is kept as it is",
    "metadata.pkl": "the same, read without running anything",
    "*.npy": "arrays of numbers",
    "*.pkl": "drrik's activations with their metadata, read without running anything",
    "*.txt": "text",
    "*.txt.gz": "text",
    "*.txt.zst": "text",
    "*.json": "text and records; with --config, options of the caller's, CALLER_ALONE excepted",
    "*.json.zst": "text and records",
    "*.jsonl": "text and records",
    "*.jsonl.gz": "text and records",
    "*.parquet": "text and records",
    "*.yaml": "with --config, options of the caller's, CALLER_ALONE excepted",
    "config.json": "a model's architecture, by transformers; its auto_map only with consent",
    "generation_config.json": "how a model generates, by transformers",
    "model.safetensors": "a model's weights",
    "tokenizer.json": "a tokenizer",
    "tokenizer_config.json": "a tokenizer's options; its auto_map only with consent",
    "special_tokens_map.json": "a tokenizer's special tokens",
    "*.py": "text; run only with consent, where a model comes with it",
    ".env": "of the current folder: options of the caller's, CALLER_ALONE excepted, and SECRETS",
}
"""What is used of each kind of file, by its name. Nothing of any of them is an output path, but for options.

The files of a dictionary are listed by its format (``formats.Format.files``)."""


def listed(part: str, config: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``record`` that files may decide of the part's ``config`` and that are not None.

    What only the caller can say is left out, and logged by name where the record says it.
    """
    fields = file_fields(config)
    for name in CALLER_ALONE:
        if name not in fields and record.get(name) not in (None, False):
            logger.info("%s.%s is recorded, which does not count: only the caller can give %s", part, name, name)
    return {name: record[name] for name in fields if record.get(name) is not None}


def refuse(part: str, config: type, recorded: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` naming the first field of the part's ``config`` whose value is not taken from a file."""
    for name, value in recorded.items():
        reason = file_fields(config)[name].refuses(value)
        if reason is not None:
            option = {"tokens.source": "text=... (--text)", "model.source": "model=... (--model)"}
            instead = option.get(f"{part}.{name}", f"{name}=... in Python")
            raise ConfigError(
                f"the record of the dictionary says {part}.{name} = {value!r:.200}, which is not taken from a file: "
                f"{reason}. If you want it, say so yourself with {instead}"
            )


def withhold(options: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """``options`` of a file without what only the caller can say, and that by its dotted path."""
    kept: dict[str, Any] = {}
    withheld: dict[str, Any] = {}
    for name, value in options.items():
        path = f"{prefix}{name}"
        if name == "model_kwargs" and isinstance(value, Mapping):
            kept[name] = {key: each for key, each in value.items() if _model_kwarg(str(key), each) is None}
            withheld |= {f"{path}.{key}": each for key, each in value.items() if key not in kept[name]}
        elif isinstance(value, Mapping):
            kept[name], inner = withhold(value, f"{path}.")
            withheld |= inner
        elif name in CALLER_ALONE and name != "model_kwargs" and value not in (None, False):
            withheld[path] = value
        else:
            kept[name] = value
    return kept, withheld


def refuse_withheld(withheld: Mapping[str, Any], said: Mapping[str, Any], where: object) -> None:
    """Raise ``ConfigError`` unless the caller has ``said`` what the file ``where`` says: consent is never a file's."""
    for path, value in withheld.items():
        *parents, last = path.split(".")
        node: Any = said
        for part in parents:
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and last in node and node[last] == value:
            continue
        consent = CALLER_ALONE[next(part for part in reversed(path.split(".")) if part in CALLER_ALONE)]
        variable, flag = f"MONOSEMA_{path.replace('.', '__').upper()}", f"--{path.replace('_', '-')}"
        raise ConfigError(
            f"{where} sets {path}, which no file can: {consent.why}. If you want it, give "
            f"{consent.how.format(flag=flag, variable=variable)}; otherwise remove it from the file"
        )
