"""The standard library as text: order, split, and what is left out."""

from __future__ import annotations

import hashlib

import pytest

from monosema.data.stdlib import HELDOUT_FRACTION, Module, is_heldout_name, stdlib_modules


@pytest.fixture
def library(tmp_path):
    """A small ``Lib`` folder with everything that is passed over."""
    files = {
        "zz.py": b"z = 1\r\n",
        "pack/__init__.py": b"import os\n",
        "pack/inner.py": b"x = 2\n",
        "pack/tests/test_inner.py": b"x = 4\n",
        "test/test_all.py": b"pass\n",
        "site-packages/other.py": b"no = 1\n",
        "config-3.11/setup.py": b"no = 1\n",
        "_sysconfigdata_x.py": b"no = 1\n",
        "broken.py": b"text = '\xff\xfe'\n",
        "cookie.py": b"# -*- coding: no-such-codec -*-\n",
        "latin.py": b"# -*- coding: latin-1 -*-\nname = '\xe9'\n",
        "empty.py": b"\n\n",
        "notes.txt": b"not python\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_modules_come_in_the_order_of_their_names_decoded_as_python_would(library):
    modules = {module.name: module.text for module in stdlib_modules(folder=library)}
    assert list(modules) == ["latin", "pack", "pack.inner", "zz"]
    assert modules["zz"] == "z = 1\n"
    assert "é" in modules["latin"]


def test_tests_come_only_when_asked_for(library):
    names = [module.name for module in stdlib_modules(folder=library, tests=True)]
    assert names == ["latin", "pack", "pack.inner", "pack.tests.test_inner", "test.test_all", "zz"]


def test_a_library_without_sources_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"without source.*pass text files"):
        stdlib_modules(folder=tmp_path)


def test_the_running_interpreters_library_is_there_without_its_tests():
    names = [module.name for module in stdlib_modules()]
    assert names == sorted(names)
    assert {"argparse", "email", "email.mime.text"} <= set(names)
    assert not [name for name in names if name.split(".")[0] in ("test", "site-packages") or ".tests." in name]


def test_the_split_depends_on_the_name_alone():
    digest = int(hashlib.sha256(b"argparse").hexdigest()[:16], 16) / 2**64
    assert is_heldout_name("argparse", digest + 1e-9)
    assert not is_heldout_name("argparse", digest - 1e-9)
    assert not is_heldout_name("argparse", 0.0)
    share = sum(is_heldout_name(f"module{i}", HELDOUT_FRACTION) for i in range(4000)) / 4000
    assert share == pytest.approx(HELDOUT_FRACTION, abs=0.015)


def test_generated_tables_are_known():
    assert Module(name="encodings.cp037", text="x").is_generated_table
    assert not Module(name="json.decoder", text="x").is_generated_table
