"""Dictionaries of a real model's activations beside SAELens' and dictionary_learning's, L0 matched.

    python benchmarks/quality.py --model MODEL --text TEXT --site blocks.2.hook_resid_post --write-docs NAME

All systems train on the same stored rows in the same order. Fraction of variance explained, dead latents and the share
of the loss recovered are measured here, by one definition, from the reconstructions that each system gives of the same
held-out tokens with the model it saves for inference.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from contest import L0_TOLERANCE, RATES, SYSTEMS, Contest, spread
from jobs import Job
from report import command, markdown_table, refresh_block
from torch import Tensor

import monosema as ms
from monosema.evaluation.predictions import CleanPredictions
from monosema.evaluation.predictor import Predictor
from monosema.evaluation.tasks import next_token_task
from monosema.metrics import ce_loss_score, fve


@dataclass(frozen=True)
class Heldout:
    """Contexts set aside, with the site's rows at the positions that count."""

    model: ms.LanguageModel
    site: str
    contexts: Tensor
    special: Tensor
    rows: Tensor

    @classmethod
    def of(cls, model: ms.LanguageModel, tokens: ms.Tokens, site: str, n_tokens: int) -> Heldout:
        n = min(len(tokens.heldout.contexts), -(-n_tokens // tokens.heldout.context_size))
        spread_evenly = torch.arange(n) * len(tokens.heldout.contexts) // n
        contexts = tokens.heldout.contexts[spread_evenly].long()
        special = tokens.heldout.special_mask(contexts)
        rows = [
            model.capture(part, [site])[site][~mask]
            for part, mask in zip(contexts.split(16), special.split(16), strict=True)
        ]
        return cls(model, site, contexts, special, torch.cat(rows).float())

    def score(self, out: Path) -> dict[str, float]:
        """FVE, dead fraction, and ce_loss_score with the reconstruction in the site's place."""
        result = np.load(out)
        reconstruction = torch.from_numpy(result["reconstruction"])
        losses, start = torch.zeros(3, dtype=torch.float64), 0
        predictor = Predictor(self.model, [self.site])
        for contexts, special in zip(self.contexts.split(16), self.special.split(16), strict=True):
            n = int((~special).sum())
            clean = self.model.capture(contexts, [self.site])[self.site]
            spliced, ablated = clean.clone(), clean.clone()
            spliced[~special] = reconstruction[start : start + n].to(clean.dtype)
            ablated[~special] = 0
            start += n
            task = next_token_task(contexts, special)
            predictions = CleanPredictions(predictor.predict(task)[0], task, f"row {start}")
            runs = [predictions.terms]
            for name, value in (("spliced", spliced), ("ablated", ablated)):
                logits, _ = predictor.predict(task, edits={self.site: partial(_put, value)})
                runs.append(predictions.compared(logits, name))
            losses += torch.stack([terms[:, 1].sum() for terms in runs])
        score = ce_loss_score(*losses.tolist())
        return {
            "fve": fve(self.rows, reconstruction),
            "ce_loss_score": score,
            "dead": float((result["fired"] == 0).mean()),
        }


def _put(new: Tensor, old: Tensor) -> Tensor:
    return new


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Heldout, Path, Path]:
    """Held-out contexts, and the files of training and held-out rows."""
    model = ms.load_model(options.model)
    tokens = ms.load_tokens(options.text, model.tokenizer, options.context_size, heldout_fraction=options.heldout)
    stream = ms.ActivationStream(model, tokens, options.site, batch_size=options.batch_size)
    rows, heldout_rows = folder / "rows.npy", folder / "heldout.npy"
    np.save(rows, torch.cat([next(stream).float() for _ in range(options.tokens // options.batch_size)]).numpy())
    heldout = Heldout.of(model, tokens, options.site, options.heldout_tokens)
    np.save(heldout_rows, heldout.rows.numpy())
    return heldout, rows, heldout_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--site", default="blocks.2.hook_resid_post")
    parser.add_argument("--context-size", type=int, default=256)
    parser.add_argument("--heldout", type=float, default=0.05, help="share of the documents")
    parser.add_argument("--heldout-tokens", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--l0", type=int, nargs="+", default=[32])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None, help="architectures")
    parser.add_argument("--systems", nargs="*", default=None)
    parser.add_argument("--results", type=Path, default=Path("runs/quality.jsonl"), help="kept, and gone on with")
    parser.add_argument("--write-docs", metavar="NAME", help="put the table into this block of docs/benchmarks.md")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        heldout, rows, heldout_rows = prepare(options, Path(folder))
        contest = Contest(
            options.results, lambda out, _: heldout.score(out), "fve", options.seeds, RATES, search_at=None
        )
        contest.run(
            (
                system,
                architecture,
                "quality",
                Job(
                    architecture="",
                    rows=str(rows),
                    heldout=str(heldout_rows),
                    out="",
                    d_sae=options.latents,
                    l0=l0,
                    lr=RATES[0],
                    coefficient=1.0,
                    batch_size=options.batch_size,
                    n_steps=options.tokens // options.batch_size,
                    seed=0,
                ),
            )
            for system in SYSTEMS
            if system.python.exists() and (options.systems is None or system.name in options.systems)
            for l0 in options.l0
            for architecture in system.architectures
            if options.only is None or architecture in options.only
        )
    text = render(contest, options, len(heldout.rows))
    print(text)
    if options.write_docs:
        refresh_block(options.write_docs, text)


def render(contest: Contest, options: argparse.Namespace, n_heldout: int) -> str:
    """The table, an architecture of a system at an L0 a row."""
    rows = []
    for architecture in SYSTEMS[0].architectures:
        for l0 in sorted(options.l0):
            for system in SYSTEMS:
                entries = contest.chosen(system.name, architecture, "quality", l0)
                if not entries:
                    continue
                off = max(abs(entry["l0"] / l0 - 1) for entry in entries)
                rows.append(
                    [
                        architecture,
                        str(l0),
                        system.name,
                        spread(entries, "fve", 4),
                        spread(entries, "ce_loss_score", 4),
                        spread(entries, "dead"),
                        spread(entries, "l0", 1) + ("" if off <= L0_TOLERANCE else " (not matched)"),
                        f"{entries[0]['lr']:g}",
                    ]
                )
    header = ["architecture", "L0", "system", "FVE", "ce_loss_score", "dead", "L0 as saved", "lr"]
    return "\n".join(
        [
            markdown_table(header, rows),
            "",
            f"{options.latents:,} latents, {options.tokens:,} tokens in batches of {options.batch_size:,}, measured on "
            f"{n_heldout:,} held-out tokens; learning rate the best of {', '.join(f'{r:g}' for r in RATES)} on the "
            "first seed, by FVE; mean ± standard deviation over seeds. "
            f"monosema {version('monosema')}, sae-lens 6.54.12, dictionary-learning 0.1.0.",
            f"Printed by `{command()}`.",
        ]
    )


if __name__ == "__main__":
    main()
