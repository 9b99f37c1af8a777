"""Options from everywhere: command line over environment over ``.env`` over ``--config`` over defaults."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from monosema.cli.kinds import Choices, add_kinds, draft, resolve_kinds, spell_out_kinds
from monosema.cli.option_files import from_variables, read_option_files, use_dotenv
from monosema.cli.output import show, show_error
from monosema.cli.presets import PREFIX, options_file, preset_table
from monosema.cli.wording import FLAGS, plain_words, run_plainly
from monosema.core.config import from_plain, merge, option_paths, option_types, to_plain, to_yaml
from monosema.core.errors import ConfigError
from monosema.core.peers import peers_option
from monosema.core.progress import doing
from monosema.core.spelling import whole_number

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

C = TypeVar("C")
_CONFIG = (
    f"YAML or JSON file of options; for train and plan also {PREFIX}NAME, a preset of the package ({PREFIX} lists them)"
)


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
    *,
    section: str | None = None,
    recorded: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None,
) -> Parsed:
    """Resolve ``cls`` and the verb's own arguments; prints and exits for ``--help``, ``--print-config`` and
    ``--config examples:``.

    ``section`` is the section that ``cls`` is in a run's config, by which its options are named in the environment.
    ``recorded`` gives what is laid over the defaults and under all that the caller says, by the verb's own arguments.
    Raises ``ConfigError`` where a file says what only the caller can (``core/foreign.py``).
    """
    parser.allow_abbrev = False
    parser.add_argument("--config", metavar="FILE", help=_CONFIG)
    parser.add_argument("--print-config", action="store_true", help="print the resolved options and stop")
    add_logging(parser)
    add_kinds(parser, choices or {})
    wants_help = any(argument in ("-h", "--help") for argument in arguments)
    known, rest = parser.parse_known_args(
        [a for a in arguments if a not in ("-h", "--help")] if wants_help else arguments
    )
    if known.config == PREFIX:
        show(preset_table())
        sys.exit(0)
    files = read_option_files(cls, None if known.config is None else options_file(known.config), section)
    plain = to_plain(cls()) if recorded is None else {**to_plain(cls()), **recorded(known)}
    for given in (files.plain, from_variables(cls, os.environ, section)):
        plain = merge(plain, spell_out_kinds(given, choices or {}))
    resolve_kinds(plain, choices or {}, known, rest, show_all=wants_help)
    from_plain(cls, plain, as_typed=True)  # what is wrong in files is named by its keys
    unchecked = draft(cls)
    if wants_help:
        parser.print_help()
        show()
    _answer_peers_names(rest, option_paths(cls))
    import tyro

    read = partial(
        tyro.cli,
        unchecked,
        default=from_plain(unchecked, plain, as_typed=True),
        prog=parser.prog,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    with _whole_numbers():
        if wants_help:
            run_plainly(lambda: read(args=["--help"]))
        resolved = to_plain(run_plainly(lambda: read(args=rest)))
    files.refuse_withheld(resolved)
    if not rest and not any(getattr(known, path) for path in choices or {}):
        from_plain(cls, resolved)  # all is of files; kinds among it were drafts so far
    FLAGS.add_options(option_types(cls))
    FLAGS.add_kinds(choices or {})
    FLAGS.add_arguments(parser)
    config = from_plain(cls, resolved)
    configure_logging(known)
    use_dotenv(files.dotenv, files.options_of_dotenv)
    if known.print_config:
        show(to_yaml(config), end="")
        sys.exit(0)
    return Parsed(config, known)


def whole(text: str) -> int:
    """A whole number on the command line, ``1e6`` too: for ``type=`` of an argument."""
    try:
        return whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number (1000 or 1e3), got {text!r:.80}") from None


def _whole_numbers() -> ConstructorRegistry:
    """The rule by which options of a config take whole numbers."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda texts: whole_number(texts[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


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
    """``--log-level`` and ``--quiet``, the last options of every verb, whose flags errors name from here on."""
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--quiet", action="store_true", help="only errors and results")
    parser.description = plain_words(parser.description or "")
    FLAGS.add_arguments(parser)


def load_libraries(module: str) -> None:
    """Import ``module``, which brings torch and takes seconds, and say so before; ``configure_logging`` comes first."""
    with doing("loading libraries"):
        importlib.import_module(module)


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


_NAMED_MODEL = re.compile(r"(\w[\w-]*)=(.+)")


def models_given(given: Sequence[str]) -> str | dict[str, str]:
    """The values of ``--model``: one model, or several by name, each ``NAME=MODEL``."""
    pairs = [_NAMED_MODEL.fullmatch(each) for each in given]
    named = {pair[1]: pair[2] for pair in pairs if pair is not None}
    if len(given) > 1 and len(named) < len(given):
        raise ConfigError(f"--model: give one model, or NAME=MODEL each, got {' '.join(given)}")
    return named or given[0]


def say_device(config_device: str | None) -> None:
    """Choose the device once, so that the reason is printed."""
    from monosema.core.devices import choose_device

    choose_device(config_device)
