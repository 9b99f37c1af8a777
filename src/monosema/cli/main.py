"""``monosema VERB``: finds the verb's file; imports nothing heavy for ``--help`` and ``--version``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from monosema.cli.output import show, show_error

VERBS = {
    "demo": "train a dictionary on the embedded model, evaluate it and write its features page",
    "train": "train a dictionary on a language model",
    "pretokenize": "write a text's packed tokens to disk, to train on without tokenising again",
    "plan": "say what a run needs and how long it takes, before it starts",
    "cache": "write a language model's activations to disk, to train on without the model",
    "evaluate": "measure a dictionary on held-out text",
    "benchmark": "measure whether a dictionary has found what is known to be there: probing, absorption and others",
    "features": "collect a dictionary's features and write the page that shows them",
    "inspect": "say what is in a run folder or a dictionary's folder",
}

HELP = """\
usage: monosema VERB [options]

Train, evaluate and read sparse dictionaries of language-model activations.

verbs:
{verbs}

`monosema VERB --help` lists a verb's options. `monosema --version` prints the version.
Options come from the command line, then MONOSEMA_SECTION__FIELD in the environment, then .env, then --config FILE.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 stopped early, 2 unusable input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        show(HELP.format(verbs="\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())))
        return 0
    if given[0] == "--version":
        from importlib.metadata import version

        show(f"monosema {version('monosema')}")
        return 0
    verb, rest = given[0], given[1:]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        show_error(f"monosema: unknown verb {verb!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        show_error("known: " + ", ".join(VERBS))
        return 2
    return _run(verb, rest)


def _run(verb: str, arguments: list[str]) -> int:
    from monosema.core.errors import UserError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        status: int = importlib.import_module(f"monosema.cli.{verb}").run(arguments)
        return status
    except UserError as error:
        show_error(f"monosema {verb}: {error}")
        return 2
    except KeyboardInterrupt as stop:
        show_error(f"monosema {verb}: {stop or 'interrupted'}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
