"""The one place through which a run's figures go, and what it hands them to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable


@runtime_checkable
class Subscriber(Protocol):
    """What receives figures."""

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """``figures`` by name after ``step`` steps; numbers, and a few lists of numbers. A value is None where it was
        not measured. Names are those of ``docs/metrics.md``; a step may come several times, with other figures."""


@final
class Sink:
    """Hands figures to each subscriber, in order. It is a subscriber itself."""

    def __init__(self, subscribers: Sequence[Subscriber]):
        self._subscribers = list(subscribers)

    def add(self, subscriber: Subscriber) -> None:
        """Hand figures to ``subscriber`` as well, from now on."""
        self._subscribers.append(subscriber)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """``figures`` by name after ``step`` steps, to every subscriber."""
        for subscriber in self._subscribers:
            subscriber.log(step, figures)


@final
class Named:
    """Hands figures on with ``NAME/`` before the name of each: one of several coders of a run."""

    def __init__(self, name: str, subscriber: Subscriber):
        self._name, self._subscriber = name, subscriber

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """``figures`` of the coder after ``step`` steps."""
        self._subscriber.log(step, {f"{self._name}/{figure}": value for figure, value in figures.items()})
