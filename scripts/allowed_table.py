"""Write docs/allowed.md from the table in training/allowed.py: `python scripts/allowed_table.py --write`."""

from __future__ import annotations

import argparse
from pathlib import Path

from monosema.coders.activations.registry import activation_kinds
from monosema.training.allowed import (
    LEVELS,
    POLICIES,
    SPARSITIES,
    TOKEN_SCALINGS,
    VARIANTS,
    combinations,
    default_sparsity,
    refused,
)

FILE = Path(__file__).parents[1] / "docs" / "allowed.md"
SCALED = {
    "SAE": "yes",
    "Transcoder": "input only",
    "Crosscoder": "each site, not with causal=True",
    "CrossLayerTranscoder": "each site read",
}
"""What a scaling by a token's own size is applied to; an output is scaled back where it is the input."""


def table() -> str:
    """The page."""
    every = list(combinations())
    n_refused = sum(each.refusal is not None for each in every)
    lines = [
        "# What goes with what",
        "",
        "Written by `python scripts/allowed_table.py --write` from `training/allowed.py`, which the tests run through.",
        "",
        f"{len(every):,} combinations of variant ({', '.join(VARIANTS)}), activation, sparsity loss, nested levels "
        f"({', '.join(LEVELS)}) and policy for dead latents ({', '.join(POLICIES)}), and of variant, activation and "
        f"scaling of tokens by their own size; {n_refused:,} are refused ({n_refused / len(every):.0%}), each for one "
        "of the pairs marked below.",
        "",
        "| activation | default loss | " + " | ".join(SPARSITIES[1:]) + " |",
        "|---|---|" + "---|" * (len(SPARSITIES) - 1),
    ]
    pairs = refused()
    for activation, kind in activation_kinds().items():
        default = default_sparsity(kind)
        name = "none" if default is None else f"{type(default).__name__}, L0 of {getattr(default, 'target_l0', 0):g}"
        cells = ["refused" if (activation, sparsity) in pairs else "yes" for sparsity in SPARSITIES[1:]]
        lines.append(f"| {activation} | {name} | " + " | ".join(cells) + " |")
    scalings = TOKEN_SCALINGS[1:]
    lines += ["", "| variant | " + " | ".join(scalings) + " |", "|---|" + "---|" * len(scalings)]
    for variant in VARIANTS:
        cells = [SCALED[variant] if (variant, scaling) not in pairs else "refused" for scaling in scalings]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    reasons: dict[str, list[str]] = {}
    for pair, reason in pairs.items():
        reasons.setdefault(reason, []).append(" with ".join(pair))
    lines += ["", *(f"- {', '.join(named)}: {reason}." for reason, named in reasons.items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file instead of printing it")
    if parser.parse_args().write:
        FILE.write_text(table(), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
