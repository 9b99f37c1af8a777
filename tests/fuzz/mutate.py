"""Damaged and forged copies of files: bytes for any file, and edits that know JSON, safetensors and gzip."""

from __future__ import annotations

import gzip
import json
import math
import random
import struct
import zlib
from typing import Any

import yaml
from plant import planted, planted_lines

Case = dict[str, bytes]
"""Files by their path in a folder."""

_DEEP = "\x00deep\x00"
_NUMBERS = [0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400]
_FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf]
_TEXTS = [
    "", "none", "null", "float32", "float64", "int8", "BF16", "F8_E4M3", "I64", "gated", "topk", "jumprelu", "monosema",
    "a" * 5000, "../secret", "/etc/passwd", "C:\\secret", "..", ".", "a\0b", "\ud800", "\u2028", "𝔘", "1e5", "9" * 5000,
    "2001-99-99",
]  # fmt: skip
_WORDS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b"\x1f\x8b", b"PK\x03\x04", b"{", b"}", b"[", b"]", b'"', b",", b":",
    b"&a", b"*a", b"<<: *a\n", b"!!python/object/apply:os.system ['true']", b"---\n", b"NaN", b"1e999", b"null", b"- ",
    b"\\ud800", b'{"__metadata__": 1}', b"MONOSEMA_", b"__", b"=", b"<|endoftext|>", b'"text"', b"[" * 5000,
    b'{"a":' * 3000, b"9" * 6000, b"../", b"\xed\xa0\x80",
]  # fmt: skip


def mutated(rng: random.Random, case: Case, others: list[Case]) -> Case:
    """A copy of ``case`` with one file or a few changed; ``others`` give parts."""
    new = dict(case)
    for _ in range(1 + int(rng.expovariate(1.5))):
        name = rng.choice(sorted(new))
        what = rng.random()
        if what < 0.01 and len(new) > 1:
            del new[name]
        elif what < 0.03:
            new[name] = rng.choice(list(new.values()))
        elif what < 0.06:
            new[name] = rng.choice(others).get(name, b"")
        else:
            new[name] = _changed(rng, name, new[name])
        if not new:
            return dict(case)
    return new


def _changed(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".env") and rng.random() < 0.4:
        return planted_lines(rng, content)
    if rng.random() < 0.35:
        return _bytes(rng, content)
    try:
        if name.endswith(".gz"):
            inner = _changed(rng, name.removesuffix(".gz"), gzip.decompress(content))
            return gzip.compress(inner, compresslevel=1)
        if name.endswith(".safetensors"):
            return _safetensors(rng, content)
        if name.endswith(".json"):
            return _dumped(rng, _edited(rng, json.loads(content)))
        if name.endswith(".yaml"):
            return _dumped(rng, _edited(rng, yaml.safe_load(content)))
        if name.endswith(".jsonl"):
            lines = content.split(b"\n")
            place = rng.randrange(len(lines))
            lines[place] = _dumped(rng, _edited(rng, json.loads(lines[place]))).replace(b"\n", b" ")
            return b"\n".join(lines)
    except (
        ValueError,
        TypeError,
        RecursionError,
        OSError,
        OverflowError,
        EOFError,
        zlib.error,
        struct.error,
        yaml.YAMLError,
    ):
        pass  # it was damaged before
    return _bytes(rng, content)


def _bytes(rng: random.Random, content: bytes) -> bytes:
    """Bits, pieces and length fields changed; headers and footers more often than the middle."""
    data = bytearray(content)
    for _ in range(1 + int(rng.expovariate(0.7))):
        n = len(data)
        near = rng.random()
        place = rng.randrange(n + 1) if near < 0.5 else min(n, rng.randrange(128)) if near < 0.8 else max(0, n - 64)
        match rng.randrange(9):
            case 0 if place < n:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.choice(_WORDS)
            case 3:
                del data[place : place + rng.randrange(1, 32)]
            case 4:
                size = rng.choice([1, 2, 4, 8])
                value = rng.choice([0, 1, -1, n, n - 8, 2**31, 2**62, rng.getrandbits(64)]) % 2 ** (8 * size)
                data[place : place + size] = value.to_bytes(size, rng.choice(["little", "little", "big"]))
            case 5:
                start = rng.randrange(n + 1)
                data[place:place] = data[start : start + rng.randrange(1, 200)]
            case 6:
                data[place : place + 4] = rng.randbytes(4)
            case 7:
                word = rng.choice(_WORDS)
                data[place : place + len(word)] = word
            case _ if place < n:
                data[place] = rng.choice(b'0129-"{}[],:.\n\t \0\xff')
        del data[100_000:]
    return bytes(data)


def _edited(rng: random.Random, value: Any) -> Any:
    """``value`` with one place inside replaced, dropped, renamed, doubled or moved, or with a field planted."""
    if rng.random() < 0.25:
        return planted(rng, value)
    places: list[tuple[Any, Any]] = []
    values: list[Any] = []

    def visit(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            values.append(node[key])
            visit(node[key])

    visit(value)
    if not places or rng.random() < 0.02:
        return _hostile(rng)
    node, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            name = rng.choice([*_TEXTS, f"{key}s", rng.choice([*map(str, node)])])
            node[name] = node.pop(key)
        case 2:
            node[key] = json.loads(json.dumps(rng.choice(values)))
        case 3 if isinstance(node, list):
            node.insert(key, json.loads(json.dumps(node[key])))
        case 4 if isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
            node[key] = rng.choice([node[key] + 1, node[key] - 1, -node[key], str(node[key]), float(node[key])])
        case 5:
            node[key] = rng.choice([[node[key]], {"kind": node[key]}, {"": node[key]}, str(node[key])])
        case _:
            node[key] = _hostile(rng)
    return value


def _hostile(rng: random.Random) -> Any:
    return rng.choice(
        [rng.choice(_NUMBERS), rng.choice(_FLOATS), rng.choice(_TEXTS), None, True, False, [], {}, _DEEP, [[]], [None]]
    )


def _dumped(rng: random.Random, value: Any) -> bytes:
    """``value`` as JSON, now and then with a line doubled (a key twice, the last one counts) or with odd spaces."""
    text = json.dumps(value, indent=rng.choice([None, 0]))
    open_, close = rng.choice([("[", "]"), ('{"a":', "}")])
    depth = rng.choice([5, 70, 990, 100_000 if rng.random() < 0.05 else 1100])
    text = text.replace(json.dumps(_DEEP), open_ * depth + "1" + close * depth)
    if rng.random() < 0.1:
        lines = text.split("\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        text = "\n".join(lines)
    return text.encode()


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    """Header edited and put back with a length that fits, or sizes and values edited."""
    (n,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + n], content[8 + n :]
    what = rng.random()
    if what < 0.7:
        header = _dumped(rng, _edited(rng, json.loads(header)))
    elif what < 0.8:
        body = _bytes(rng, body)
    elif what < 0.9:  # values that are not finite, negative, huge
        place = rng.randrange(0, max(1, len(body)), 4)
        value = struct.pack("<f", rng.choice([math.nan, math.inf, -1.0, 0.0, 3e38]))
        body = body[:place] + value + body[place + 4 :]
    else:
        header += b" " * rng.choice([1, 7, 8, 1000])
    return struct.pack("<Q", len(header)) + header + body
