"""Python's words as the command line's: option names in errors become flags, help loses its markup."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Iterable

_ARGUMENT = re.compile(r"(?<![\w.='\"-])([a-z]\w*)=(?!=)(True\b|False\b)?")
_OPTIONAL = re.compile(r"\{None\}\|(\{\[(.+?)\]\}|[A-Z]+)")
_BOX_LINE = re.compile(r"│ (.*)│")


class Flags:
    """The flags of the command that runs, by the names that Python has for them."""

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}
        self._switches: set[str] = set()

    def forget(self) -> None:
        """Know no flag."""
        self._paths.clear()
        self._switches.clear()

    def add_options(self, paths: Iterable[str], switches: Iterable[str] = ()) -> None:
        """Options of a config by path (``stream.epochs``); ``switches`` are those without a value."""
        for path in paths:
            self._paths.setdefault(path.rpartition(".")[2], []).append(path.replace("_", "-"))
        self._switches |= {path.replace("_", "-") for path in switches}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The arguments of a verb's own."""
        for action in parser._actions:
            flags = [flag.removeprefix("--") for flag in action.option_strings if flag.startswith("--")]
            if flags:
                self._paths[action.dest.rpartition(".")[2]] = flags[:1]
            if flags and action.nargs == 0:
                self._switches.add(flags[0])

    def named_in(self, message: str) -> str:
        """``message`` with ``epochs=`` as ``--stream.epochs=`` where one flag of the command has that name.

        Arguments of a call, as in ``load_model(..., tokenizer=...)``, stay.
        """

        def flag(found: re.Match[str]) -> str:
            paths = self._paths.get(found[1], [])
            if len(paths) != 1 or _in_call(message[: found.start()]) or _is_named(message[found.end() :]):
                return found[0]
            if paths[0] not in self._switches:
                return f"--{paths[0]}={found[2] or ''}"
            if found[2] == "False":
                section, _, last = paths[0].rpartition(".")
                return f"--{section}.no-{last}" if section else f"--no-{last}"
            return f"--{paths[0]}"

        return _ARGUMENT.sub(flag, message)


def _in_call(before: str) -> bool:
    """Whether ``before`` ends inside the parentheses of a call."""
    depth = 0
    for at in range(len(before) - 1, -1, -1):
        depth += (before[at] == ")") - (before[at] == "(")
        if depth < 0:
            return at > 0 and (before[at - 1].isalnum() or before[at - 1] == "_")
    return False


def _is_named(after: str) -> bool:
    """Whether the message itself goes on with the flag, as in ``out=... (--out)``."""
    return re.match(r"\S* ?\(--", after) is not None


FLAGS = Flags()
"""Of the command that runs in this process."""


def plain_words(text: str) -> str:
    """``text`` without the double backticks of docstrings."""
    return text.replace("``", "")


def print_plainly(help_of_options: Callable[[], object]) -> None:
    """Run what prints the help of options, with its markup and its names of types made plain."""
    from monosema.cli.output import show

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            help_of_options()
    finally:
        show(plain_help(printed.getvalue()), end="")


def plain_help(text: str) -> str:
    """Help without backticks, with ``INT or None`` in place of ``{None}|INT``; lines in boxes keep their width."""
    return "".join(_plain_line(line) for line in text.splitlines(keepends=True))


def _plain_line(line: str) -> str:
    plain = _OPTIONAL.sub(lambda found: f"{found[2] or found[1]} or None", plain_words(line))
    box, was = _BOX_LINE.search(plain), _BOX_LINE.search(line)
    if box is None or was is None or plain == line:
        return plain
    width = len(was[1])
    return f"{plain[: box.start()]}│ {box[1].rstrip():<{width}}│{plain[box.end() :]}"
