"""Pickles as data: read by a machine of our own, which runs no code whatever the file says.

Python's ``Unpickler`` calls what a pickle names; even with its classes held back, six bytes make it take 32 GiB. Here
``pickletools`` cuts the file into operations and a table says what each does to a stack of values. Known classes are in
``pickle_values``; every other class, function or call becomes a ``ForeignRecord``.
"""

from __future__ import annotations

import mmap
import pickletools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, final

from monosema.core.errors import FileError, first_line
from monosema.core.files import require_regular
from monosema.core.pickle_values import ForeignRecord, PickleRefusedError, Values, key_of

__all__ = ["ForeignRecord", "read_pickle"]

MOST_BYTES = 2**36
"""No larger file is read."""
MOST_OPERATIONS = 2**22
"""In a pickle; an array is one object of some twenty, whatever its size. A million values take some two."""
MOST_DEPTH = 100
"""How deep lists, mappings and records may be nested."""
_ADVICE = "save it in another format, or ask whoever made it for safetensors, .npy or JSON"
_FAULTS = (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError)
"""What operations raise on values that do not fit them: too few, of another kind, or too large."""


def read_pickle(
    path: Path, *, most_bytes: int = MOST_BYTES, most_operations: int = MOST_OPERATIONS, most_depth: int = MOST_DEPTH
) -> Any:
    """The value in ``path``, of any protocol; nothing that the file names is imported or called.

    Numbers, texts, bytes and containers, NumPy's arrays and numbers, torch's dtypes, devices and sizes, and paths (as
    ``PurePath``) are themselves, an ``OrderedDict`` or ``defaultdict`` a ``dict``; all else is a ``ForeignRecord``.
    One object may stand in several places; none within itself. Memory is some times the file's size, and at most some
    hundred bytes for each operation.

    Raises:
        FileError: there is no such file, it is no pickle, larger or nested deeper than allowed, or holds arrays of
            objects, references to objects outside the file, or what does not add up.
    """
    try:
        size = require_regular(path)
        if size == 0:
            raise PickleRefusedError("it is empty")
        if size > most_bytes:
            raise PickleRefusedError(f"it has {size:,} bytes, at most {most_bytes:,} are read")
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # of backslashes in names
            value = _Machine(Values(size), most_operations).run(pickletools.genops(content))  # type: ignore[arg-type]
        _check_depth(value, most_depth)
        return value
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except PickleRefusedError as error:
        raise FileError(f"cannot read the pickle {path}: {error}; {_ADVICE}") from error
    except _FAULTS as error:
        raise FileError(f"{path} is no whole pickle ({type(error).__name__}: {first_line(error)[:200]})") from error


@final
class _Machine:
    """The stack, the marks on it, and what was memorised."""

    def __init__(self, values: Values, most_operations: int):
        self._values, self._most = values, most_operations
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        """The value left at the end."""
        for number, (opcode, argument, _) in enumerate(operations):
            if number >= self._most:
                raise PickleRefusedError(f"it has more than {self._most:,} operations")
            self._values.elements_left += 1
            action = _ACTIONS.get(opcode.name)
            if action is not None:
                action(self, argument)
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            else:
                raise PickleRefusedError(f"it refers to objects outside of it ({opcode.name})")
        return self._stack.pop()  # genops itself asks for the end

    # -- the stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark, taken off."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.marked()

    def drop_marked(self) -> None:
        self.marked()

    def push_tuple(self, n: int) -> None:
        if len(self._stack) < n:
            raise IndexError(f"{n} values are wanted, {len(self._stack)} are there")
        self._stack[-n:] = [tuple(self._stack[-n:])]

    def repeat(self) -> None:
        self._stack.append(self._stack[-1])

    def memorise(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def memorise_next(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, place: int) -> None:
        self._stack.append(self._memo[place])

    # -- containers

    def put_items(self, items: list[Any]) -> None:
        """Into the list, set or record on top."""
        home = self._stack[-1]
        if isinstance(home, list):
            home.extend(items)
        elif isinstance(home, set):
            home.update(key_of(item) for item in items)
        elif isinstance(home, ForeignRecord):
            home.items.extend(items)
        else:
            raise PickleRefusedError(f"it puts elements into a {type(home).__name__}")

    def put_pairs(self, items: list[Any]) -> None:
        """Keys and values in turn, into the mapping or record on top."""
        home = self._stack[-1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(home, dict):
            home.update((key_of(key), value) for key, value in pairs)
        elif isinstance(home, ForeignRecord):
            home.items.extend(pairs)
        else:
            raise PickleRefusedError(f"it puts keys into a {type(home).__name__}")

    def push_pairs(self, items: list[Any]) -> None:
        self.push({})
        self.put_pairs(items)

    # -- what has a name

    def name(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleRefusedError("a name in it is no text")
        module = _HOMES.get(module, module)
        if module.startswith("numpy.core."):
            module = module.replace("numpy.core.", "numpy._core.", 1)
        return self._values.named(f"{module}.{name}")

    def push_stacked_name(self) -> None:
        name = self.pop()
        self.push(self.name(self.pop(), name))

    def call(self, known: Any, args: Any) -> None:
        if not isinstance(known, ForeignRecord) or not isinstance(args, tuple):
            raise PickleRefusedError(f"it calls a {type(known).__name__}")
        self._stack.append(self._values.called(known.name, args))

    def call_stacked(self) -> None:
        args = self._stack.pop()
        self.call(self._stack.pop(), args)

    def call_with_keywords(self) -> None:
        keywords, args = self._stack.pop(), self._stack.pop()
        if not isinstance(keywords, dict) or not isinstance(args, tuple):
            raise PickleRefusedError("it calls with what are no arguments")
        self._values.copy_elements(len(args))
        self.call(self._stack.pop(), (*args, keywords) if keywords else args)

    def call_marked(self, known: Any = None) -> None:
        items = self.marked()
        self.call(*((items[0], tuple(items[1:])) if known is None else (known, tuple(items))))

    def build(self) -> None:
        state = self._stack.pop()
        self._values.build(self._stack[-1], state)


def _check_depth(value: Any, most: int) -> None:
    """Refuse what is nested deeper, or within itself: nobody who goes through it could come to an end."""
    level = {id(value): value}
    for _ in range(most):
        level = {id(each): each for parent in level.values() for each in _inside(parent) if _is_container(each)}
        if not level:
            return
    raise PickleRefusedError(f"it is nested more than {most} deep, or within itself")


def _is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | set | frozenset | ForeignRecord)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, ForeignRecord):
        return [value.fields, value.args, value.items]
    return value if _is_container(value) else ()


_HOMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Operations that put what stands behind them on the stack."""
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.drop(),
    "POP_MARK": lambda machine, _: machine.drop_marked(),
    "DUP": lambda machine, _: machine.repeat(),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "DICT": lambda machine, _: machine.push_pairs(machine.marked()),
    "FROZENSET": lambda machine, _: machine.push(frozenset(key_of(item) for item in machine.marked())),
    "APPEND": lambda machine, _: machine.put_items([machine.pop()]),
    "APPENDS": lambda machine, _: machine.put_items(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.put_items(machine.marked()),
    "SETITEM": lambda machine, _: machine.put_pairs([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.put_pairs(machine.marked()),
    "PUT": lambda machine, place: machine.memorise(place),
    "BINPUT": lambda machine, place: machine.memorise(place),
    "LONG_BINPUT": lambda machine, place: machine.memorise(place),
    "MEMOIZE": lambda machine, _: machine.memorise_next(),
    "GET": lambda machine, place: machine.recall(place),
    "BINGET": lambda machine, place: machine.recall(place),
    "LONG_BINGET": lambda machine, place: machine.recall(place),
    "GLOBAL": lambda machine, name: machine.push(machine.name(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push_stacked_name(),
    "REDUCE": lambda machine, _: machine.call_stacked(),
    "NEWOBJ": lambda machine, _: machine.call_stacked(),
    "NEWOBJ_EX": lambda machine, _: machine.call_with_keywords(),
    "OBJ": lambda machine, _: machine.call_marked(),
    "INST": lambda machine, name: machine.call_marked(machine.name(*name.split(" ", 1))),
    "BUILD": lambda machine, _: machine.build(),
}
"""What each operation does; the second argument is what stands behind it in the file."""
