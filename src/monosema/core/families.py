"""Families of configs: an abstract class whose kinds are registered by name.

A field annotated with a family holds one of its kinds, as a field annotated with a union holds one of its members. A
union is closed; a family takes further kinds from other packages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from monosema.core.errors import ConfigError
from monosema.core.spelling import matching_name

K = TypeVar("K", bound=type)


class Family:
    """The base of an abstract class that heads a family; its kinds are frozen dataclasses below that class."""

    is_variant: ClassVar[bool] = True
    """Whether the plain form carries the class's name under ``kind``."""
    _kinds: ClassVar[dict[str, type]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if Family in cls.__bases__:
            cls._kinds = {}

    @classmethod
    def kinds(cls) -> Mapping[str, type]:
        """The registered kinds by name, in the order of their registration."""
        return dict(cls._kinds)

    @classmethod
    def register(cls, kind: K) -> K:
        """Add ``kind``, so that configs, files and the command line know it by its name; for use as a decorator.

        A class that is defined again under its name in the same module takes the place of the first. Raises
        ``ConfigError`` for a name that another kind has, and for what is not a frozen dataclass of the family.
        """
        name = kind.__name__
        if not (issubclass(kind, cls) and dataclasses.is_dataclass(kind) and _is_frozen(kind)):
            raise ConfigError(
                f"{name} cannot be registered: expected a subclass of {cls.__name__} that is a dataclass with "
                f"frozen=True; put @dataclass(frozen=True, kw_only=True) below the registration"
            )
        taken = matching_name(name, cls._kinds)
        if taken is not None and _place(cls._kinds[taken]) != _place(kind):
            raise ConfigError(
                f"{name} cannot be registered: {taken} of {cls._kinds[taken].__module__} has this name already; "
                "choose another"
            )
        cls._kinds[name] = kind
        return kind


def is_family(expected: Any) -> bool:
    """Whether the annotation ``expected`` is the head of a family."""
    return isinstance(expected, type) and Family in expected.__bases__


def _is_frozen(kind: Any) -> bool:
    return bool(kind.__dataclass_params__.frozen)


def _place(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__
