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
from monosema.cli.output import show, show_error
from monosema.core.config import MOST_YAML_BYTES, from_plain, load_plain, merge, parse_yaml, to_plain, to_yaml
from monosema.core.errors import ConfigError, unknown_name
from monosema.core.files import read_text

C = TypeVar("C")
PREFIX = "MONOSEMA_"


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
    """Resolve ``cls`` and the verb's own arguments; prints and exits for ``--help`` and ``--print-config``."""
    parser.allow_abbrev = False
    parser.add_argument("--config", type=Path, help="YAML or JSON file of options")
    parser.add_argument("--print-config", action="store_true", help="print the resolved options and stop")
    add_logging(parser)
    add_kinds(parser, choices or {})
    wants_help = any(argument in ("-h", "--help") for argument in arguments)
    known, rest = parser.parse_known_args(
        [a for a in arguments if a not in ("-h", "--help")] if wants_help else arguments
    )
    plain = to_plain(cls())
    if known.config is not None:
        plain = merge(plain, load_plain(known.config))
    plain = merge(plain, _environment(cls))
    resolve_kinds(plain, choices or {}, known, rest, show_all=wants_help)
    default = from_plain(cls, plain)
    if wants_help:
        parser.print_help()
        show()
    import tyro

    config = tyro.cli(
        cls,
        args=["--help"] if wants_help else rest,
        default=default,
        prog=parser.prog,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    config = from_plain(cls, to_plain(config))
    configure_logging(known)
    if known.print_config:
        show(to_yaml(config), end="")
        sys.exit(0)
    return Parsed(config, known)


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


def say_device(config_device: str | None) -> None:
    """Choose the device once, so that the reason is printed."""
    from monosema.core.devices import choose_device

    choose_device(config_device)


def _environment(cls: type) -> dict[str, Any]:
    """Options of ``cls`` in ``MONOSEMA_SECTION__FIELD`` form, ``.env`` below the environment."""
    sections = {field.name for field in dataclasses.fields(cls)}
    plain: dict[str, Any] = {}
    for name, text in {**_dotenv(Path(".env")), **os.environ}.items():
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        path = name.removeprefix(PREFIX).lower().split("__")
        if path[0] not in sections:
            raise unknown_name("section in the environment", path[0], sections)
        value = parse_yaml(text, name)
        node: Any = plain
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"{name} and a shorter name are both set; leave one of them out")
        node[path[-1]] = value
    return plain


def _dotenv(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    values = {}
    for line in read_text(file, MOST_YAML_BYTES).splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("'\"")
    return values
