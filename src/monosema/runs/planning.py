"""``plan``: what a run needs and how long it takes, said before anything of it is started."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from monosema.core.errors import ConfigError, DataError, UserError
from monosema.core.facts import Facts, shown_as_facts
from monosema.core.memory import readable_bytes
from monosema.core.peers import explains_options
from monosema.core.progress import doing, short_number
from monosema.core.words import counted
from monosema.data import Tokens
from monosema.data.cache.shards import DTYPES, CacheDtype
from monosema.runs.check import check_run
from monosema.runs.config import RunConfig
from monosema.runs.needs import DeviceMemory, Needs, needs, outline_models
from monosema.runs.pace import Pace, Times, measure, times
from monosema.runs.session import build_tokens
from monosema.runs.summary import duration

_GRAIN = 64


@shown_as_facts
@dataclass(frozen=True, repr=False)
class Plan:
    """A run that has not begun; ``str(plan)`` is what the command prints."""

    needs: Needs
    """Sizes, memory, operations, disk."""
    problems: tuple[str, ...]
    """What does not fit, each with what would; empty for a run that can begin."""
    pace: Pace | None
    """What was measured; None where nothing was, or where the run does not fit."""
    times: Times | None
    """How long the run takes at that pace."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with sums."""
        plain = asdict(self)
        for device, each in zip(plain["needs"]["memory"], self.needs.memory, strict=True):
            device["total"] = each.total
        plain["needs"]["disk"]["total"] = self.needs.disk.total
        if self.times is not None:
            plain["times"]["total"] = self.times.total
        return plain

    def __str__(self) -> str:
        lines = self._lines()
        width = max(map(len, lines))
        return "\n".join(f"{label:<{width}}  {text}" for label, text in lines.items())

    def _facts(self) -> Facts:
        problems = {"does not fit": "; ".join(self.problems)} if self.problems else {}
        return Facts("Plan of a run that has not begun", {**self._lines(), **problems})

    def _lines(self) -> dict[str, str]:
        return {**_size_lines(self.needs), **({} if self.times is None else _time_lines(self.pace, self.times))}


@explains_options
def plan(
    config: RunConfig,
    *,
    seconds: float = 10.0,
    out: str | os.PathLike[str] = ".",
    cache: str | None = None,
    progress: bool = False,
) -> Plan:
    """Plan the run of ``config``: parameters, memory, operations, disk and time.

    Only configurations, tokenizer and text are read for the sizes, so that models too large for this machine can be
    planned. Where the run fits, its models are then loaded and about ``seconds`` of its work are timed; nothing is
    written, and no random stream of the run is touched.

    Args:
        config: the run, as ``monosema train`` takes it.
        seconds: how long to measure; 0 for no measurement, and no weights.
        out: where the run folder would be.
        cache: also count a cache (``write_cache``) of the run's tokens in this type.
        progress: say each part of the work when it begins.

    Raises:
        DataError: the text is too short for the run.
        ConfigError: options that ``train`` refuses too; a model whose sizes are not known before it is loaded.
    """
    if seconds < 0:
        raise ConfigError(f"seconds must not be negative, got {seconds}; 0 measures nothing")
    stored = next((each for each in DTYPES if each == cache), None)
    if stored != cache:
        raise ConfigError(f"cache must be one of {', '.join(DTYPES)}, got {cache!r}")
    if config.cache is not None:
        raise ConfigError(
            "a plan counts the work of a model; to plan a run on a cache, leave out cache and name the model, text and "
            "sites that it was made of"
        )
    check_run(config)
    models = outline_models(config)
    began = time.perf_counter()
    tokens = build_tokens(config.tokens, models, progress=progress)
    load_text = time.perf_counter() - began

    def of(other: RunConfig, dtype: CacheDtype | None = stored) -> Needs:
        return needs(other, models, tokens, out=Path(out), cache=dtype, count_model=False)

    with doing("counting what the run needs", enabled=progress):
        wanted = needs(config, models, tokens, out=Path(out), cache=stored)
        with _quietly():
            problems = _problems(config, wanted, of, stored)
    if problems or seconds == 0:
        return Plan(wanted, problems, None, None)
    with doing("measuring the run's pace", enabled=progress):
        pace = measure(config, tokens, wanted, seconds)
    return Plan(wanted, problems, pace, times(config, tokens, wanted, pace, load_text))


def less_memory(config: RunConfig, tokens: Tokens | None, free: int | None) -> str:
    """Which options would make the run of ``config``, which ran out of memory, fit into ``free`` bytes; in words.

    Where the estimate says that it fits, the advice is for three quarters of what it counts. ``tokens`` is the run's
    text, read again where it was not loaded yet.
    """
    try:
        with _quietly():
            models = outline_models(config)
            text = build_tokens(config.tokens, models) if tokens is None else tokens
            wanted = needs(config, models, text, count_model=False)
            device = wanted.memory[0]
            most = min(device.total * 3 // 4, device.total if free is None else free)

            def fits(other: RunConfig) -> bool:
                return needs(other, models, text, count_model=False).memory[0].total <= most

            fitting = _fitting(config, fits, wanted)
    except UserError as error:  # the run cannot be planned either
        return f"lower coder.d_sae, stream.batch_size or stream.model_batch_size (it cannot be planned: {error})"
    had = "" if free is None else f" of {readable_bytes(free)} free when it started"
    return f"the run needs about {readable_bytes(device.total)}{had}; {fitting}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Inside, what each run looked at on the way logs is not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _problems(config: RunConfig, wanted: Needs, of: Callable[..., Needs], cache: CacheDtype | None) -> tuple[str, ...]:
    found = []
    for index, device in enumerate(wanted.memory):
        if not device.fits:

            def memory_fits(other: RunConfig, index: int = index) -> bool:
                return of(other, None).memory[index].fits

            fitting = _fitting(config, memory_fits, wanted)
            found.append(f"{_memory_text(device)} do not fit into memory of {device.device}; {fitting}")
    disk = wanted.disk
    if not disk.fits:
        smaller = [each for each in DTYPES if cache is not None and of(config, each).disk.fits]
        advice = [f"a cache in {smaller[0]}"] if smaller else []
        if config.training.keep_every and of(_with(config, "training", keep_every=0)).disk.fits:
            advice.append("training.keep_every=0")
        if config.coder.start_from is None:
            largest = _largest(config, "coder", "d_sae", wanted.d_sae, lambda each: of(each).disk.fits)
            advice += [f"coder.d_sae={largest}"] if largest else []
        found.append(f"{_disk_text(wanted)} do not fit on the disk; {_would_fit(advice)}")
    return tuple(found)


def _fitting(config: RunConfig, fits: Callable[[RunConfig], bool], wanted: Needs) -> str:
    """What would fit, each change by itself, the rest as it is."""
    stream = config.stream
    limits = [
        ("stream", "batch_size", stream.batch_size),
        ("stream", "chunk_bytes", wanted.rows_in_chunk * wanted.row_bytes),
        ("stream", "model_batch_size", stream.model_batch_size),
    ]
    if config.coder.start_from is None:
        limits.insert(0, ("coder", "d_sae", wanted.d_sae))
    found = [(f"{section}.{name}", _largest(config, section, name, now, fits)) for section, name, now in limits]
    return _would_fit([f"{name}={value}" for name, value in found if value is not None])


def _would_fit(advice: list[str]) -> str:
    if not advice:
        return "no change of one option makes it fit; use a smaller model or a larger machine"
    return "one of these would: " + ", ".join(advice)


def _largest(config: RunConfig, section: str, name: str, now: int, fits: Callable[[RunConfig], bool]) -> int | None:
    """The largest value below ``now`` with which the run fits, in steps of 64 where it is as large; None for none."""
    grain = _GRAIN if now > 16 * _GRAIN else 1

    def verdict(value: int) -> bool | None:
        try:
            return fits(_with(config, section, **{name: value}))
        except (ConfigError, DataError):  # too small for something else
            return None

    low, high = 0, -(-now // grain)  # fits or is too small at low, does not fit at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if verdict(middle * grain) is False else (middle, high)
    return low * grain if low and verdict(low * grain) else None


def _with(config: RunConfig, section: str, **options: Any) -> RunConfig:
    if "chunk_bytes" in options:
        options["chunk_contexts"] = None
    if "d_sae" in options:
        options["expansion_factor"] = None
    return replace(config, **{section: replace(getattr(config, section), **options)})


def _memory_text(device: DeviceMemory) -> str:
    parts = sorted(device.parts.items(), key=lambda part: -part[1])
    free = "" if device.free is None else f" of {readable_bytes(device.free)} free"
    return f"{readable_bytes(device.total)}{free} ({', '.join(f'{what} {readable_bytes(n)}' for what, n in parts)})"


def _disk_text(needs: Needs) -> str:
    disk = needs.disk
    parts = [
        f"{counted(disk.n_checkpoints, 'checkpoint')} of {readable_bytes(disk.checkpoint)}",
        f"dictionary {readable_bytes(disk.dictionary)}",
        *([f"cache {readable_bytes(disk.cache)}"] if disk.cache else []),
    ]
    return f"{readable_bytes(disk.total)} of {readable_bytes(disk.free)} free in {disk.folder} ({', '.join(parts)})"


def _size_lines(needs: Needs) -> dict[str, str]:
    work = needs.operations
    model = "not counted" if work.model is None else short_number(work.model)
    total = "" if work.total is None else f"; {work.total:.3g} in all"
    return {
        "model": counted(needs.model_parameters, "parameter"),
        "dictionary": f"{counted(needs.dictionary_parameters, 'parameter')}, {counted(needs.d_sae, 'latent')}",
        "run": f"{counted(needs.n_steps, 'step')}, {counted(needs.n_tokens, 'token')}; {needs.n_model_tokens:,} "
        "through the model, "
        f"{counted(needs.rows_in_chunk, 'row')} in a chunk",
        **{f"memory ({each.device})": _memory_text(each) for each in needs.memory},
        "operations": f"a token: model {model}, encoder {short_number(work.encoder)}, rest of the step "
        f"{short_number(work.rest)}{total}",
        "disk": _disk_text(needs),
    }


def _time_lines(pace: Pace | None, times: Times) -> dict[str, str]:
    assert pace is not None
    return {
        "pace": f"model {short_number(pace.harvest)} tok/s, {1 / pace.step:.3g} steps/s; together "
        f"{short_number(times.tokens_per_second)} tok/s",
        "time": f"{duration(times.total)}: start {duration(times.start)}, training {duration(times.training)} "
        f"(collecting activations {duration(times.harvest)}, steps {duration(times.steps)}), "
        f"checkpoints {duration(times.checkpoints)}, evaluation {duration(times.evaluation)}",
    }
