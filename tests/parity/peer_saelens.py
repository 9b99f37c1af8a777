"""sae-lens 6.54.12: opens folders, makes and saves SAEs. Run by ``test_saelens.py`` in sae-lens' own environment."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import sae_lens
import torch
from peer_saelens_cache import read_cache, write_cache
from peer_saelens_training import fit, lr_schedule, train, transcode
from peer_serve import serve
from sae_lens import SAE, ActivationsStore, PretokenizeRunner, PretokenizeRunnerConfig, TrainingSAE
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file


def version() -> Mapping[str, Any]:
    return {"sae_lens": sae_lens.__version__, "torch": torch.__version__}


def read(folder: str, rows: str, out: str) -> Mapping[str, Any]:
    """Open ``folder`` and run it on ``rows``; activations and outputs go to ``out``."""
    sae = SAE.load_from_disk(folder)
    _run(sae, rows, out)
    fields = {f.name: getattr(sae.cfg, f.name) for f in dataclasses.fields(sae.cfg) if f.name != "metadata"}
    return {
        "class": type(sae).__name__,
        "architecture": sae.cfg.architecture(),
        "fields": fields,
        "metadata": sae.cfg.metadata.to_dict(),
    }


def read_sparsity(folder: str) -> Mapping[str, Any]:
    """What sae-lens' loader of repositories returns for ``folder``, served in place of a download."""

    def local(repo_id: str, filename: str, force_download: bool = False) -> str:
        return str(Path(folder).parent / filename)

    downloaded = pretrained_sae_loaders.hf_hub_download
    pretrained_sae_loaders.hf_hub_download = local
    try:
        sparsity = pretrained_sae_loaders.sae_lens_huggingface_loader("any/repository", Path(folder).name)[2]
    finally:
        pretrained_sae_loaders.hf_hub_download = downloaded
    return {"sparsity": None if sparsity is None else sparsity.tolist()}


def make(folder: str, rows: str, out: str, architecture: str, seed: int, options: dict[str, Any]) -> Mapping[str, Any]:
    """An SAE of ``architecture`` with random weights, saved by sae-lens; then as ``read``, without loading it."""
    sae = _random(*get_sae_class(architecture), seed, options)
    sae.save_model(folder)
    _run(sae, rows, out)
    return {}


def export(
    folder: str, rows: str, out: str, architecture: str, seed: int, options: dict[str, Any]
) -> Mapping[str, Any]:
    """A training SAE saved for inference; activations and outputs are those of the folder opened again."""
    sae: TrainingSAE[Any] = _random(*get_sae_training_class(architecture), seed, options)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.4)
    sae.save_inference_model(folder)
    _run(SAE.load_from_disk(folder), rows, out)
    return {}


def checkpoint(folder: str, architecture: str, seed: int, options: dict[str, Any]) -> Mapping[str, Any]:
    """A training SAE saved as it is, as sae-lens' checkpoints are."""
    shutil.rmtree(folder, ignore_errors=True)
    _random(*get_sae_training_class(architecture), seed, options).save_model(folder)
    return {}


def pretokenize(texts: str, tokenizer: str, folder: str, options: dict[str, Any]) -> Mapping[str, Any]:
    """sae-lens' ``PretokenizeRunner`` on a JSON-lines file, all documents in one batch."""
    datasets.config.HF_DATASETS_CACHE = f"{folder}-cache"
    config = PretokenizeRunnerConfig(
        tokenizer_name=tokenizer,
        dataset_path="json",
        data_files=[texts],
        num_proc=1,
        shuffle=False,
        pretokenize_batch_size=None,
        save_path=folder,
        **options,
    )
    PretokenizeRunner(config).run()
    rows = datasets.load_from_disk(folder)["input_ids"]
    return {
        "rows": torch.as_tensor(rows[:]).tolist(),
        "metadata": json.loads((Path(folder) / "sae_lens.json").read_text()),
    }


def read_tokens(folder: str, context_size: int, n: int) -> Mapping[str, Any]:
    """The first ``n`` contexts that sae-lens would train on where ``dataset_path`` is ``folder``."""
    datasets.config.HF_DATASETS_CACHE = f"{folder}-cache"
    store = ActivationsStore(
        model=SimpleNamespace(tokenizer=None),
        dataset=folder,
        streaming=False,
        hook_name="blocks.1.hook_resid_post",
        hook_head_index=None,
        context_size=context_size,
        d_in=16,
        n_batches_in_buffer=2,
        total_training_tokens=100,
        store_batch_size_prompts=1,
        train_batch_size_tokens=8,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    return {"rows": [row.tolist() for row in itertools.islice(store.iterable_sequences, n)]}


def _random(sae_class: Any, config_class: Any, seed: int, options: dict[str, Any]) -> Any:
    options = dict(options)
    hook_name = options.pop("hook_name", "blocks.1.hook_resid_post")
    metadata = SAEMetadata(hook_name=hook_name, model_name="tiny", context_size=64, prepend_bos=True)
    sae = sae_class(config_class(**options, metadata=metadata))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) / 3
            parameter.copy_(values.abs() if name == "threshold" else values)
    return sae.eval()


@torch.no_grad()
def _run(sae: Any, rows: str, out: str) -> None:
    x = load_file(rows)["x"]
    # clones: safetensors refuses tensors that share memory
    save_file({"activations": sae.encode(x).clone(), "output": sae(x).clone()}, out)


if __name__ == "__main__":
    commands = (version, read, read_sparsity, make, export, checkpoint, train, transcode, fit, lr_schedule)
    serve({each.__name__: each for each in (*commands, read_cache, write_cache, pretokenize, read_tokens)})
