import logging
from pathlib import Path
from typing import Any

import pytest

from monosema.core import foreign
from monosema.core.errors import ConfigError
from monosema.core.option_fields import file_fields
from monosema.data.rebuild import PARTS

OBEYED = {
    "model": [
        ("source", "owner/name"), ("source", "/a/folder"), ("revision", "main"), ("device_map", "auto"),
        ("device_map", {"": 0, "lm_head": "cuda:1"}), ("tokenizer", "owner/name"), ("tokenizer", False),
        ("model_kwargs", {"attn_implementation": "eager", "low_cpu_mem_usage": True}),
        ("model_kwargs", {"quantization_config": {"quant_method": "bitsandbytes", "_load_in_4bit": True,
                                                  "bnb_4bit_quant_type": "nf4"}}),
        ("forward_kwargs", {"output_attentions": True, "n": 2, "x": None}),
    ],
    "tokens": [
        ("source", "stdlib"), ("source", "texts/*.jsonl"), ("source", "owner/name"),
        ("source", "hf://datasets/owner/name/a.jsonl"), ("data_files", ["a.jsonl"]), ("data_files", "a.jsonl"),
        ("mixture", {"a": {"source": "stdlib", "weight": 2}}), ("exclude_special_tokens", [1, 2]),
        ("exclude_special_tokens", False), ("heldout_fraction", 0.5), ("packing", {}),
    ],
    "stream": [("hook_names", ["a", "b"]), ("hook_names", "a"), ("batch_size", 8), ("dtype", "float32")],
}  # fmt: skip

REFUSED = {
    "model": [
        ("source", "https://fetch.invalid/x"), ("source", 5), ("tokenizer", "s3://bucket/x"), ("tokenizer", True),
        ("device_map", {"": "disk"}), ("device_map", "disk"), ("device_map", "../written"), ("device_map", [0.5]),
        ("model_kwargs", {"trust_remote_code": True}), ("model_kwargs", {"token": "hf_x"}), ("model_kwargs", "x"),
        ("model_kwargs", {"attn_implementation": "owner/kernel"}), ("model_kwargs", {"offload_folder": "../written"}),
        ("model_kwargs", {"attn_implementation": "flash_attention_2"}), ("model_kwargs", {"use_kernels": True}),
        ("model_kwargs", {"low_cpu_mem_usage": "true"}),
        ("model_kwargs", {"quantization_config": {"quant_method": "gptq", "dataset": "c4"}}),
        ("model_kwargs", {"quantization_config": {"load_in_4bit": True, "dataset": "c4"}}),
        ("forward_kwargs", {"path": "x"}), ("forward_kwargs", []),
    ],
    "tokens": [
        ("source", "https://fetch.invalid/x"), ("source", "simplecache::hf://datasets/a/b"), ("source", "file:///a"),
        ("source", "hf://datasets/a/b::https://fetch.invalid"), ("source", "zip://a::b"), ("source", ["a"]),
        ("data_files", ["a", "https://fetch.invalid/x"]), ("data_dir", "s3://bucket"), ("mixture", []),
        ("mixture", {"a": {"source": "https://fetch.invalid/x"}}), ("mixture", {"a": "stdlib"}),
        ("mixture", {"a": {"source": "json", "data_files": ["https://fetch.invalid/x"]}}), ("streaming", "true"),
        ("context_size", True), ("context_size", 8.5), ("exclude_special_tokens", ["a"]), ("packing", "x"),
        ("heldout_fraction", "0.5"),
    ],
    "stream": [("hook_names", [1]), ("batch_size", "8"), ("seed", 0.5), ("dtype", 4)],
}  # fmt: skip


@pytest.mark.parametrize(("part", "name", "value"), [(p, *each) for p, pairs in OBEYED.items() for each in pairs])
def test_what_is_listed_is_taken(part: str, name: str, value: Any) -> None:
    assert foreign.listed(part, PARTS[part], {name: value}) == {name: value}
    foreign.refuse(part, PARTS[part], {name: value})


@pytest.mark.parametrize(("part", "name", "value"), [(p, *each) for p, pairs in REFUSED.items() for each in pairs])
def test_what_could_run_fetch_or_write_is_refused_by_name(part: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"says {part}\.{name} = "):
        foreign.refuse(part, PARTS[part], {name: value})


@pytest.mark.parametrize("part", PARTS)
def test_every_other_field_is_ignored_and_consent_is_named(part: str, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"trust_remote_code": True, "token": "hf_x", "endpoint": "https://fetch.invalid", "compile": "default",
             "n_processes": 64, "out": "/x", "cache_dir": "/x", "offload_folder": "/x", "auto_map": {}}  # fmt: skip
    with caplog.at_level(logging.INFO, logger="monosema"):
        assert foreign.listed(part, PARTS[part], asked) == {}
    for name in ("trust_remote_code", "token", "endpoint"):
        assert f"{part}.{name} is recorded, which does not count" in caplog.text
    assert "hf_x" not in caplog.text


def test_options_of_files_lose_what_only_the_caller_can_say() -> None:
    options = {
        "model": {"source": "x", "trust_remote_code": True, "model_kwargs": {"attn_implementation": "eager", "a": 1}},
        "other_models": {"token": {"trust_remote_code": "yes", "source": "y"}},
        "tokens": {"endpoint": "z"},
    }
    kept, withheld = foreign.withhold(options)
    assert kept == {
        "model": {"source": "x", "model_kwargs": {"attn_implementation": "eager"}},
        "other_models": {"token": {"source": "y"}},
        "tokens": {},
    }
    assert withheld == {
        "model.trust_remote_code": True,
        "model.model_kwargs.a": 1,
        "other_models.token.trust_remote_code": "yes",
        "tokens.endpoint": "z",
    }
    assert foreign.withhold({"model": {"trust_remote_code": False}}) == ({"model": {"trust_remote_code": False}}, {})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "model.trust_remote_code",
            True,
            "--model.trust-remote-code on the command line, or MONOSEMA_MODEL__TRUST_REM",
        ),
        ("model.model_kwargs.a", 1, "MONOSEMA_MODEL__MODEL_KWARGS__A=... in the environment"),
        ("model.model_kwargs.token", "hf_x", "HF_TOKEN in the environment of the command or in .env"),
        ("endpoint", "hf_x", "HF_ENDPOINT in the environment"),
    ],
)
def test_a_file_that_says_it_is_refused_unless_the_caller_says_the_same(path: str, value: Any, words: str) -> None:
    said: dict[str, Any] = {}
    node = said
    for part in path.split(".")[:-1]:
        node = node.setdefault(part, {})
    with pytest.raises(ConfigError, match=f"run.yaml sets {path}, which no file can") as caught:
        foreign.refuse_withheld({path: value}, said, "run.yaml")
    assert words in str(caught.value) and "hf_x" not in str(caught.value)
    node[path.split(".")[-1]] = value
    foreign.refuse_withheld({path: value}, said, "run.yaml")


def test_the_page_of_the_docs_names_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs/trust.md").read_text()
    fields = [*foreign.CALLER_ALONE, *foreign.MODEL_KWARGS, *foreign.ATTENTION, *foreign.SECRETS]
    for name in [*fields, *(name for config in PARTS.values() for name in file_fields(config))]:
        assert f"`{name}`" in page or f"{name}s |" in page, f"docs/trust.md does not name {name}"
