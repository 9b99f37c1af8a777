"""Write the trained embedded model into the package: bfloat16 weights, tokenizer, config.

    python scripts/builtin_export.py --from build/builtin

``scripts/builtin_card.py`` then measures it and writes its card.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from builtin_train import new_model
from transformers import AutoTokenizer

PACKAGE_FOLDER = Path(__file__).parents[1] / "src" / "monosema" / "models" / "builtin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="the training run's folder")
    parser.add_argument("--out", type=Path, default=PACKAGE_FOLDER)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    state = torch.load(arguments.source / "state.pt", weights_only=True)
    model = new_model(len(tokenizer))
    model.load_state_dict(state["model"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(arguments.source / name, arguments.out / name)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"step {state['step']}: {size / 2**20:.2f} MiB in {arguments.out}")


if __name__ == "__main__":
    main()
