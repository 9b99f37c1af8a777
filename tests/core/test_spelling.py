"""What people type is understood; what files of others hold is held to exact types."""

import dataclasses

import pytest

import monosema as ms
from monosema.coders.config import CoderConfig
from monosema.core.config import from_plain, from_yaml, made_of, to_plain
from monosema.core.errors import ConfigError, FileError
from monosema.core.spelling import matching_name, spelled_out, whole_number, with_whole_numbers
from monosema.runs.config import RunConfig

KINDS = {"TopK": ms.TopK, "ReLU": ms.ReLU, "none": None}


@pytest.mark.parametrize(
    ("given", "taken"),
    [(1e6, 1_000_000), (1.5, 1.5), (2.0**60, 2.0**60), (float("inf"), float("inf")), ([1e3, "x"], [1000, "x"])],
)
def test_floats_without_a_fraction_are_whole(given: object, taken: object) -> None:
    found = with_whole_numbers(given)
    assert found == taken and type(found) is type(taken)


def test_whole_numbers_are_read_from_text() -> None:
    assert [whole_number(text) for text in ("12", "1e6", "2.5e3", "-3")] == [12, 1_000_000, 2500, -3]
    for text in ("1.5e0", "many", "nan", "1e400"):
        with pytest.raises(ValueError, match=r"whole number|could not convert|infinity"):
            whole_number(text)


def test_names_of_kinds() -> None:
    assert matching_name("top_k", KINDS) == matching_name("TOPK", KINDS) == "TopK"
    assert matching_name("topkk", KINDS) is None
    assert spelled_out("topk", KINDS) == {"kind": "TopK"}
    assert spelled_out("TopK(16)", KINDS) == spelled_out("top-k:16", KINDS) == {"kind": "TopK", "k": 16}
    assert spelled_out({"kind": "topk", "k": 3}, KINDS) == {"kind": "TopK", "k": 3}
    assert spelled_out("None", KINDS) is None
    assert spelled_out("other", KINDS) == "other"
    for text, message in {"relu(3)": "ReLU takes no number", "topk:x": "expected a number behind the name"}.items():
        with pytest.raises(ConfigError, match=message):
            spelled_out(text, KINDS)


def test_python_takes_whole_floats_and_k_by_position() -> None:
    assert (ms.TopK(16), ms.BatchTopK(32), ms.AbsTopK(4)) == (ms.TopK(k=16), ms.BatchTopK(k=32), ms.AbsTopK(k=4))
    config = ms.TrainingConfig(tokens=1e6, checkpoint_tokens=(1e3, 2e3))
    assert (config.tokens, config.checkpoint_tokens) == (1_000_000, (1000, 2000))
    assert type(config.tokens) is int and type(dataclasses.replace(config, tokens=2e6).tokens) is int
    assert type(ms.EvaluationOptions(n_tokens=1e5).n_tokens) is int
    coder = ms.SAE(4, 1e2, activation="topk")
    assert (coder.d_sae, coder.config.activation) == (100, ms.TopK(32))
    assert ms.SAE(4, 8, activation="TopK(3)").config.activation == ms.TopK(3)
    assert ms.SAE(4, 8, activation="relu").config.activation == ms.ReLU()
    with pytest.raises(ConfigError, match=r"TrainingConfig.tokens: expected a whole number, got 1.5"):
        ms.TrainingConfig(tokens=1.5)
    with pytest.raises(ConfigError, match=r"activation: expected one of ReLU, .* got 'gelu'"):
        ms.SAE(4, 8, activation="gelu")


def test_yaml_of_the_caller_is_read_as_typed() -> None:
    config = from_yaml(RunConfig, "{training: {tokens: 1.5e6}, coder: {activation: top_k(8), d_sae: 1e3}}")
    assert (config.training.tokens, config.coder.activation, config.coder.d_sae) == (1_500_000, ms.TopK(8), 1000)
    assert from_yaml(RunConfig, "coder: {activation: {kind: jumprelu}}").coder.activation == ms.JumpReLU()
    with pytest.raises(ConfigError, match=r"training.tokens: expected a whole number, got 1.5"):
        from_yaml(RunConfig, "training: {tokens: 1.5e0}")


def test_files_of_others_are_held_to_exact_types() -> None:
    plain = to_plain(CoderConfig(d_in=4, d_sae=8, d_out=4, activation=ms.TopK(2)))
    assert from_plain(CoderConfig, plain).d_sae == 8
    for change in ({"d_sae": 8.0}, {"activation": {**plain["activation"], "kind": "topk"}}, {"activation": "TopK(2)"}):
        with pytest.raises(ConfigError):
            from_plain(CoderConfig, {**plain, **change})
    with pytest.raises(FileError):
        made_of(ms.TrainingConfig, {"tokens": 64.0}, "a file")
