"""How much of a known dictionary each architecture finds, beside SAELens and dictionary_learning.

    python benchmarks/ground_truth.py --write-docs

Rows are sums of 256 known directions in 128 dimensions (``monosema.data.SyntheticFeatures``): independent, correlated
and hierarchical. Each dictionary has as many latents as there are directions and an L0 equal to the truth's. Printed is
the mean over directions of the largest cosine with a decoder row, of either sign where latents have either.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from contest import SYSTEMS, Contest, spread
from jobs import Job
from report import command, markdown_table, refresh_block

from monosema.data import SyntheticFeatures
from monosema.metrics import mean_max_cosine, recovered_fraction

KINDS: tuple[Literal["independent", "correlated", "hierarchical"], ...] = ("independent", "correlated", "hierarchical")
BATCH_SIZE = 1024
N_HELDOUT = 16_384
RATES = (3e-3, 1e-2, 3e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="batches of 1,024 rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None, help="architectures")
    parser.add_argument("--systems", nargs="*", default=None)
    parser.add_argument("--results", type=Path, default=Path("runs/ground_truth.jsonl"), help="kept, and gone on with")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    systems = [
        system
        for system in SYSTEMS
        if system.python.exists() and (options.systems is None or system.name in options.systems)
    ]
    contests = {}
    for kind in KINDS:
        features = SyntheticFeatures(kind=kind)
        truth = features.directions()

        def score(out: Path, job: Job, truth: torch.Tensor = truth) -> dict[str, float]:
            learned = torch.from_numpy(np.load(out)["W_dec"])
            if job.architecture == "AbsTopK":  # a latent active below zero stands for the opposite direction
                learned = torch.cat([learned, -learned])
            return {"mmcs": mean_max_cosine(learned, truth), "found": recovered_fraction(learned, truth)}

        contests[kind] = Contest(options.results, score, "mmcs", options.seeds, RATES, search_at=KINDS[0])
        with tempfile.TemporaryDirectory() as folder:
            rows, heldout = Path(folder) / "rows.npy", Path(folder) / "heldout.npy"
            np.save(rows, features.rows(options.steps * BATCH_SIZE).numpy())
            np.save(heldout, features.rows(N_HELDOUT, seed=1).numpy())
            job = Job(
                architecture="",
                rows=str(rows),
                heldout=str(heldout),
                out="",
                d_sae=features.n_features,
                l0=features.l0,
                lr=RATES[0],
                coefficient=1.0,
                batch_size=BATCH_SIZE,
                n_steps=options.steps,
                seed=0,
            )
            contests[kind].run(
                (system, architecture, kind, job)
                for system in systems
                for architecture in system.architectures
                if options.only is None or architecture in options.only
            )
    text = render(contests, options.steps)
    print(text)
    if options.write_docs:
        refresh_block("ground-truth", text)


def render(contests: Mapping[Literal["independent", "correlated", "hierarchical"], Contest], n_steps: int) -> str:
    """The table, an architecture of a system a row."""
    l0 = SyntheticFeatures().l0
    rows = []
    for architecture in SYSTEMS[0].architectures:
        for system in SYSTEMS:
            chosen = {kind: contests[kind].chosen(system.name, architecture, kind, l0) for kind in KINDS}
            if all(chosen.values()):
                found = np.mean([entry["found"] for entry in chosen["independent"]])
                l0s = " / ".join(f"{np.mean([entry['l0'] for entry in chosen[kind]]):.2f}" for kind in KINDS)
                cosines = [spread(chosen[kind], "mmcs") for kind in KINDS]
                rows.append([architecture, system.name, *cosines, f"{found:.0%}", l0s])
    header = ["architecture", "system", *KINDS, "found (independent)", "L0 as saved"]
    return "\n".join(
        [
            markdown_table(header, rows),
            "",
            f"{n_steps:,} batches of {BATCH_SIZE:,}, learning rate the best of {', '.join(f'{r:g}' for r in RATES)} on "
            f"{KINDS[0]} features and the first seed; mean ± standard deviation over seeds. Found: directions with a "
            f"cosine above 0.9. The truth's L0 is {l0:g}. monosema {version('monosema')}, sae-lens 6.54.12, "
            "dictionary-learning 0.1.0.",
            f"Printed by `{command()}`.",
        ]
    )


if __name__ == "__main__":
    main()
