"""What every benchmark reports: a frozen record that a terminal, a notebook and a JSON file can show."""

from __future__ import annotations

import abc
import math
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union

import torch
from torch import Tensor

from monosema.core.errors import FileError, first_line
from monosema.core.files import read_json, write_json
from monosema.core.plain import is_same
from monosema.core.printable import escaped, terminal_lines
from monosema.evaluation.benchmarks.intervals import Interval
from monosema.evaluation.report import labelled, shown

R = TypeVar("R", bound="BenchmarkReport")
Cell = Interval | float | int | str


@dataclass(frozen=True)
class Table:
    """Figures in rows, as they are shown."""

    heads: Sequence[str]
    """Of the columns."""
    rows: Sequence[Sequence[Cell]]
    """As many cells each."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport(abc.ABC):
    """What one benchmark found in one dictionary; seeds and options are those of its ``config``.

    A value is NaN where there was nothing to measure. Fields that are left out of comparisons hold what is measured
    for each latent; they are None in a report read from a file without them.
    """

    benchmark: ClassVar[str]
    """The benchmark's name."""
    version: ClassVar[int] = 1
    """Of the fields; a report of another version is refused when read."""

    d_sae: int
    """Latents of the dictionary."""
    hook_name: str
    """Its site."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""

    def to_dict(self, *, per_latent: bool = False) -> dict[str, Any]:
        """The fields as JSON values, NaN as None; what there is for each latent only if asked for."""
        return {"benchmark": self.benchmark, "version": self.version, **_to_json(self, per_latent)}

    @classmethod
    def from_dict(cls: type[R], plain: Mapping[str, Any]) -> R:
        """The report that ``to_dict`` wrote; ``FileError`` where it is another benchmark's, or damaged."""
        named = plain.get("benchmark"), plain.get("version")
        if named[0] != cls.benchmark or not is_same(named[1], cls.version):
            raise FileError(
                f"expected a report of the benchmark {cls.benchmark!r} in version {cls.version}, got {named[0]!r} in "
                f"version {named[1]!r}"
            )
        values = {name: value for name, value in plain.items() if name not in ("benchmark", "version")}
        try:
            report: R = _from_json(cls, values, cls.__name__)
        except ValueError as error:
            raise FileError(f"the report is damaged: {first_line(error)}") from error
        return report

    def save(self, path: str | os.PathLike[str], *, per_latent: bool = False) -> None:
        """Write ``to_dict`` as JSON."""
        write_json(path, self.to_dict(per_latent=per_latent))

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """The report saved at ``path``; ``FileError`` where it is another benchmark's, or damaged."""
        plain = read_json(path)
        try:
            return cls.from_dict(plain if isinstance(plain, Mapping) else {})
        except FileError as error:
            raise FileError(f"{path}: {first_line(error)}") from error

    @abc.abstractmethod
    def _title(self) -> str:
        """One line."""

    @abc.abstractmethod
    def _tables(self) -> list[Table]:
        """The figures."""

    def __str__(self) -> str:
        lines = [self._title()]
        for table in self._tables():
            cells = [list(table.heads), *([_shown(cell) for cell in row] for row in table.rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for first, *others in cells:
                aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
                lines.append("  " + "  ".join([first.ljust(widths[0]), *aligned]))
        return terminal_lines([*lines, *labelled("note", self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Tables for notebooks."""
        parts = [f"<p>{escaped(self._title())}</p>"]
        for table in self._tables():
            heads = "".join(f"<th>{escaped(head)}</th>" for head in table.heads)
            rows = [
                "<tr>" + "".join(f"<td>{escaped(_shown(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
            ]
            parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>")
        notes = "".join(f"<li>{escaped(note)}</li>" for note in self.notes)
        return "".join([*parts, f"<ul>{notes}</ul>" if notes else ""])


def _shown(cell: Cell) -> str:
    return str(cell) if isinstance(cell, Interval) else shown(cell)


def _to_json(value: Any, per_latent: bool) -> Any:
    if isinstance(value, Tensor):
        return _to_json(value.tolist(), per_latent)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        kept = [each.name for each in fields(value) if per_latent or each.compare]
        return {name: _to_json(getattr(value, name), per_latent) for name in kept}
    if isinstance(value, Mapping):
        return {str(key): _to_json(each, per_latent) for key, each in value.items()}
    return [_to_json(each, per_latent) for each in value] if isinstance(value, (list, tuple)) else value


def _from_json(expected: Any, plain: Any, where: str) -> Any:
    """What ``_to_json`` made ``plain`` of, where the annotation is ``expected``."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, UnionType):
        (inner,) = (each for each in arguments if each is not NoneType)
        return None if plain is None else _from_json(inner, plain, where)
    if expected is float and plain is None:
        return math.nan
    if expected is Tensor and isinstance(plain, list) and {type(each) for each in plain} <= {int, float, NoneType}:
        is_whole = all(type(each) is int for each in plain)
        values = [math.nan if each is None else each for each in plain]
        return torch.tensor(values, dtype=torch.int64 if is_whole else torch.float64)
    if is_dataclass(expected) and isinstance(plain, Mapping):
        return _dataclass_from_json(typing.cast(type, expected), plain, where)
    if origin is tuple and isinstance(plain, list):
        return tuple(_from_json(arguments[0], each, f"{where}[{i}]") for i, each in enumerate(plain))
    if origin is Mapping and isinstance(plain, Mapping):
        key, value = arguments
        return {_key(key, name, where): _from_json(value, each, f"{where}.{name}") for name, each in plain.items()}
    if origin is Literal and any(is_same(plain, each) for each in arguments):
        return plain
    if expected is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if isinstance(expected, type) and type(plain) is expected:
        return plain
    raise ValueError(f"{where} holds {plain!s:.80}")


def _key(kind: Callable[[str], Any], name: str, where: str) -> Any:
    """A key as it was before JSON made text of it."""
    made = kind(name)
    if str(made) != name:
        raise ValueError(f"{where} has the key {name!r:.80}")
    return made


def _dataclass_from_json(cls: type, plain: Mapping[str, Any], where: str) -> Any:
    hints, values = typing.get_type_hints(cls), {}
    for each in fields(cls):
        if each.name in plain:
            values[each.name] = _from_json(hints[each.name], plain[each.name], f"{where}.{each.name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where} has no {each.name}")
    return cls(**values)
