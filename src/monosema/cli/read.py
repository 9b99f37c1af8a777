"""``monosema read``: which latents are active on each token of a prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monosema.cli.option_files import read_dotenv, use_dotenv
from monosema.cli.options import add_consent, add_logging, configure_logging, models_given
from monosema.cli.output import show

_PREPEND: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}


def run(arguments: Sequence[str]) -> int:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(prog="monosema read", description=__doc__)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to read, in quotes")
    parser.add_argument(
        "--dictionary", required=True, metavar="FOLDER", help="run folder, dictionary folder, or hub repository"
    )
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument(
        "--model",
        action="append",
        help="read this model instead of the recorded one; of several, NAME=MODEL, once for each to change",
    )
    add_consent(parser)
    parser.add_argument("--n-latents", type=int, default=5, help="latents shown of each token (default 5)")
    parser.add_argument(
        "--prepend-bos",
        choices=list(_PREPEND),
        default="auto",
        help="put the token that begins contexts before the prompt: as in training (default), always, or never",
    )
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message in the model's chat format")
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FOLDER",
        help="features that monosema features --save FOLDER kept, which label the latents",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write one offline page")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the reading as JSON")
    add_logging(parser)
    extra = parser.parse_args(list(arguments))
    configure_logging(extra)
    use_dotenv(read_dotenv())
    from monosema import hub
    from monosema.core.files import write_json
    from monosema.features import read_prompt
    from monosema.runs.session import open_models

    coder = hub.load(extra.dictionary, extra.name)
    chosen = None if extra.model is None else models_given(extra.model)
    models = open_models(coder, model=chosen, trust_remote_code=extra.trust_remote_code)
    reading = read_prompt(
        models,
        coder,
        [{"role": "user", "content": extra.prompt}] if extra.chat else extra.prompt,
        n_latents=extra.n_latents,
        prepend_bos=_PREPEND[extra.prepend_bos],
        features=extra.features,
    )
    show(reading)
    if extra.html is not None:
        show(f"page: {reading.save_html(extra.html)}")
    if extra.out is not None:
        write_json(extra.out, reading.to_dict())
    return 0
