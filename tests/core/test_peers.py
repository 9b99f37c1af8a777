"""Options of other libraries are answered with ours, and every answer names something that exists."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator

import pytest

import monosema as ms
from monosema.core.config import option_paths
from monosema.core.peers import PEERS_OPTIONS, peers_option
from monosema.evaluation.benchmarks import config as benchmarks
from monosema.runs import config as runs
from monosema.runs.config import RunConfig

WITHOUT = {
    "what a call gives back": (
        "CrosscoderReport FeatureStore LanguageModel Latents Plan PromptReading ReplacementReport Report Session "
        "Tokens TrainingResult"
    ),
    "takes the config that SAE and its like make": "CrossLayerTranscoder SparseCoder",
    "raised, and never made": "RunInterrupted UserError",
    "a type of functions": "Callback",
}
"""Public names whose calls are not answered, by the reason."""


def test_every_path_of_the_table_is_an_option() -> None:
    paths = option_paths(RunConfig)
    sections = "|".join(sorted({path.partition(".")[0] for path in paths if "." in path} | {"cache"}))
    for name, answer in PEERS_OPTIONS.items():
        for path in re.findall(rf"\b(?:{sections})\.[a-z_0-9]+", answer):
            known = path == "cache.folder" or any(each == path or each.startswith(f"{path}.") for each in paths)
            assert known, f"{name}: {path} is no option"


def test_names_are_found_however_they_are_written() -> None:
    assert peers_option("training-tokens") == peers_option("training_tokens") == "training.tokens"
    assert peers_option("tokens") is None


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda: ms.TrainingConfig(l1_coefficient=5), "here it is training.sparsity"),
        (lambda: ms.TrainingConfig(tokns=5), "did you mean 'tokens'?"),
        (lambda: ms.SAE(8, dict_size=16), "here it is coder.d_sae"),
        (lambda: ms.SAE(8, 16, colour="red"), "SAE has no option 'colour'; known: d_in, d_sae"),
        (lambda: ms.TopK(k=2, lambd=1), "TopK has no option 'lambd'"),
        (lambda: ms.load_model("builtin", llm_dtype="float32"), "load_model has no option 'llm_dtype'; here it is"),
        (lambda: ms.ActivationStream(None, None, "x", out_batch_size=4), "here it is stream.batch_size"),
        (lambda: ms.train(None, None, training_tokens=4), "here it is training.tokens"),
        (lambda: ms.collect_features(None, None, None, n_eval_batches=4), "here it is evaluation.n_tokens"),
        (lambda: ms.collect_features(None, None, None, n_tokns=4), "did you mean 'n_tokens'?"),
        (lambda: ms.load("x", sae_id="y"), "here it is name (load's second argument)"),
        (lambda: runs.StreamOptions(train_batch_size_tokens=4), "here it is stream.batch_size"),
    ],
)
def test_python_calls_are_answered_too(call, answer: str) -> None:
    with pytest.raises(TypeError, match=re.escape(answer)) as raised:
        call()
    assert isinstance(raised.value, ms.UserError)


def test_every_public_call_answers() -> None:
    passed_over = {name for names in WITHOUT.values() for name in names.split()}
    silent = {name for name in ms.__all__ if name not in passed_over and not _answers(getattr(ms, name))}
    assert silent == set(), "add explains_options (core/peers.py)"
    assert passed_over <= set(ms.__all__)


def _answers(named: Callable[..., object]) -> bool:
    """Whether a call with an option of another library's is told what it is here."""
    if not callable(named):
        return True
    try:
        named(save_steps=1)
    except ms.UserError as error:
        return "here it is training.checkpoint_every" in str(error)
    except TypeError:
        return False
    return False


REQUIRED = {"k": 3, "tokens": 9, "source": "x", "folder": "x", "budgets": (1, 2), "parts": {}, "widths": (1, 2)}
"""Values of what configs need."""


def _public_configs() -> Iterator[type]:
    for home in (runs, benchmarks, ms):
        for name in dir(home) if home is not ms else ms.__all__:
            config = getattr(home, name)
            if isinstance(config, type) and dataclasses.is_dataclass(config) and (home is ms or _is_of(config, home)):
                yield config


def _is_of(config: type, home: object) -> bool:
    return inspect.getmodule(config) is home


def _whole_fields() -> Iterator[tuple[type, str]]:
    """Configs of the caller's, and their fields of one whole number or none."""
    passed_over = {name for names in WITHOUT.values() for name in names.split()}
    for config in _public_configs():
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            if config.__name__ not in passed_over and hints[field.name] in (int, typing.Optional[int]):  # noqa: UP045
                yield config, field.name


@pytest.mark.parametrize(("config", "name"), list(_whole_fields()), ids=lambda each: getattr(each, "__name__", each))
def test_configs_take_whole_numbers_as_they_are_typed(config: type, name: str) -> None:
    fields = {each.name: each for each in dataclasses.fields(config)}
    required = {
        each.name: REQUIRED[each.name]
        for each in fields.values()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    default = fields[name].default
    value = default if type(default) is int else 3
    if config.__name__ == "Matryoshka":
        required["widths"] = REQUIRED["widths"]
    made = config(**{**required, name: float(value)})
    assert type(getattr(made, name)) is int
    assert getattr(made, name) == value
