"""Options from the caller's own files: ``--config FILE`` and ``.env`` in the current folder.

They hold ordinary options. What only the caller can say (``core/foreign.py``) is taken out of them, and refused by name
unless the command line or the environment of the process says the same. Secrets come from ``.env`` alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monosema.core.config import MOST_YAML_BYTES, load_plain, merge, option_paths, parse_yaml
from monosema.core.errors import ConfigError, nearest_names
from monosema.core.files import read_text
from monosema.core.foreign import SECRETS, refuse_withheld, withhold
from monosema.core.logs import get_logger
from monosema.core.peers import peers_option
from monosema.core.printable import printable
from monosema.runs.config import CacheConfig, PretokenizeConfig, RunConfig

logger = get_logger("monosema.cli")

PREFIX = "MONOSEMA_"
DOTENV = Path(".env")
_SETTINGS = ("MONOSEMA_TRITON",)
"""Variables that are no options of a verb."""


@dataclasses.dataclass
class FileOptions:
    """What the caller's files say."""

    plain: dict[str, Any]
    """Their options, laid over one another."""
    withheld: dict[Path, dict[str, Any]]
    """What they cannot say, by file and dotted path."""
    dotenv: dict[str, str]
    """The variables of ``.env``."""
    options_of_dotenv: tuple[str, ...]
    """Those of them that are options of this verb."""

    def refuse_withheld(self, said: Mapping[str, Any]) -> None:
        """Raise ``ConfigError`` where a file says what only the caller can, and the resolved options do not have it."""
        for file, values in self.withheld.items():
            refuse_withheld(values, said, file)


def read_option_files(cls: type, config: Path | None, section: str | None = None) -> FileOptions:
    """The options of ``cls`` in ``--config``, and over them those in ``.env``; ``section`` as in ``from_variables``."""
    plain: dict[str, Any] = {}
    withheld = {}
    dotenv = read_dotenv()
    from_dotenv = from_variables(cls, dotenv, section)
    given = {} if config is None else {config: load_plain(config)}
    for file, options in (given | {DOTENV: from_dotenv}).items():
        kept, withheld[file] = withhold(options)
        plain = merge(plain, kept)
    return FileOptions(plain, withheld, dotenv, tuple(_own_variables(cls, dotenv, section)))


def from_variables(cls: type, variables: Mapping[str, str], section: str | None = None) -> dict[str, Any]:
    """Options of ``cls`` in ``MONOSEMA_SECTION__FIELD`` form; those of other verbs are passed over.

    ``section`` is the section that ``cls`` is in a run's config, where its own fields are no sections. Raises
    ``ConfigError`` for a variable that is no option of any verb.
    """
    plain: dict[str, Any] = {}
    for name, path in _own_variables(cls, variables, section).items():
        value = parse_yaml(variables[name], name)
        node: Any = plain
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError(f"{name} and a shorter name are both set; leave one of them out")
        node[path[-1]] = value
    return plain


def _own_variables(cls: type, variables: Mapping[str, str], section: str | None) -> dict[str, list[str]]:
    """The variables that are options of ``cls``, each with its path."""
    fields = {field.name for field in dataclasses.fields(cls)}
    known = sorted({path for each in (RunConfig, CacheConfig, PretokenizeConfig) for path in option_paths(each)})
    own = {}
    for name in variables:
        if not name.startswith(PREFIX) or name in _SETTINGS:
            continue
        path = name.removeprefix(PREFIX).lower().split("__")
        if section is None and path[0] in fields:
            own[name] = path
        elif section is not None and path[0] == section and len(path) > 1:
            own[name] = path[1:]
        elif not any(".".join(path) == each or ".".join(path).startswith(f"{each}.") for each in known):
            raise ConfigError(_matches_nothing(name, known))
    return own


def _matches_nothing(name: str, known: Iterable[str]) -> str:
    ours = peers_option(name.removeprefix(PREFIX).rpartition("__")[2])
    near = nearest_names(name, [PREFIX + path.replace(".", "__").upper() for path in known], n=1)
    hint = (
        f"here it is {ours}" if ours else f"did you mean {near[0]}?" if near else "its form is MONOSEMA_SECTION__FIELD"
    )
    return f"{name} matches no option; {hint}"


def read_dotenv() -> dict[str, str]:
    """The variables of ``.env`` in the current folder; empty where there is none."""
    return _dotenv(DOTENV)


def use_dotenv(variables: Mapping[str, str], options: Iterable[str] = ()) -> None:
    """Put the secrets among ``variables`` into the environment where it lacks them, and log which were used.

    No value is logged. ``options`` are the variables that were used as options.
    """
    if not DOTENV.exists():
        return
    secrets = [name for name in SECRETS if variables.get(name) and name not in os.environ]
    for name in secrets:
        os.environ[name] = variables[name]
    not_overridden = [name for name in options if name not in os.environ]
    used = ", ".join(map(printable, [*not_overridden, *secrets])) or "nothing"
    logger.info("read %s: used %s", DOTENV.absolute(), used)


def _dotenv(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    values = {}
    for line in read_text(file, MOST_YAML_BYTES).splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("'\"")
    return values
