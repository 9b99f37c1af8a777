"""Python's words as the command line's: option names in errors become flags, help loses its markup."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_origin

T = TypeVar("T")

_OPTION = re.compile(
    r"(?<![\w.='\"/-])([A-Za-z]\w*(?:\.[a-z]\w*)*)(?:(=)(?!=)(True\b|False\b|true\b|false\b)?|(?![\w.(]*['\"(]))"
)
_KINDS = re.compile(r"(?:\{\[.+?\]\}|\{[^{}|]+\}|[A-Z]+)(?:\|(?:\{\[.+?\]\}|\{[^{}|]+\}|[A-Z]+))+")
_BOX_LINE = re.compile(r"│ (.*)│")


class Flags:
    """The flags of the command that runs, by the names that Python has for them."""

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = {}
        self._keys: dict[str, str] = {}
        self._switches: set[str] = set()
        self._mappings: list[str] = []

    def forget(self) -> None:
        """Know no flag."""
        self._paths.clear()
        self._keys.clear()
        self._switches.clear()
        self._mappings.clear()

    def add_options(self, types: Mapping[str, Any]) -> None:
        """Options of a config by path (``stream.epochs``), with their annotations."""
        for path, hint in types.items():
            flag = path.replace("_", "-")
            self._paths.setdefault(path.rpartition(".")[2], []).append(flag)
            self._keys[path] = flag
            if hint is bool:
                self._switches.add(flag)
            if get_origin(hint) is dict:
                self._mappings.append(f"{path}.")

    def add_kinds(self, kinds: Mapping[str, Mapping[str, type | None]]) -> None:
        """Options of the kinds that stand at a path, which are named by their whole paths only."""
        from monosema.core.config import option_types  # the terminal's help does without

        for path, by_name in kinds.items():
            for kind in filter(None, by_name.values()):
                types = {f"{path}.{name}": hint for name, hint in option_types(kind).items()}
                self._keys |= {key: key.replace("_", "-") for key in types}
                self._switches |= {key.replace("_", "-") for key, hint in types.items() if hint is bool}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The arguments of a verb's own."""
        for action in parser._actions:
            flags = [flag.removeprefix("--") for flag in action.option_strings if flag.startswith("--")]
            if flags:
                self._paths[action.dest.rpartition(".")[2]] = flags[:1]
            if flags and action.nargs == 0:
                self._switches.add(flags[0])

    def named_in(self, message: str) -> str:
        """``message`` with flags in the place of what they are called in Python and in files.

        An option is told by its key (``stream.epochs``), or by its name where one flag of the command has that name and
        the name is no word of a sentence: in ``epochs=``, in ``batch_size``, and in ``epochs must``. Arguments of a
        call, as in ``load_model(..., tokenizer=...)``, stay.
        """

        def flag(found: re.Match[str]) -> str:
            path = self._flag_of(found[1], is_option=bool(found[2]) or message.startswith(" must ", found.end()))
            if path is None or _in_call(message[: found.start()]) or _is_named(message[found.end() :]):
                return found[0]
            if path not in self._switches or not found[2]:
                return f"--{path}{found[2] or ''}{found[3] or ''}"
            if found[3] in ("False", "false"):
                section, _, last = path.rpartition(".")
                return f"--{section}.no-{last}" if section else f"--no-{last}"
            return f"--{path}"

        return _OPTION.sub(flag, message)

    def _flag_of(self, name: str, is_option: bool) -> str | None:
        if "." in name:
            is_below = any(name.startswith(path) for path in self._mappings)
            return name.replace("_", "-") if is_below else self._keys.get(name)
        paths = self._paths.get(name, [])
        return paths[0] if len(paths) == 1 and (is_option or "_" in name) else None


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


class _Text(io.StringIO):
    """Kept text; as a stream of this encoding it is given boxes."""

    encoding = "utf-8"


def run_plainly(read: Callable[[], T]) -> T:
    """Run what reads options, with what it prints, help and errors, without markup and names of types."""
    from monosema.cli.output import show, show_error

    printed, errors = _Text(), _Text()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            return read()
    finally:
        show(plain_help(printed.getvalue()), end="")
        if errors.getvalue():
            show_error(plain_help(errors.getvalue().rstrip()))


def plain_help(text: str) -> str:
    """Help without backticks, with ``INT or None`` in place of ``{None}|INT``; lines in boxes keep their width."""
    return "".join(_plain_line(line) for line in text.splitlines(keepends=True))


def _plain_kinds(found: re.Match[str]) -> str:
    """``INT or None`` for ``{None}|INT``, ``FLOAT or auto`` for ``FLOAT|{auto}``; several words stay in braces."""
    kinds = [each.strip("{}") if "," not in each else each for each in found[0].split("|")]
    kinds = [each.removeprefix("[").removesuffix("]") if each.startswith("[") else each for each in kinds]
    return " or ".join(sorted(kinds, key=lambda kind: kind == "None"))


def _plain_line(line: str) -> str:
    plain = _KINDS.sub(_plain_kinds, plain_words(line))
    box, was = _BOX_LINE.search(plain), _BOX_LINE.search(line)
    if box is None or was is None or plain == line:
        return plain
    width = len(was[1])
    return f"{plain[: box.start()]}│ {box[1].rstrip():<{width}}│{plain[box.end() :]}"
