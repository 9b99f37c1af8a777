"""What stands beside drrik's rows: its options, the layers it read, and the text and token ids of every sample."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from monosema.core.errors import FileError, first_line
from monosema.core.plain import is_same
from monosema.core.words import counted
from monosema.data.cache.manifest import CachePlan
from monosema.data.cache.shards import ORIGIN

OWN = "monosema"
"""Key of ours in the metadata: a cache's plan, with its sites and what they were made from."""
_MLP = re.compile(r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\[(\d{1,6})\]\.(?:mlp|ffn)")
_PATH = re.compile(r"[\w.:]+(?:\[\d+\][\w.:]*)*")
_OURS = ("blocks.", "hook_", "ln_final.")
_CHANGED_BEHIND_MLP = re.compile(r"gemma-?[23](?!b)|olmo-?[23](?!b)|exaone-?4|glm-?4|granite|minicpm", re.IGNORECASE)
"""Models that norm or scale what an MLP gives before it is added to the stream, which ``hook_mlp_out`` is after."""
_MOST_PLAIN, _MOST_DEPTH, _MOST_TEXT = 10_000, 8, 10_000


@dataclass(frozen=True)
class DrrikSample:
    """What a row is of."""

    sample_idx: int
    """Its number in the dataset."""
    text: str | None
    """The first 200 characters, where they are known."""
    input_ids: np.ndarray | None
    """[n_tokens] all its token ids, padding among them, where they are known; the row is of the last."""

    @property
    def n_tokens(self) -> int:
        return 0 if self.input_ids is None else len(self.input_ids)

    @property
    def last_id(self) -> int:
        """Of the token that the row is of; -1 where it is not known."""
        return -1 if self.input_ids is None or not len(self.input_ids) else int(self.input_ids[-1])


@dataclass(frozen=True)
class DrrikMetadata:
    """The metadata of a folder, as a cache has it."""

    reads: tuple[tuple[str, int], ...]
    """(hook name, width) of each layer, side by side in a row."""
    writes: tuple[tuple[str, int], ...]
    """Of the sites written; what is read, but for a cache of ours made for a transcoder."""
    stream: Mapping[str, Any]
    """``model``, and under ``drrik`` all its options; of an exported cache, what that recorded."""
    samples: tuple[DrrikSample, ...]
    """One for each row, or none."""

    def origin(self) -> dict[str, np.ndarray]:
        """``token_ids``, ``contexts`` (the sample's number) and ``positions`` ``[n]`` int32, by the samples."""
        rows = [(each.last_id, each.sample_idx, each.n_tokens - 1) for each in self.samples]
        return dict(zip(ORIGIN, np.array(rows, dtype=np.int32).reshape(-1, 3).T, strict=True))


def parse_metadata(values: Any, shape: tuple[int, int], where: str) -> DrrikMetadata:
    """From the mapping beside ``[n, width]`` activations; ``FileError`` where it is damaged or of other ones.

    The widths of a row's layers are equal: drrik's ``activation_dim`` is that of all of them together.
    """
    try:
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
        n, width = shape
        if not is_same(_whole(values.get("n_samples", n)), n):
            raise ValueError(
                f"n_samples is {_shown(values['n_samples'])}, the activations are of {counted(n, 'sample')}"
            )
        listed = values.get("samples_metadata")
        samples = _samples(() if listed is None else listed, n)
        if OWN in values:
            plan = CachePlan.parse(values[OWN], where)
            if sum(width for _, width in plan.shards.sites) != width:
                raise ValueError(f"its sites are {plan.shards.sites}, the activations {width} wide")
            return DrrikMetadata(plan.reads, plan.writes, plan.stream, samples)
        given = values.get("config")
        config = plain({} if given is None else given)
        model = _model(config)
        names = _hook_names(values.get("layer_paths"), str(model.get("name")))
        each = width // len(names)
        recorded = _whole(values.get("activation_dim", width))
        if width % len(names) or type(recorded) is not int or recorded not in (width, each):
            raise ValueError(
                f"activation_dim is {_shown(values.get('activation_dim'))} for {counted(len(names), 'layer')}, the "
                "activations "
                f"are {width} wide"
            )
        sites = tuple((name, each) for name in names)
        return DrrikMetadata(sites, sites, {**({"model": model} if model else {}), "drrik": config}, samples)
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{where} does not describe the activations beside it: {first_line(error)}") from error


def hook_name_of(layer_path: str, model: str) -> str:
    """``blocks.3.hook_mlp_out`` for ``model.layers[3].mlp``; else the module's output, ``model.layers.3.mlp:out``.

    The second too where ``model`` norms or scales an MLP's output before it adds it; names of ours stay as they are.
    """
    match = _MLP.fullmatch(layer_path)
    if match and not _CHANGED_BEHIND_MLP.search(model):
        return f"blocks.{int(match[1])}.hook_mlp_out"
    if layer_path.startswith(_OURS) or ":" in layer_path:
        return layer_path
    return re.sub(r"\[(\d+)\]", r".\1", layer_path) + ":out"


def layer_path_of(hook_name: str, model: str) -> str:
    """The inverse of ``hook_name_of``; sites that are no MLP's output keep their names."""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", hook_name)
    return f"model.layers[{match[1]}].mlp" if match and not _CHANGED_BEHIND_MLP.search(model) else hook_name


def plain(value: Any) -> Any:
    """``value`` as JSON has it; what JSON has not is left as text. ``ValueError`` where it is too much for options."""
    left = [_MOST_PLAIN]

    def convert(each: Any, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > _MOST_DEPTH:
            raise ValueError("its config is no mapping of options")
        if isinstance(each, dict):
            return {
                convert(key, depth) if isinstance(key, str) else _shown(key): convert(inner, depth + 1)
                for key, inner in each.items()
            }
        if isinstance(each, list | tuple | set | frozenset):
            return [convert(inner, depth + 1) for inner in each]
        if isinstance(each, np.generic):
            each = each.item()
        is_number = isinstance(each, int) and each.bit_length() <= 63
        if each is None or is_number or (isinstance(each, float) and math.isfinite(each)):
            return each
        if isinstance(each, str) and len(each) > _MOST_TEXT:
            raise ValueError("its config holds a text too long for an option")
        return _text(str(each)) if isinstance(each, str | torch.dtype | torch.device) else _shown(each)

    converted = convert(value, 0)
    if not isinstance(converted, dict):
        raise ValueError("its config is no mapping of options")
    return converted


def _model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the model, as a stream's is."""
    options = config.get("model")
    if not isinstance(options, dict) or not isinstance(name := options.get("model_name"), str):
        return {}
    revision = options.get("revision")
    return {"name": name, "source": name, **({"revision": revision} if isinstance(revision, str) else {})}


def _hook_names(paths: Any, model: str) -> list[str]:
    if not isinstance(paths, list | tuple) or not paths:
        raise ValueError("it names no layers (layer_paths)")
    for path in paths:
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise ValueError(f"{_shown(path)} is no path of a layer")
    names = [hook_name_of(path, model) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"it names a layer twice: {', '.join(names)[:200]}")
    return names


def _samples(values: Any, n: int) -> tuple[DrrikSample, ...]:
    if not isinstance(values, Sequence) or len(values) not in (0, n):
        raise ValueError(f"samples_metadata is not one mapping for each of {counted(n, 'sample')}")
    known: dict[int, Any] = {}

    def once(value: Any, convert: Callable[[Any], Any]) -> Any:
        """What stands in many samples of a pickle is converted once, and takes memory once."""
        if id(value) not in known:
            known[id(value)] = convert(value)
        return known[id(value)]

    return tuple(_sample(each, number, once) for number, each in enumerate(values))


def _sample(values: Any, number: int, once: Callable[[Any, Callable[[Any], Any]], Any]) -> DrrikSample:
    if not isinstance(values, dict):
        raise ValueError(f"sample {number} is no mapping")
    sample_idx, text, ids = values.get("sample_idx", number), values.get("text"), values.get("input_ids")
    sample_idx = _whole(sample_idx)
    if type(sample_idx) is not int or not -1 <= sample_idx < 2**31:
        raise ValueError(f"sample {number} has the number {_shown(sample_idx)}")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the text of sample {number} is none")
    found = None if ids is None else once(ids, _token_ids)
    if ids is not None and found is None:
        raise ValueError(f"the input_ids of sample {number} are no list of token ids")
    return DrrikSample(int(sample_idx), None if text is None else once(text, _text), found)


def _whole(value: Any) -> Any:
    """A NumPy integer, as pickles hold, as Python's; anything else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def _token_ids(values: Any) -> np.ndarray | None:
    """``values`` as [n_tokens] integers; None where they are no such list."""
    if isinstance(values, list | tuple) and all(type(each) is int for each in values):
        values = np.array(values, dtype=np.int64)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
        return None
    return None if len(values) and abs(int(values[-1])) >= 2**31 else values


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    """A value of any size or kind, in a message."""
    return repr(value)[:100] if isinstance(value, str | int | float | type(None)) else f"<{type(value).__name__}>"
