"""How much of the embedded model is left when dictionaries take the place of all its MLPs at once.

    python benchmarks/replacement.py --tokens 2000000 --write-docs

Trains a transcoder and a skip transcoder for each MLP (one stream, one pass) and one cross-layer transcoder, all with
the same latents a layer and the same active latents a token and layer, and prints ``monosema.evaluate_replacement`` of
each on held-out text. Every run is resumed where its folder in ``--out`` has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from report import command, markdown_table, n_processors, processor, refresh_block

import monosema as ms
from monosema.coders import Dictionary

HEADER = (
    "in place of the MLPs",
    "parameters",
    "score",
    "CE",
    "KL",
    "L0",
    "L0 a layer",
    "FVE a layer",
    "FVE one by one",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all dictionaries have in common."""

    n_tokens: int
    """Training tokens."""
    d_sae: int
    """Latents a layer."""
    k: int
    """Active latents a token and layer, on average."""
    batch_size: int
    """Rows in a step."""
    n_evaluated: int
    """Held-out tokens."""
    seed: int
    """Of text order, rows and weights."""

    @property
    def activation(self) -> ms.BatchTopK:
        return ms.BatchTopK(k=self.k)

    @property
    def config(self) -> ms.TrainingConfig:
        return ms.TrainingConfig(tokens=self.n_tokens, seed=self.seed, checkpoint_every=500, keep_checkpoints=1)


def sites(model: ms.LanguageModel) -> tuple[list[str], list[str]]:
    """What every MLP reads, and what it writes."""
    layers = range(model.n_layers)
    return [f"blocks.{layer}.mlp.hook_in" for layer in layers], [f"blocks.{layer}.hook_mlp_out" for layer in layers]


def stream_of(model: ms.LanguageModel, tokens: ms.Tokens, setting: Setting) -> ms.ActivationStream:
    """Inputs and outputs of all MLPs side by side."""
    reads, writes = sites(model)
    return ms.ActivationStream(
        model, tokens, reads, targets=writes, batch_size=setting.batch_size, seed=setting.seed, epochs=1000
    )


def train_transcoders(
    model: ms.LanguageModel, tokens: ms.Tokens, setting: Setting, out: Path
) -> dict[str, list[Dictionary]]:
    """A transcoder for each MLP, without and with a skip connection, from one pass."""
    stream = stream_of(model, tokens, setting)
    widths = dict(stream.layout.reads + stream.layout.writes)
    coders: dict[str, Dictionary] = {}
    for skip in (False, True):
        for layer, (read, written) in enumerate(zip(*sites(model), strict=True)):
            coders[f"{'skip' if skip else 'plain'}_{layer}"] = ms.Transcoder(
                widths[read],
                widths[written],
                setting.d_sae,
                activation=setting.activation,
                skip=skip,
                hook_name=read,
                hook_name_out=written,
                seed=setting.seed + layer,
            )
    results = ms.train(coders, stream, setting.config, out=out, evaluation=False)
    kinds = {"transcoders": "plain", "skip transcoders": "skip"}
    return {
        label: [results[f"{kind}_{layer}"].coder for layer in range(model.n_layers)] for label, kind in kinds.items()
    }


def train_cross_layer(model: ms.LanguageModel, tokens: ms.Tokens, setting: Setting, out: Path) -> Dictionary:
    """One cross-layer transcoder of all MLPs."""
    stream = stream_of(model, tokens, setting)
    reads, writes = ([width for _, width in each] for each in (stream.layout.reads, stream.layout.writes))
    coder = ms.CLT(reads, writes, setting.d_sae, activation=setting.activation, seed=setting.seed)
    return ms.train(coder, stream, setting.config, out=out, evaluation=False).coder


def row(
    label: str, coders: Sequence[Dictionary], report: ms.ReplacementReport, one_by_one: Sequence[float]
) -> list[str]:
    """A row of the table."""

    def each(values: Sequence[float], digits: int) -> str:
        return " ".join(f"{value:.{digits}f}" for value in values)

    n_parameters = sum(parameter.numel() for coder in coders for parameter in coder.parameters())
    return [
        label,
        f"{n_parameters / 1e6:.1f} M",
        f"{report.replacement_score:.4f}",
        f"{report.ce_replaced:.4f}",
        f"{report.kl:.4f}",
        f"{report.l0:.1f}",
        each([layer.l0 for layer in report.layers], 1),
        each([layer.fve for layer in report.layers], 3),
        each(one_by_one, 3),
    ]


def fve_one_by_one(
    coders: Sequence[Dictionary], model: ms.LanguageModel, tokens: ms.Tokens, n_tokens: int
) -> list[float]:
    """FVE of each site written where the coders read the clean run."""
    values: list[float] = []
    for coder in coders:
        report = ms.evaluate(coder, model, tokens, n_tokens=n_tokens, losses=False)
        values += [report.fve] if report.fve_per_site is None else report.fve_per_site.values()
    return values


def measure(model: ms.LanguageModel, tokens: ms.Tokens, setting: Setting, out: Path) -> str:
    """Train what is missing in ``out``, evaluate, and put it in words."""
    rows: list[list[str]] = []
    trained: Mapping[str, Sequence[Dictionary]] = {
        **train_transcoders(model, tokens, setting, out / "transcoders"),
        "cross-layer transcoder": [train_cross_layer(model, tokens, setting, out / "cross_layer")],
    }
    for label, coders in trained.items():
        report = ms.evaluate_replacement(coders, model, tokens, n_tokens=setting.n_evaluated)
        rows.append(row(label, coders, report, fve_one_by_one(coders, model, tokens, setting.n_evaluated)))
    rows.insert(0, ["the MLPs themselves", "", "1", f"{report.ce_clean:.4f}", "0", "", "", "", ""])
    rows.append(["zero", "", "0", f"{report.ce_zero:.4f}", f"{report.kl_zero:.4f}", "", "", "", ""])
    words = (
        f"{model.n_layers} MLPs of {model.name}; {setting.d_sae:,} latents a layer, BatchTopK with k = {setting.k}, "
        f"{setting.n_tokens:,} training tokens of the standard library's text, batches of {setting.batch_size:,}, seed "
        f"{setting.seed}; {report.n_tokens:,} held-out tokens (overlap with training: {report.overlap}). "
        f"{processor()}, {torch.get_num_threads()} threads on {n_processors()} processors, torch {torch.__version__}."
    )
    return f"{markdown_table(HEADER, rows)}\n\n{words}\n\n    {command()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="training tokens of each dictionary")
    parser.add_argument("--latents", type=int, default=4096, help="latents a layer")
    parser.add_argument("--k", type=int, default=32, help="active latents a token and layer")
    parser.add_argument("--batch-size", type=int, default=2048, help="rows in a step")
    parser.add_argument("--evaluated", type=int, default=200_000, help="held-out tokens")
    parser.add_argument("--context-size", type=int, default=256, help="tokens in a context")
    parser.add_argument("--documents", type=int, help="read only so many documents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the runs here, to resume; by default they are not kept")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    setting = Setting(given.tokens, given.latents, given.k, given.batch_size, given.evaluated, given.seed)
    model = ms.load_model("builtin")
    tokens = ms.load_tokens("stdlib", model.tokenizer, given.context_size, max_documents=given.documents)
    with tempfile.TemporaryDirectory() as scratch:
        text = measure(model, tokens, setting, given.out if given.out is not None else Path(scratch))
    print(text)
    if given.write_docs:
        refresh_block("replacement", text)


if __name__ == "__main__":
    main()
