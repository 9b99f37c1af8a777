"""Attributes of other libraries are answered with ours, do not exist, and every answer names something that does."""

import copy
import inspect
import pickle
import re

import pytest

import monosema as ms
from monosema.core.peers_attributes import OF_CONSTRUCTOR, OF_DICTIONARY, OF_MODEL, OF_MODULE


@pytest.fixture(scope="module")
def model() -> ms.LanguageModel:
    return ms.load_model("builtin")


def owners(model: ms.LanguageModel) -> list:
    coder, stack = ms.SAE(4, 8, activation=ms.TopK(2)), ms.CLT([4], [4], 8)
    return [
        (ms, OF_MODULE),
        (ms.SAE, OF_CONSTRUCTOR),
        (coder, OF_DICTIONARY),
        (stack, OF_DICTIONARY),
        (model, OF_MODEL),
    ]


def test_listed_names_are_answered_and_do_not_exist(model: ms.LanguageModel) -> None:
    for owner, table in owners(model):
        for name, answer in table.items():
            assert not hasattr(owner, name), name
            with pytest.raises(AttributeError, match=re.escape(f"here it is {answer}")):
                getattr(owner, name)
            assert name not in dir(owner)
        with pytest.raises(AttributeError) as raised:
            owner.nothing_of_this_name  # noqa: B018
        assert "here it is" not in str(raised.value)


def test_every_answer_names_something_that_exists(model: ms.LanguageModel) -> None:
    answers = [answer for table in (OF_MODULE, OF_CONSTRUCTOR, OF_DICTIONARY, OF_MODEL) for answer in table.values()]
    for name in re.findall(r"\bms\.([A-Za-z_]+)", " ".join(answers)):
        assert hasattr(ms, name), name
    coder = ms.SAE(4, 8, activation=ms.TopK(2))
    for owner, table in ((coder, OF_DICTIONARY), (model, OF_MODEL)):
        for answer in table.values():
            if not answer.startswith(("ms.", "the ", "nothing", "x -", "model.")):
                assert hasattr(owner, re.split(r"\W", answer)[0]), answer


def test_constructors_stay_functions_to_their_users() -> None:
    assert pickle.loads(pickle.dumps(ms.SAE)) is ms.SAE is copy.deepcopy(ms.SAE)  # noqa: S301
    assert ms.SAE.__doc__.startswith("A sparse autoencoder")
    assert list(inspect.signature(ms.SAE).parameters)[:2] == ["d_in", "d_sae"]
