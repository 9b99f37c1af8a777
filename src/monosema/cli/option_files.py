"""Options from the caller's own files: ``--config FILE`` and ``.env`` in the current folder.

They hold ordinary options. What only the caller can say (``core/foreign.py``) is taken out of them, and refused by name
unless the command line or the environment of the process says the same. Secrets come from ``.env`` alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monosema.core.config import MOST_YAML_BYTES, load_plain, merge, parse_yaml
from monosema.core.errors import ConfigError, unknown_name
from monosema.core.files import read_text
from monosema.core.foreign import SECRETS, refuse_withheld, withhold
from monosema.core.logs import get_logger
from monosema.core.printable import printable

logger = get_logger("monosema.cli")

PREFIX = "MONOSEMA_"
DOTENV = Path(".env")


@dataclasses.dataclass
class FileOptions:
    """What the caller's files say."""

    plain: dict[str, Any]
    """Their options, laid over one another."""
    withheld: dict[Path, dict[str, Any]]
    """What they cannot say, by file and dotted path."""
    dotenv: dict[str, str]
    """The variables of ``.env``."""

    def refuse_withheld(self, said: Mapping[str, Any]) -> None:
        """Raise ``ConfigError`` where a file says what only the caller can, and the resolved options do not have it."""
        for file, values in self.withheld.items():
            refuse_withheld(values, said, file)


def read_option_files(cls: type, config: Path | None) -> FileOptions:
    """The options of ``cls`` in ``--config``, and over them those in ``.env``."""
    plain: dict[str, Any] = {}
    withheld = {}
    dotenv = read_dotenv()
    from_dotenv = from_variables(cls, dotenv)
    given = {} if config is None else {config: load_plain(config)}
    for file, options in (given | {DOTENV: from_dotenv}).items():
        kept, withheld[file] = withhold(options)
        plain = merge(plain, kept)
    return FileOptions(plain, withheld, dotenv)


def from_variables(cls: type, variables: Mapping[str, str]) -> dict[str, Any]:
    """Options of ``cls`` in ``MONOSEMA_SECTION__FIELD`` form."""
    sections = {field.name for field in dataclasses.fields(cls)}
    plain: dict[str, Any] = {}
    for name, text in variables.items():
        if not _is_option(name):
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


def read_dotenv() -> dict[str, str]:
    """The variables of ``.env`` in the current folder; empty where there is none."""
    return _dotenv(DOTENV)


def use_dotenv(variables: Mapping[str, str], *, takes_options: bool) -> None:
    """Put the secrets among ``variables`` into the environment where it lacks them, and log which were used.

    No value is logged. ``takes_options`` says whether the options among them were used, too.
    """
    if not DOTENV.exists():
        return
    secrets = [name for name in SECRETS if variables.get(name) and name not in os.environ]
    for name in secrets:
        os.environ[name] = variables[name]
    options = [name for name in variables if takes_options and _is_option(name) and name not in os.environ]
    used = ", ".join(map(printable, [*options, *secrets])) or "nothing"
    logger.info("read %s: used %s", DOTENV.absolute(), used)


def _is_option(name: str) -> bool:
    return name.startswith(PREFIX) and "__" in name


def _dotenv(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    values = {}
    for line in read_text(file, MOST_YAML_BYTES).splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("'\"")
    return values
