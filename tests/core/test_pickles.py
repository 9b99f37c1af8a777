"""Pickles as data: Python's own writer and reader say what the values are, and that hostile ones would run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import decimal
import functools
import os
import pickle
import random
import struct
import sys
import tracemalloc
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from monosema.core.errors import FileError
from monosema.core.pickles import ForeignRecord, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = {
    "numbers": [0, -1, 255, 70_000, 2**31, -(2**70), 1.5, float("inf"), 1 + 2j, True, None],
    "texts": ["", "é", "\ud800", "a\nb\\", "x" * 300, b"", b"\x00\xff", bytearray(b"xy")],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {1: {"a": [2]}}, set(), {1, "b"}, frozenset([3])],
    "torch": [torch.float16, torch.bfloat16, torch.device("cuda", 1), torch.device("cpu"), torch.Size([2, 3])],
    "scalars": [np.float32(2.5), np.int64(-7), np.bool_(True), np.str_("ab"), np.float16(1)],
    "paths": [PurePosixPath("a/b"), PureWindowsPath("c:/d")],
}
ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 2, 0),
    "sliced": np.arange(10)[::3],
    "big_endian": np.arange(3, dtype=">i4"),
    "texts": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "bool": np.array([[True], [False]]),
    "complex": np.array([1 + 2j]),
    "empty": np.zeros((0, 3), np.float16),
    "one": np.array(4.0),
    "long": np.arange(5000, dtype=np.uint8),
}


def read(folder: Path, content: bytes, **options: Any) -> Any:
    path = folder / "a.pkl"
    path.write_bytes(content)
    return read_pickle(path, **options)


class Thing:
    def __init__(self) -> None:
        self.size = 3


class Slotted:
    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 3


class Words(list):
    pass


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_themselves(tmp_path: Path, protocol: int) -> None:
    found = read(tmp_path, pickle.dumps(PLAIN, protocol))
    assert repr(found) == repr(PLAIN) and list(found) == list(PLAIN)
    shared = [1]
    one, other = read(tmp_path, pickle.dumps([shared, shared], protocol))
    assert one is other


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_those_that_numpy_reads(tmp_path: Path, name: str, protocol: int) -> None:
    content = pickle.dumps({"x": ARRAYS[name]}, protocol)
    found, expected = read(tmp_path, content)["x"], pickle.loads(content)["x"]  # noqa: S301
    assert type(found) is np.ndarray and found.dtype == expected.dtype and found.shape == expected.shape
    assert found.strides == expected.strides and np.array_equal(found, ARRAYS[name])


def test_names_of_older_and_newer_numpy(tmp_path: Path) -> None:
    x = ARRAYS["float32"]
    for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        content = pickle.dumps([x, x[0, 1]], 2)
        assert np.array_equal(read(tmp_path, content.replace(old, new))[0], x)
    from_python_2 = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n"
        b"(I1\n(I2\ntp6\ncnumpy\ndtype\np7\n(S'f4'\nI0\nI1\ntRp8\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"U\x08\x00\x00\x80?\x00\x00\x00@tp9\nb."
    )
    assert read(tmp_path, from_python_2).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_classes_are_records(tmp_path: Path, protocol: int) -> None:
    thing = read(tmp_path, pickle.dumps(Thing(), protocol))
    assert isinstance(thing, ForeignRecord) and thing.name == f"{__name__}.Thing" and thing.fields == {"size": 3}
    space, price, kind, function, day, point = read(
        tmp_path,
        pickle.dumps(
            [
                argparse.Namespace(a=[1]),
                decimal.Decimal("1.5"),
                np.float32,
                os.getcwd,
                datetime.date(2020, 1, 2),
                Point(1, 2),
            ],
            protocol,
        ),
    )
    assert space.fields == {"a": [1]} and price.args == ("1.5",) and price.name == "decimal.Decimal"
    assert kind.name == "numpy.float32" and function.name.endswith(".getcwd")
    assert day.name == "datetime.date" and point.name.endswith(".Point")
    assert point.args in ((1, 2), ((1, 2),))  # NEWOBJ, or as the state of the tuple that it is
    words = Words(["a", "b"])
    words.tone = "low"
    found = read(tmp_path, pickle.dumps(words, protocol))
    assert found.name.endswith(".Words") and found.fields == {"tone": "low"} and "a" in (found.items or found.args[0])
    ordered, default = read(
        tmp_path, pickle.dumps([collections.OrderedDict(b=1, a=2), collections.defaultdict(list, {1: [2]})], protocol)
    )
    assert type(ordered) is dict and list(ordered.items()) == [("b", 1), ("a", 2)] and default == {1: [2]}
    if protocol >= 2:
        assert read(tmp_path, pickle.dumps(Slotted(), protocol)).fields == {"size": 3}
    partial = read(tmp_path, pickle.dumps(functools.partial(int, base=2), protocol))
    assert partial.name == "functools.partial"
    masked = read(tmp_path, pickle.dumps(np.ma.zeros(2), protocol))
    assert masked.name == "numpy.ma.core._mareconstruct" and masked.args[0].name == "numpy.ma.MaskedArray"


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_module.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read(tmp_path, b"ctrap_module\nTrap\n)R.").name == "trap_module.Trap"
    assert "trap_module" not in sys.modules and not (tmp_path / "mark").exists()


# -- hostile ones


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def runs(mark: Path) -> dict[str, bytes]:
    """Pickles that make ``mark`` where they are unpickled."""
    touch, opened = text(f"touch {mark}"), text(f"open({str(mark)!r}, 'w').close()")
    getter = b"cbuiltins\ngetattr\n"
    return {
        "reduce": b"cos\nsystem\n" + touch + b"\x85R.",
        "posix": b"cposix\nsystem\n(" + touch + b"tR.",
        "python 2": b"c__builtin__\neval\n" + opened + b"\x85R.",
        "eval": b"cbuiltins\neval\n" + opened + b"\x85R.",
        "exec": b"cbuiltins\nexec\n" + opened + b"\x85R.",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + touch + b"\x85R.",
        "inst": b"(" + touch + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + touch + b"o.",
        "getattr chain": getter
        + b"(cbuiltins\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"tR"
        + touch
        + b"\x85R.",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(" + touch + b"ltRtR.",
        "hidden in an array": b"cos\nsystem\n" + touch + b"\x85R0cnumpy\nndarray\n.",
        "as a key": b"}cos\nsystem\n" + touch + b"\x85RNs.",
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + touch + b"tR)R.",
    }


@pytest.mark.parametrize("kind", runs(Path()))
def test_no_code_runs(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    content = runs(mark)[kind]
    found = read(tmp_path, content)
    assert isinstance(found, ForeignRecord | dict) and not mark.exists()
    pickle.loads(content)  # noqa: S301  # it does run there
    assert mark.exists()


def test_states_change_nothing_but_records(tmp_path: Path) -> None:
    before = dict(vars(ForeignRecord)), dict(vars(np.ndarray)), np.dtype("f4").str
    found = read(tmp_path, b"cos\nsystem\n}" + text("__call__") + b"cos\nsystem\nsb.")
    assert found.fields["__call__"].name == "os.system"
    found = read(tmp_path, b"cnumpy\nndarray\n(N}" + text("__defaults__") + b"Nstb.")
    assert found.fields == {"__defaults__": None}
    assert before == (dict(vars(ForeignRecord)), dict(vars(np.ndarray)), np.dtype("f4").str)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
DTYPE = b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
HUGE = b"I%d\n" % 2**40
REFUSED = {
    "nothing": (b"", "it is empty"),
    "text": (b"hello", "no whole pickle"),
    "no end": (b"N", "no whole pickle"),
    "no value": (b".", "no whole pickle"),
    "too little on the stack": (b"R.", "no whole pickle"),
    "below a mark": (b"N(R.", "no whole pickle"),
    "no such memory": (b"h\x05.", "no whole pickle"),
    "long text": (b"\x8d" + struct.pack("<Q", 2**60) + b"x.", "no whole pickle"),
    "long bytes": (b"\x8e" + struct.pack("<Q", 2**40) + b"x.", "no whole pickle"),
    "persistent id": (b"Pid\n.", r"objects outside of it \(PERSID\)"),
    "binary persistent id": (b"K\x01Q.", r"objects outside of it \(BINPERSID\)"),
    "extension": (b"\x82\x01.", r"objects outside of it \(EXT1\)"),
    "buffer": (b"\x80\x05\x97.", r"objects outside of it \(NEXT_BUFFER\)"),
    "call of a text": (text("os.system") + b")R.", "it calls a str"),
    "call of an array": (ARRAY + b")R.", "it calls a ndarray"),
    "state of a number": (b"K\x01}b.", "gives a int a state"),
    "elements of a number": (b"K\x01K\x02a.", "puts elements into a int"),
    "key that is a list": (b"}]Ns.", "a list is a key"),
    "key that is long": (b"}\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000 + b"Ns.", "a int is a key"),
    "key that is nested": (b"})" + b"\x85" * 10**5 + b"Ns.", "a tuple is a key"),
    "element that is nested": (b"\x8f(" + b")" + b"\x85" * 10**5 + b"\x90.", "a tuple is a key"),
    "array of objects": (pickle.dumps(np.array([{"a": 1}], dtype=object)), "Python objects"),
    "array with fields": (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "'V4'"),
    "array of dates": (pickle.dumps(np.zeros(2, dtype="M8[s]")), "'M8"),
    "huge shape": (
        ARRAY + b"(I1\n(" + HUGE + b"t" + DTYPE % b"f4" + b"I00\nS''\ntb.",
        r"4,398,046,511,104 bytes has 0",
    ),
    "huge shape from a buffer": (
        b"cnumpy._core.numeric\n_frombuffer\n(" + b"C\x04abcd" + DTYPE % b"f4" + b"(" + HUGE + HUGE + b"tS'C'\ntR.",
        "bytes has 4",
    ),
    "negative shape": (ARRAY + b"(I1\n(I-1\nI-1\nt" + DTYPE % b"u1" + b"I00\nS'a'\ntb.", "no tuple of sizes"),
    "type of no size": (ARRAY + b"(I1\n(" + HUGE + b"t" + DTYPE % b"S0" + b"I00\nS''\ntb.", "bytes has 0"),
    "unfinished type": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f4'\nI0\nI1\ntRS'abcd'\ntR.",
        "has no type",
    ),
    "array built twice": (ARRAY + (b"(I1\n(I1\nt" + DTYPE % b"u1" + b"I00\nS'a'\ntb") * 2 + b".", "damaged"),
    "type that is code": (b"cnumpy\ndtype\n(S'f4,(os.system)O'\nI0\nI1\ntR.", "type 'f4,"),
    "device": (b"ctorch\ndevice\n(S'nonsense'\ntR.", "torch device"),
    "other encoding": (b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "rot13"),
    "path of numbers": (b"cpathlib\nPosixPath\n(I1\ntR.", "no texts"),
    "wrong arguments": (b"cnumpy\ndtype\n)R.", "no whole pickle"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_named(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    with pytest.raises(FileError, match=message) as error:
        read(tmp_path, content)
    assert "a.pkl" in str(error.value)


def nested(n: int) -> dict[str, bytes]:
    return {
        "lists": b"]" * n + b"a" * (n - 1) + b".",
        "tuples": b")" + b"\x85" * n + b".",
        "mappings": b"}" + b"N}" * n + b"s" * n + b".",
    }


@pytest.mark.parametrize("kind", ["lists", "tuples", "mappings"])
def test_deep_nesting_is_refused(tmp_path: Path, kind: str) -> None:
    read(tmp_path, nested(90)[kind])
    with pytest.raises(FileError, match="nested more than 100 deep"):
        read(tmp_path, nested(10_000)[kind])


def test_what_holds_itself_is_refused(tmp_path: Path) -> None:
    for make in (lambda x: x.append(x), lambda x: x.append({1: (x,)})):
        value: list[Any] = []
        make(value)
        with pytest.raises(FileError, match="within itself"):
            read(tmp_path, pickle.dumps(value))


BOMBS = {
    "place of a memory": b"Nr\xff\xff\xff\x7f.",
    "text encoded again and again": b"X"
    + struct.pack("<I", 10**4)
    + b"x" * 10**4
    + b"\x94"
    + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 2000
    + b".",
    "set made again and again": b"(" + b"K\x01" * 10**4 + b"l\x94" + b"cbuiltins\nset\nh\x00\x85R" * 200 + b".",
    "state given again and again": b"("
    + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(5_000))
    + b"d\x94"
    + b"ca\nb\nh\x00b" * 2000
    + b".",
    "bytes as numbers": b"B"
    + struct.pack("<I", 4 * 10**4)
    + b"x\0\0\0" * 10**4
    + b"\x94"
    + DTYPE % b"U10000"
    + b"\x94"
    + b"cnumpy.core.multiarray\nscalar\nh\x01h\x00\x86R" * 2000
    + b".",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_memory_is_in_proportion_to_the_file(tmp_path: Path, kind: str) -> None:
    content = BOMBS[kind]
    tracemalloc.start()
    try:
        if kind == "place of a memory":
            assert read(tmp_path, content) is None
        else:
            with pytest.raises(FileError, match="far more memory"):
                read(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 100 * len(content)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="more than 1,000 operations"):
        read(tmp_path, b"\x8f" * 2000 + b".", most_operations=1000)
    with pytest.raises(FileError, match="at most 10 are read"):
        read(tmp_path, b"N" * 20 + b".", most_bytes=10)
    with pytest.raises(FileError, match="nested more than 2 deep"):
        read(tmp_path, pickle.dumps([[[1]]]), most_depth=2)


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pkl"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FileError, match=r"a\.pkl"):
        read_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_damage_is_a_file_error_or_a_value(tmp_path: Path, protocol: int) -> None:
    thing = [ARRAYS["float32"], np.float32(1), Thing(), {"a": (1, {2})}, torch.float16, PurePosixPath("a"), 1 + 2j]
    content = pickle.dumps(thing, protocol)
    for end in range(0, len(content), 3):
        with pytest.raises(FileError, match=r"a\.pkl"):
            read(tmp_path, content[:end])
    draw = random.Random(protocol)
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        with contextlib.suppress(FileError):  # no other error
            read(tmp_path, bytes(changed))
