"""A cache as one ``activations.npy`` that NumPy maps, with drrik's metadata as JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from monosema.core.errors import ConfigError
from monosema.core.files import MOST_JSON_BYTES, atomic_folder, write_atomically
from monosema.core.plain import dump_json
from monosema.core.words import counted
from monosema.data.cache.drrik import ACTIVATIONS, METADATA, DrrikShards
from monosema.data.cache.drrik_metadata import OWN, DrrikSample, layer_path_of
from monosema.data.cache.folders import LocalFolder, require_room
from monosema.data.cache.manifest import CachePlan, Manifest
from monosema.data.cache.shards import ORIGIN
from monosema.data.cache.sources import ShardSource, read_whole

MOST_LISTED = 10_000
"""Rows of a cache of tokens up to which each has an entry in the metadata."""


def export_npy(source: ShardSource, out: str | os.PathLike[str]) -> None:
    """Write the rows, in their order, as ``activations.npy`` ``[n_samples, activation_dim]`` and ``metadata.json``.

    The sites of a row stand side by side. float16 and float32 stay as they are, bfloat16 and int8 become float32. The
    metadata has drrik's fields: ``config``, ``n_samples``, ``activation_dim``, ``layer_paths`` and
    ``samples_metadata``; under ``monosema``, the sites and what the cache was made from. Origins of rows are in
    ``token_ids.npy``, ``contexts.npy`` and ``positions.npy``, ``[n_samples]`` int32. A row of a cache is a token:
    ``samples_metadata`` lists it with its one token id and no text (a cache has none), and only up to ``MOST_LISTED``
    rows, beyond which such a list is far larger than those files. What drrik recorded of samples is kept as it is.

    One shard is in memory at a time. Files are written, not mapped: a full disk is an error then, not a crash. The
    folder appears whole or not at all, and ``ActivationCache`` opens it.

    Raises:
        ConfigError: ``out`` is there already; the samples of a drrik folder are more than fit into a JSON file.
        FileError: the disk has not enough room, or the cache is damaged.
    """
    manifest, target = source.manifest, Path(out)
    plan, n_rows = manifest.plan, manifest.n_rows
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another folder")
    dtype = torch.float16 if plan.dtype == "float16" else torch.float32
    width = sum(width for _, width in plan.shards.sites)
    require_room(LocalFolder(target), n_rows * (width * dtype.itemsize + 4 * len(ORIGIN)))
    samples = list(source.samples) if isinstance(source, DrrikShards) else []
    is_listed = not samples and n_rows <= MOST_LISTED
    with atomic_folder(target) as folder:
        with ExitStack() as files:
            numbers = {name: files.enter_context(open(folder / f"{name}.npy", "wb")) for name in ORIGIN}
            activations = files.enter_context(open(folder / ACTIVATIONS, "wb"))
            _begin(activations, torch.empty(0, dtype=dtype).numpy().dtype, (n_rows, width))
            for file in numbers.values():
                _begin(file, np.dtype(np.int32), (n_rows,))
            for record in manifest.shards:
                shard = read_whole(source, record)
                activations.write(shard.rows.to(dtype).contiguous().numpy().data)
                for name, file in numbers.items():
                    file.write(getattr(shard, name).int().contiguous().numpy().data)
                if is_listed:
                    start = len(samples)
                    ids = shard.token_ids.numpy()
                    samples += [DrrikSample(start + row, None, ids[row : row + 1]) for row in range(len(ids))]
        write_atomically(folder / METADATA, _metadata(manifest, width, samples))


def _begin(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _metadata(manifest: Manifest, width: int, samples: Sequence[DrrikSample]) -> str:
    plan = manifest.plan
    names, model = [name for name, _ in plan.shards.sites], str(_mapping(plan.stream, "model").get("name"))
    values = {
        "config": plan.stream.get("drrik") or _config(plan, manifest.n_rows),
        "n_samples": manifest.n_rows,
        "activation_dim": width,
        "layer_paths": [layer_path_of(name, model) for name in names],
        OWN: plan.plain(),
    }
    text = dump_json(values)
    size, listed = len(text.encode()) + 32, []
    for each in samples:
        ids = None if each.input_ids is None else each.input_ids.tolist()
        sample = {"sample_idx": each.sample_idx, "text": each.text, "input_ids": ids}
        listed.append(dump_json(sample))
        size += len(listed[-1].encode()) + 2
        if size > MOST_JSON_BYTES:
            raise ConfigError(
                f"the text and token ids of {counted(len(samples), 'sample')} are more than a JSON file of "
                f"{MOST_JSON_BYTES / 2**20:.0f} MiB holds; use the folder as it is, it is read without an export"
            )
    return f'{text[:-1]}, "samples_metadata": [{", ".join(listed)}]}}\n'


def _config(plan: CachePlan, n_rows: int) -> dict[str, Any]:
    """What drrik calls the options that the cache was made with; None for what was not recorded."""
    model, tokens = _mapping(plan.stream, "model"), _mapping(plan.stream, "tokens")
    options = _mapping(tokens, "options")
    layers = [re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", name) for name, _ in plan.shards.sites]
    return {
        "model": {
            "model_name": model.get("name"),
            "revision": model.get("revision"),
            "torch_dtype": model.get("dtype"),
            "trust_remote_code": False,  # consent is not passed on
        },
        "dataset": {
            "dataset_name": tokens.get("source"),
            "dataset_config": options.get("name"),
            "split": options.get("split"),
            "text_column": options.get("column"),
            "num_samples": n_rows,
            "max_length": tokens.get("context_size"),
        },
        "mlp_layers": [int(layer[1]) for layer in layers if layer],
    }


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}
