"""Fields by which a file could ask for more than to be read: to run code, to fetch, to write."""

from __future__ import annotations

import json
import random
from typing import Any

URL = "https://fetch.invalid/a.txt"
CODE = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilLM",
        "AutoTokenizer": [None, "modeling_evil.EvilTokenizer"]}  # fmt: skip
FIELDS: list[tuple[str, Any]] = [
    ("trust_remote_code", True), ("dataset_trust_remote_code", True), ("trust_remote_code", "true"), ("auto_map", CODE),
    ("model_kwargs", {"trust_remote_code": True}), ("model_kwargs", {"offload_folder": "../written"}),
    ("model_kwargs", {"attn_implementation": "owner/kernel"}), ("model_from_pretrained_kwargs", {"token": "x"}),
    ("load_kwargs", {"trust_remote_code": True}), ("dataset_kwargs", {"trust_remote_code": True}),
    ("forward_kwargs", {"path": URL}), ("attn_implementation", "owner/kernel"), ("custom_generate", "owner/code"),
    ("_attn_implementation_internal", "owner/kernel"), ("model_type", "evil"), ("custom_pipelines", {}),
    ("source", URL), ("source", "s3://fetch.invalid/a.txt"), ("source", f"simplecache::{URL}"), ("tokenizer", URL),
    ("source", "json"), ("source", "pandas"), ("source", "modeling_evil.py"), ("data_files", [URL]), ("data_dir", URL),
    ("mixture", {"a": {"source": URL}}), ("url", URL), ("endpoint", "https://fetch.invalid"), ("token", "hf_stolen"),
    ("hf_token", "hf_stolen"), ("proxies", {"https": URL}), ("cache_dir", "../written"), ("out", "../written"),
    ("output_dir", "../written"), ("folder", "../written"), ("save_to", "/written"), ("file", "../written"),
    ("filename", "../written"), ("device_map", {"": "disk"}), ("device_map", "disk"), ("offload_folder", "../written"),
    ("n_processes", 64), ("compile", "max-autotune"), ("_target_", "os.system"), ("py/object", "os.system"),
    ("start_from", URL), ("revision", "../../.."), ("format", URL), ("_format_type", "custom"), ("kind", "os.system"),
]  # fmt: skip
"""Names and values."""

_LINES = [
    "MONOSEMA_MODEL__TRUST_REMOTE_CODE=true", "export MONOSEMA_MODEL__TRUST_REMOTE_CODE = 'true'", "HF_TOKEN=hf_x",
    "MONOSEMA_MODEL={trust_remote_code: true}", "MONOSEMA_MODEL__MODEL_KWARGS__TRUST_REMOTE_CODE=true",
    "MONOSEMA_OTHER_MODELS__B__TRUST_REMOTE_CODE=yes", "monosema_model__trust_remote_code=true", f"HF_ENDPOINT={URL}",
    "MONOSEMA_OTHER_MODELS={b: {source: x, trust_remote_code: true}}", f"HTTPS_PROXY={URL}", "PYTHONSTARTUP=evil.py",
    f"MONOSEMA_TOKENS__DATA_FILES=['{URL}']", "LD_PRELOAD=./evil.so", "HF_DATASETS_TRUST_REMOTE_CODE=1",
]  # fmt: skip


def planted(rng: random.Random, value: Any) -> Any:
    """``value`` with one of ``FIELDS``, or a few, in one of its mappings each."""
    nodes: list[dict[Any, Any]] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            nodes.append(node)
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            visit(each)

    visit(value)
    for _ in range(rng.choice([1, 1, 2, 4]) if nodes else 0):
        name, content = rng.choice(FIELDS)
        rng.choice(nodes)[name] = json.loads(json.dumps(content))
    return value


def planted_lines(rng: random.Random, content: bytes) -> bytes:
    """A ``.env`` with such lines."""
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(_LINES).encode())
    return b"\n".join(lines)
