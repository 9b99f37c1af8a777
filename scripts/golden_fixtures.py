"""Write the saved folders that every later version must open: dictionaries, runs, caches, tokens, features, reports.

    python scripts/golden_fixtures.py OUT    into an empty folder

``tests/golden/fixtures`` holds what one version wrote. It is not written again: folders of a later version go beside
it. ``expected.json`` holds numbers that reading them must give. Model paths are recorded as they are, so OUT should be
a path that tells nothing about a machine, such as ``/fixtures``.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import golden
import torch
from torch import Tensor

import monosema as ms
from monosema.core.files import write_json
from monosema.data.cache import write_cache
from monosema.training import Trainer

D, F = 16, 24
SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
READS = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in")
WRITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")


def dictionaries() -> dict[str, Any]:
    """Dictionaries of every layout, by the name of their folder."""
    fixed: dict[str, Any] = {"inference": "topk", "weight_by_decoder_norm": True, "threshold_rate": 0.05}
    batch = ms.BatchTopK(k=3.5, inference="threshold", weight_by_decoder_norm=True, threshold_rate=0.05)
    topk, abstopk = ms.TopK(k=4, **fixed), ms.AbsTopK(k=4, **fixed)
    jump = ms.JumpReLU(init_threshold=0.3, bandwidth=0.5, kernel="rectangle", ste_to_input=True)
    start: dict[str, Any] = {"decoder_init": "random", "decoder_init_norm": 0.5, "seed": 1, "dtype": "float32"}
    own: dict[str, Any] = {"encoder_init": "independent", **start}
    made: dict[str, Any] = {
        "sae_relu": ms.SAE(D, F, activation=ms.ReLU(), b_dec="input_and_output", **own),
        "sae_relu_layer_norm": ms.SAE(D, F, activation=ms.ReLU(), b_dec="output", token_scaling="layer_norm", **own),
        "sae_gated": ms.SAE(D, F, activation=ms.Gated(), b_dec="input_and_output", **own),
        "sae_jumprelu": ms.SAE(D, F, activation=jump, b_dec="input_and_output", **own),
        "sae_topk": ms.SAE(D, F, activation=topk, b_dec="input_and_output", **own),
        "sae_batchtopk": ms.SAE(D, F, activation=batch, b_dec="input_and_output", **own),
        "sae_abstopk": ms.SAE(D, F, activation=abstopk, b_dec="input_and_output", **own),
        "sae_tanhrelu": ms.SAE(D, F, activation=ms.TanhReLU(), b_dec="none", **own),
        "transcoder_jumprelu": ms.Transcoder(D, 12, F, activation=jump, b_dec="output", **own),
        "skip_transcoder_relu": ms.Transcoder(D, D, F, activation=ms.ReLU(), b_dec="output", skip=True, **own),
        "transcoder_topk_two_biases": ms.Transcoder(D, D, F, activation=topk, b_dec="separate", **own),
        "crosscoder_batchtopk_causal": ms.Crosscoder((D, 12), F, activation=batch, causal=True, **own),
        "crosscoder_relu": ms.Crosscoder((D, D), F, activation=ms.ReLU(), **own),
    }
    for tied in ("none", "per_source", "per_target"):
        made[f"clt_topk_{tied}"] = ms.CLT((D, D), (D, D), 12, activation=topk, tied=tied, seed=1, dtype="float32")
    for coder in made.values():
        set_values_(coder)
    return made


@torch.no_grad()
def set_values_(coder: Any) -> None:
    """Biases and thresholds that are not zero, in place."""
    golden.set_starting_weights_(coder)
    for number, (name, parameter) in enumerate(sorted(coder.named_parameters())):
        if parameter.ndim == 1 or not bool(parameter.any()):
            parameter.copy_(0.3 * uniform(*parameter.shape, seed=number) + (0.4 if "threshold" in name else 0.0))
    for part in coder.parts:
        if "BatchTopK" in type(part.coder.activation).__name__:
            part.coder.activation.set_threshold(0.4)


def uniform(*shape: int, seed: int) -> Tensor:
    """Numbers between -1 and 1 that every processor makes alike."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def rows_for(coder: Any) -> Tensor:
    """The rows ``[6, d_in]`` that recorded values are of."""
    return (2 * uniform(6, coder.d_in, seed=99)).to(coder.dtype)


@torch.no_grad()
def values_of(coder: Any) -> dict[str, Any]:
    """What a dictionary computes, in numbers."""
    x = rows_for(coder)
    latents = coder.encode(x)
    decoded = coder.decode(latents, x).double()
    return {
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "d_out": coder.d_out,
        "hook_name": coder.hook_name,
        "hook_name_out": coder.hook_name_out,
        "activation": type(coder.config.activation).__name__,
        "active": (latents != 0).sum(1).tolist(),
        "latents": latents.double().abs().sum(1).tolist(),
        "decoded_first": decoded[0].tolist(),
        "decoded_sums": decoded.sum(1).tolist(),
        "decoded_magnitudes": decoded.abs().sum(1).tolist(),
    }


def training(n_steps: int, **changes: Any) -> ms.TrainingConfig:
    """A config for runs in batches of 32 rows."""
    options: dict[str, Any] = {
        "tokens": n_steps * 32,
        "lr": 0.01,
        "beta2": 0.95,
        "log_every": 2,
        "checkpoint_every": 4,
        "keep_checkpoints": 1,
        "revive": ms.AuxK(coefficient=1.0, k=4, dead_after_tokens=128, straight_through=True, normalised=False),
        "background_checkpoints": False,
    }
    return ms.TrainingConfig(**{**options, **changes})


def fresh(kind: str = "sae") -> Any:
    """A dictionary to train, with starting weights that every processor makes alike."""
    topk = ms.TopK(k=3, inference="topk", weight_by_decoder_norm=True, threshold_rate=0.05)
    coder = {
        "sae": lambda: ms.SAE(D, F, activation=topk, seed=2, dtype="float64"),
        "transcoder": lambda: ms.Transcoder(D, D, F, activation=topk, seed=2, dtype="float64"),
        "crosscoder": lambda: ms.Crosscoder((D, D), F, activation=topk, seed=2, dtype="float64"),
    }[kind]()
    golden.set_starting_weights_(coder)
    return coder


EVALUATION = ms.EvaluationOptions(n_tokens=240, n_loss_tokens=240, ablation="both")
LOADING: Mapping[str, Any] = {"context_size": 24, "heldout_fraction": 0.2}
STREAM: Mapping[str, Any] = {"seed": 3, "chunk_contexts": 64, "model_batch_size": 16, "dtype": "float64"}


def open_cache(folder: str = "cache", **options: Any) -> ms.ActivationCache:
    """The cache of the two sites, as runs read it."""
    return ms.ActivationCache(
        folder, batch_size=32, epochs=4, seed=4, validation_fraction=0.25, prefetch=False, **options
    )


def stop_at(step: int) -> Any:
    """A callback that ends a run as a signal would."""

    def on_step(trainer: Trainer) -> None:
        if trainer.step_number == step:
            raise ms.RunInterrupted("stopped for a fixture")

    return on_step


def write(out: Path) -> None:
    """Everything, into the folder ``out``, which is the working directory meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise SystemExit(f"{out} is not empty; choose a new folder")
    for name in ("model", "corpus.txt"):
        source = golden.GOLDEN / "fixtures" / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, out / name)
    os.chdir(out)
    expected: dict[str, Any] = {"environment": golden.environment(), "dictionaries": {}}
    for name, coder in dictionaries().items():
        ms.save(coder, Path("dictionaries", name))
        expected["dictionaries"][name] = values_of(ms.load(Path("dictionaries", name)))
    model = ms.load_model("model", dtype="float64", device="cpu")
    tokens = ms.load_tokens("corpus.txt", model.tokenizer, **LOADING)
    ms.pretokenize("corpus.txt", model.tokenizer, out="tokens", progress=False, **LOADING)
    expected["tokens"] = {"train": tokens.train.fingerprint, "heldout": tokens.heldout.fingerprint}
    stream = ms.ActivationStream(model, tokens, SITES, 32, **STREAM)
    dtypes: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32", "bfloat16", "int8")
    for dtype in dtypes:
        folder = "cache" if dtype == "float32" else f"cache_{dtype}"
        write_cache(stream, folder, tokens=384, dtype=dtype, shard_bytes=12_000)
        rows = next(iter(open_cache(folder))).double()
        expected[folder] = {"n": len(rows), "sums": rows.sum(1).tolist(), "magnitudes": rows.abs().sum(1).tolist()}
    one = ms.ActivationStream(model, tokens, SITES[1], 32, **STREAM)
    result = ms.train(fresh(), one, training(12), out="run", evaluation=EVALUATION, progress=False)
    assert result.report is not None
    expected["run"] = {**values_of(ms.load("run")), "report": figures(result.report.to_dict())}
    whole = ms.train(
        fresh("crosscoder"), open_cache(), training(12), out="whole", evaluation=EVALUATION, progress=False
    )
    try:
        ms.train(
            fresh("crosscoder"),
            open_cache(),
            training(12),
            out="run_stopped",
            evaluation=EVALUATION,
            progress=False,
            on_step=stop_at(6),
        )
    except ms.RunInterrupted:
        expected["run_stopped"] = {"step": 4, "loss": whole.metrics["loss"], **values_of(whole.coder)}
    shutil.rmtree("whole")
    both = {name: (fresh(), training(8, lr=lr)) for name, lr in (("slow", 0.003), ("fast", 0.02))}
    sweep = ms.train(both, open_cache(hook_names=SITES[:1]), out="sweep", evaluation=EVALUATION, progress=False)
    expected["sweep"] = {name: values_of(each.coder) for name, each in sweep.items()}
    coder = ms.load("run")
    store = ms.collect_features(coder, model, tokens, n_tokens=480, contexts_per_latent=2, n_logits=3, progress=False)
    store.save("features")
    expected["features"] = {"n_fired": len(store), "maxima": store.numbers.maximum.double().tolist()}
    reports(model, tokens)
    write_json("expected.json", expected)


def reports(model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    """Reports of their own kind, each in one file."""
    Path("reports").mkdir()
    crosscoder = dictionaries()["crosscoder_relu"]
    crosscoder.bind("+".join(SITES), "+".join(SITES), {})
    ms.evaluate_crosscoder(crosscoder, model, tokens, n_tokens=240, progress=False).save("reports/crosscoder.json")


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report."""
    return {name: value for name, value in report.items() if type(value) in (int, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    torch.set_num_threads(1)
    write(parser.parse_args().out.absolute())


if __name__ == "__main__":
    main()
