"""What all pages share: templates, escaping, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from page_source import Elements, embedded, require_offline

from monosema.core.page import assembled, asset, filled


def page_at(path: Path, header: dict, arrays: dict[str, np.ndarray], title: str = "a page") -> Path:
    page = assembled(
        title=title, body="<p>{{x}}</p>", styles=["p { top: 0 }"], scripts=["1;"], header=header, arrays=arrays
    )
    path.write_text(page, encoding="utf-8")
    return path


def test_arrays_come_back_in_the_smallest_type(tmp_path: Path):
    arrays = {
        "bytes": np.array([0, 255]),
        "words": np.array([[1, 256], [65_535, 2]]),
        "many": np.array([2**32 - 1, 0, 3]),
        "none": np.array([], dtype=np.int64),
        "reals": np.array([0.5, np.nan, -1e30]),
    }
    header, read = embedded(page_at(tmp_path / "page.html", {"own": 1}, arrays))
    assert header["own"] == 1
    kinds = [header["arrays"][name][0] for name in arrays]
    assert kinds == ["Uint8Array", "Uint16Array", "Uint32Array", "Uint8Array", "Float32Array"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array.ravel().astype(read[name].dtype))
    with pytest.raises(AssertionError, match="negative"):
        assembled(title="", body="", styles=[], scripts=[], header={}, arrays={"negative": np.array([-1])})


def test_header_and_title_are_never_markup(tmp_path: Path):
    hostile = "</title></script><script>&\u2028"
    path = page_at(tmp_path / "page.html", {"text": hostile}, {}, title=hostile)
    page = path.read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 3
    assert page.count("<title") == page.count("</title") == 1
    assert embedded(path)[0]["text"] == hostile
    assert Elements(page).scripts[0].isascii()
    require_offline(path)


def test_what_is_filled_in_is_no_template():
    assert filled("{{a}} {{b}} {{a}}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2 {{b}}"
    with pytest.raises(KeyError):
        filled("{{c}}", {})


def test_assets_are_files_of_the_package():
    assert "Content-Security-Policy" in asset("monosema.core.page", "skeleton.html")
    assert asset("monosema.features", "page/page.js").startswith("//")
