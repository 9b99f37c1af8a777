"""``run_benchmark``: a benchmark by name, on a dictionary, the model it records and data from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, unknown_name
from monosema.core.progress import doing
from monosema.data.rebuild import model_again, override, recorded_options
from monosema.evaluation.benchmarks import data_files
from monosema.evaluation.benchmarks.absorption import measure_absorption
from monosema.evaluation.benchmarks.config import (
    AblationConfig,
    AbsorptionConfig,
    MetaConfig,
    ProbingConfig,
    RavelConfig,
    TruthConfig,
)
from monosema.evaluation.benchmarks.labels import LABEL_SETS
from monosema.evaluation.benchmarks.probing import probe_texts, probe_tokens
from monosema.evaluation.benchmarks.ravel import cause_and_isolation
from monosema.evaluation.benchmarks.report import BenchmarkReport
from monosema.evaluation.benchmarks.scr import spurious_removal
from monosema.evaluation.benchmarks.texts import SLOT, text_rows, word_rows
from monosema.evaluation.benchmarks.tpp import targeted_perturbation
from monosema.evaluation.benchmarks.truth import ground_truth
from monosema.models import LanguageModel
from monosema.runs.decoder_structure import decoder_structure


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where a benchmark's data lies and how it is read; each benchmark takes some of these."""

    data: str | None = None
    """The file; ``monosema.evaluation.benchmarks.data_files`` says what each benchmark reads."""
    labels: str | None = None
    """Of ``probe``: a built-in set of token labels, in place of a file; ``python`` by default."""
    text_column: str | None = None
    """Of ``probe`` and ``tpp``: where the text is; ``text`` by default."""
    label_column: str | None = None
    """Of ``probe`` and ``tpp``: where its label is; ``label`` by default."""
    template: str | None = None
    """Of ``absorption``: the prompt around each word, with ``{word}`` in its place; the word alone by default."""
    context_size: int | None = None
    """Of ``tpp`` and ``scr``: tokens read of each text; 128 by default."""


@dataclass(frozen=True)
class _Given:
    """What a benchmark is run on."""

    coder: Dictionary
    config: Any
    options: DataOptions
    model_source: str | None
    trust_remote_code: bool
    progress: bool

    @property
    def file(self) -> str:
        assert self.options.data is not None
        return self.options.data

    def model(self) -> LanguageModel:
        """The recorded model, or the one named instead."""
        recorded = recorded_options(self.coder.metadata)
        if "model" not in recorded:
            raise ConfigError("the dictionary reads several models; benchmarks need one that reads a single model")
        chosen: dict[str, Any] = {} if self.model_source is None else {"source": self.model_source}
        if self.trust_remote_code:
            chosen["trust_remote_code"] = True
        with doing("loading the model", enabled=self.progress):
            return model_again(override(recorded["model"], chosen, "model"))

    def labelled(self) -> data_files.LabelledTexts:
        """The texts of the file."""
        columns = self.options.text_column or "text", self.options.label_column or "label"
        return data_files.read_labelled(self.file, *columns)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that can be run by name."""

    config: type
    """The class of its options."""
    takes: tuple[str, ...]
    """The data options it takes; ``data`` is required where it comes first."""
    run: Callable[[_Given], BenchmarkReport]
    """What is done."""


def run_benchmark(
    name: str,
    coder: Dictionary,
    config: Any = None,
    options: DataOptions | None = None,
    *,
    model: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> BenchmarkReport:
    """Run the benchmark called ``name`` (``BENCHMARKS`` has them) on ``coder``.

    Args:
        name: of the benchmark.
        coder: the dictionary; where a model is needed, it must record one.
        config: options of the benchmark's config class, its defaults if not given.
        options: where the data lies.
        model: a model in place of the recorded one.
        trust_remote_code: whether code that comes with the model may run, whatever the dictionary says.
        progress: show bars on a terminal, logged lines elsewhere.

    Raises ``UnknownNameError`` for another name, ``ConfigError`` for data options that the benchmark needs or does not
    take, and what reading the data and the benchmark itself raise.
    """
    benchmark, options = find_benchmark(name), options or DataOptions()
    given = [each.name for each in fields(options) if getattr(options, each.name) is not None]
    for option in given:
        if option not in benchmark.takes:
            takes = ", ".join(benchmark.takes) or "no data options"
            raise ConfigError(f"the benchmark {name} takes {takes}, got {option}; leave it out")
    if benchmark.takes[:1] == ("data",) and options.data is None:
        raise ConfigError(f"the benchmark {name} needs a file; give data")
    return benchmark.run(_Given(coder, config or benchmark.config(), options, model, trust_remote_code, progress))


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called so; ``UnknownNameError`` offers the nearest names."""
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def _truth(given: _Given) -> BenchmarkReport:
    return ground_truth(given.coder, data_files.read_features(given.file), given.config)


def _probe(given: _Given) -> BenchmarkReport:
    options = given.options
    if options.data is None:
        if options.text_column or options.label_column:
            raise ConfigError("columns are those of a file of texts; give data, or leave them out")
        label_set = options.labels or "python"
        if label_set not in LABEL_SETS:
            raise unknown_name("set of labels", label_set, LABEL_SETS)
        labels = LABEL_SETS[label_set]
        return probe_tokens(given.coder, given.model(), None, given.config, labels=labels, progress=given.progress)
    if options.labels is not None:
        raise ConfigError("labels names a built-in set, and data brings its own; give one of them")
    found = given.labelled()
    return probe_texts(given.coder, given.model(), found.texts, found.labels, given.config, progress=given.progress)


def _absorption(given: _Given) -> BenchmarkReport:
    words, hierarchy = data_files.read_words(given.file)
    template = given.options.template or SLOT
    rows = word_rows(given.coder, given.model(), words, template=template, progress=given.progress)
    return measure_absorption(given.coder, rows, words, hierarchy, given.config)


def _tpp(given: _Given) -> BenchmarkReport:
    found = given.labelled()
    size = given.options.context_size or 128
    rows = text_rows(given.coder, given.model(), found.texts, context_size=size, progress=given.progress)
    return targeted_perturbation(given.coder, rows, [str(label) for label in found.labels], given.config)


def _scr(given: _Given) -> BenchmarkReport:
    texts, target, spurious = data_files.read_confounded(given.file)
    size = given.options.context_size or 128
    rows = text_rows(given.coder, given.model(), texts, context_size=size, progress=given.progress)
    return spurious_removal(given.coder, rows, target, spurious, given.config)


def _ravel(given: _Given) -> BenchmarkReport:
    data = data_files.read_attributes(given.file)
    return cause_and_isolation(given.coder, given.model(), data, given.config, progress=given.progress)


def _meta(given: _Given) -> BenchmarkReport:
    return decoder_structure(given.coder, given.config, progress=given.progress)


BENCHMARKS = {
    "truth": Benchmark(TruthConfig, ("data",), _truth),
    "probe": Benchmark(ProbingConfig, ("labels", "data", "text_column", "label_column"), _probe),
    "absorption": Benchmark(AbsorptionConfig, ("data", "template"), _absorption),
    "tpp": Benchmark(AblationConfig, ("data", "text_column", "label_column", "context_size"), _tpp),
    "scr": Benchmark(AblationConfig, ("data", "context_size"), _scr),
    "ravel": Benchmark(RavelConfig, ("data",), _ravel),
    "meta": Benchmark(MetaConfig, (), _meta),
}
"""Every benchmark by its name."""
