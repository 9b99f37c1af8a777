"""``monosema VERB``: finds the verb's file; imports nothing heavy for ``--help`` and ``--version``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from monosema.cli.output import show, show_error
from monosema.cli.wording import FLAGS
from monosema.core.console import Console, consoles

VERBS = {
    "demo": "train a dictionary on the embedded model, evaluate it and write its features page",
    "train": "train a dictionary on a language model",
    "pretokenize": "write a text's packed tokens to disk, to train on without tokenising again",
    "plan": "say what a run needs and how long it takes, before it starts",
    "cache": "write a language model's activations to disk, to train on without the model",
    "evaluate": "measure a dictionary on held-out text",
    "benchmark": "measure whether a dictionary has found what is known to be there: probing, absorption and others",
    "features": "collect a dictionary's features and write the page that shows them",
    "read": "say which latents are active on each token of a prompt",
    "inspect": "say what is in a folder: dictionary, run, sweep, cache, tokens or features",
}

HELP = """\
usage: monosema VERB [options]

Train, evaluate and read sparse dictionaries of language-model activations.

verbs:
{verbs}

`monosema VERB --help` lists a verb's options. `monosema --version` prints the version.
Options come from the command line, then MONOSEMA_SECTION__FIELD in the environment, then .env, then --config FILE.
Consent to run a model's own code (--model.trust-remote-code) comes from the first two, never from a file.
"""

_LESS_MEMORY = (
    "lower the batch size, the number of tokens or d_sae, or free some memory; `monosema plan` says what a run needs"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 stopped early or output lost, 2 unusable input."""
    with consoles() as (out, err):
        try:
            status = _command(list(sys.argv[1:] if arguments is None else arguments))
        except SystemExit as stop:  # of argparse: help, or options that it refuses
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
            raise SystemExit(_closed(status, out, err)) from None
        return _closed(status, out, err)


def _closed(status: int, out: Console, err: Console) -> int:
    """The exit status once all output is handed on; a reader that left is no failure, a full disk is one."""
    out.flush()
    if out.error is not None and not isinstance(out.error, BrokenPipeError):
        show_error(f"monosema: cannot write to standard output: {out.error.strerror or out.error}")
        status = status or 1
    err.flush()
    for console in (out, err):
        if console.error is not None:
            console.forget()
    return status


def _command(given: list[str]) -> int:
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
    from monosema.core.errors import UserError, first_line, is_out_of_memory

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    FLAGS.forget()
    try:
        status: int = importlib.import_module(f"monosema.cli.{verb}").run(arguments)
        return status
    except UserError as error:
        show_error(f"monosema {verb}: {FLAGS.named_in(str(error))}")
        return 2
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        show_error(f"monosema {verb}: out of memory ({first_line(error)}); {_LESS_MEMORY}")
        return 2
    except KeyboardInterrupt as stop:
        show_error(f"monosema {verb}: {stop or 'interrupted'}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
