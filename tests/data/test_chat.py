"""Conversations become text by the tokenizer's template, wherever they are kept."""

from __future__ import annotations

import json

import datasets
import pytest
from data_tiny import word_tokenizer

from monosema.core.errors import ConfigError, DataError
from monosema.data.config import TextSource, load_tokens
from monosema.data.documents import documents_from, open_source

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant', 'system'] %}"
    "{{ raise_exception('who is ' + m['role']) }}{% endif %}"
    "<s> {{ 'w1' if m['role'] == 'user' else 'w2' }} {{ m['content'] }} {% endfor %}"
)
OPENAI = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6 w7"}]
SHAREGPT = [{"from": "human", "value": "w5"}, {"from": "gpt", "value": "w6 w7"}]
TEXT = "<s> w1 w5 <s> w2 w6 w7 "


def chat_tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts_of(source, tokenizer, column=None):
    opened = open_source(TextSource(source=source))
    return [document.text for document in documents_from(opened, column=column, tokenizer=tokenizer)]


@pytest.mark.parametrize("messages", [OPENAI, SHAREGPT])
@pytest.mark.parametrize("column", ["conversation", "conversations", "messages"])
def test_both_forms_in_every_usual_column_go_through_the_template(tmp_path, messages, column):
    rows = [{column: messages, "id": "x"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    for source in (rows, dataset, dataset.to_iterable_dataset(), tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        assert texts_of(source, chat_tokenizer()) == [TEXT]
    assert texts_of([messages], chat_tokenizer()) == [TEXT]


def test_text_comes_first_and_a_column_of_another_name_can_be_given():
    row = {"dialogue": OPENAI, "text": "plain"}
    assert texts_of([row], chat_tokenizer()) == ["plain"]
    assert texts_of([row], chat_tokenizer(), "dialogue") == [TEXT]


def test_a_mark_that_the_template_writes_is_not_written_twice():
    tokens = load_tokens([OPENAI], chat_tokenizer(), 7, heldout_fraction=0.0)
    assert tokens.train.contexts.tolist() == [[0, 5, 9, 0, 6, 10, 11]]


def test_what_cannot_be_written_names_the_place_and_the_fix():
    with pytest.raises(
        ConfigError, match=r"item 0: column 'messages' holds conversations, and .* no chat template; use"
    ):
        texts_of([{"messages": OPENAI}], word_tokenizer())
    with pytest.raises(DataError, match=r"item 1: column 'messages': the tokenizer's .* refuses .*who is judge"):
        texts_of([{"messages": OPENAI}, {"messages": [{"role": "judge", "content": "x"}]}], chat_tokenizer())
    with pytest.raises(DataError, match="a message has 'from' and no 'value'"):
        texts_of([{"messages": [{"from": "human", "text": "x"}]}], chat_tokenizer())
    with pytest.raises(DataError, match=r"holds a list, expected text or a list of .role, content. messages"):
        texts_of([{"messages": []}], chat_tokenizer())
