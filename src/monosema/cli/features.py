"""``monosema features``: collect what each latent responds to, write the page that shows it, and keep it if asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from monosema.cli.option_files import read_dotenv, use_dotenv
from monosema.cli.options import add_consent, add_logging, configure_logging, load_libraries, whole
from monosema.cli.output import show


def run(arguments: Sequence[str]) -> int:
    """Parse, collect, write."""
    parser = argparse.ArgumentParser(prog="monosema features", description=__doc__)
    parser.add_argument("folder", help="run folder, dictionary folder, or hub repository")
    parser.add_argument("--name", help="dictionary inside a hub repository or folder of several")
    parser.add_argument("--text", help="collect on this text instead of the recorded one")
    parser.add_argument("--model", help="collect with this model instead of the recorded one")
    add_consent(parser)
    parser.add_argument(
        "--tokens",
        type=whole,
        help="held-out tokens to read (by default as many as the run was evaluated on, 200000 where none says)",
    )
    parser.add_argument("--contexts", type=whole, default=10, help="best contexts kept per latent (default 10)")
    parser.add_argument("--out", type=Path, help="the page; FOLDER/features.html by default")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="also keep the features there, for monosema read --features FOLDER and FeatureStore.load",
    )
    parser.add_argument("--latent", type=whole, help="print one latent in the terminal instead of writing the page")
    add_logging(parser)
    extra = parser.parse_args(list(arguments))
    configure_logging(extra)
    use_dotenv(read_dotenv())
    load_libraries("monosema.runs.demo")
    from monosema.core.progress import doing
    from monosema.features import collect_features
    from monosema.features.saved import check_place
    from monosema.runs import open_session
    from monosema.runs.features_page import page_figures, tokens_evaluated

    if extra.save is not None:
        check_place(extra.save)
    given = {"text": extra.text, "model": extra.model}
    overrides = {name: value for name, value in given.items() if value is not None}
    session = open_session(
        extra.folder, extra.name, trust_remote_code=extra.trust_remote_code, progress=True, **overrides
    )
    n_tokens = tokens_evaluated(extra.folder) if extra.tokens is None else extra.tokens
    store = collect_features(
        session.coder, session.models, session.tokens, n_tokens=n_tokens, contexts_per_latent=extra.contexts
    )
    if extra.save is not None:
        show(f"saved features: {store.save(extra.save)}")
    if extra.latent is not None:
        show(store[extra.latent])
        return 0
    page = extra.out if extra.out is not None else Path(extra.folder) / "features.html"
    with doing("writing the features page"):
        store.dashboard(page, figures=page_figures(extra.folder, store))
    show(f"features: {page}")
    return 0
