"""Options from everywhere: command line over environment over ``.env`` over ``--config`` over defaults."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from monosema.cli.kinds import Choices, add_kinds, resolve_kinds
from monosema.cli.option_files import from_variables, read_option_files, use_dotenv
from monosema.cli.output import show, show_error
from monosema.core.config import from_plain, merge, option_paths, to_plain, to_yaml
from monosema.core.errors import ConfigError
from monosema.core.peers import peers_option

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A verb's command line, resolved."""

    config: Any
    """The config, all sources laid over one another."""
    extra: argparse.Namespace
    """The verb's own arguments (``--out`` and the like)."""


def parse(
    cls: type[C],
    arguments: Sequence[str],
    parser: argparse.ArgumentParser,
    choices: Choices | None = None,
) -> Parsed:
    """Resolve ``cls`` and the verb's own arguments; prints and exits for ``--help`` and ``--print-config``.

    Raises ``ConfigError`` where a file says what only the caller can (``core/foreign.py``).
    """
    parser.allow_abbrev = False
    parser.add_argument("--config", type=Path, help="YAML or JSON file of options")
    parser.add_argument("--print-config", action="store_true", help="print the resolved options and stop")
    add_logging(parser)
    add_kinds(parser, choices or {})
    wants_help = any(argument in ("-h", "--help") for argument in arguments)
    known, rest = parser.parse_known_args(
        [a for a in arguments if a not in ("-h", "--help")] if wants_help else arguments
    )
    files = read_option_files(cls, known.config)
    plain = merge(merge(to_plain(cls()), files.plain), from_variables(cls, os.environ))
    resolve_kinds(plain, choices or {}, known, rest, show_all=wants_help)
    default = from_plain(cls, plain)
    if wants_help:
        parser.print_help()
        show()
    _answer_peers_names(rest, option_paths(cls))
    import tyro

    config = tyro.cli(
        cls,
        args=["--help"] if wants_help else rest,
        default=default,
        prog=parser.prog,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    config = from_plain(cls, to_plain(config))
    files.refuse_withheld(to_plain(config))
    configure_logging(known)
    use_dotenv(files.dotenv, takes_options=True)
    if known.print_config:
        show(to_yaml(config), end="")
        sys.exit(0)
    return Parsed(config, known)


def _answer_peers_names(arguments: Sequence[str], paths: Sequence[str]) -> None:
    """``ConfigError`` for a flag of another library, which is answered with ours, and for one without its section."""
    known = [path.replace("_", "-") for path in paths]
    for argument in arguments:
        flag = argument.removeprefix("--").partition("=")[0].replace("_", "-")
        last = flag.rpartition(".")[2]
        is_inside = any(flag.startswith(f"{path}.") for path in known)  # of an option of several kinds, or a mapping
        if not argument.startswith("--") or flag in known or is_inside:
            continue
        ours = peers_option(last)
        elsewhere = [f"--{path}" for path in known if path.rpartition(".")[2] == last]
        if ours is not None:
            raise ConfigError(f"unknown option --{flag}; here it is {ours}")
        if elsewhere:
            raise ConfigError(f"unknown option --{flag}; did you mean {' or '.join(elsewhere)}?")


def add_logging(parser: argparse.ArgumentParser) -> None:
    """``--log-level`` and ``--quiet``."""
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--quiet", action="store_true", help="only errors and results")


class _ToStandardError(logging.Handler):
    """Writes to what standard error is now, which need not be what it was at the first call of a process."""

    def emit(self, record: logging.LogRecord) -> None:
        show_error(self.format(record))


def configure_logging(known: argparse.Namespace) -> None:
    """Send ``monosema.*`` to standard error at the wanted level."""
    logger = logging.getLogger("monosema")
    logger.setLevel("ERROR" if known.quiet else known.log_level.upper())
    if not logger.handlers:
        handler = _ToStandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    if logger.level > logging.DEBUG:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def add_consent(parser: argparse.ArgumentParser) -> None:
    """``--model.trust-remote-code`` for verbs that load the model a dictionary names."""
    parser.add_argument(
        "--model.trust-remote-code",
        "--trust-remote-code",
        dest="trust_remote_code",
        action="store_true",
        help="let code that comes with the dictionary's model run; whatever files say about it does not count",
    )


def say_device(config_device: str | None) -> None:
    """Choose the device once, so that the reason is printed."""
    from monosema.core.devices import choose_device

    choose_device(config_device)
