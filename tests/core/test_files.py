"""Files are whole or not there: full disks, read-only folders, and processes killed at the worst moment."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monosema.core import files
from monosema.core.errors import FileError
from monosema.core.files import atomic_folder, read_json, remove_leftovers, write_atomically, write_json


def failing(function: Callable[..., Any], code: int, *, at_call: int = 1) -> Callable[..., Any]:
    """``function`` that raises an ``OSError`` at its n-th call."""
    calls = []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == at_call:
            raise OSError(code, os.strerror(code))
        return function(*args, **options)

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, content: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text(content)


class TestWriteAtomically:
    def test_bytes_text_and_new_folders(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "new" / "deep" / "a.txt", "größe")
        assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == "größe".encode()
        write_atomically(str(tmp_path / "new" / "deep" / "a.txt"), b"\x00")
        assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == b"\x00"
        assert names(tmp_path / "new" / "deep") == ["a.txt"]

    @pytest.mark.parametrize("step", ["replace", "fsync"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
    def test_failure_keeps_the_old_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
    ) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")
        monkeypatch.setattr(os, step, failing(getattr(os, step), code))
        with pytest.raises(FileError) as raised:
            write_atomically(target, "new")
        advice = {errno.ENOSPC: "free some space", errno.EROFS: "allow writing there, or choose another place"}[code]
        assert f"cannot write {target}: {os.strerror(code)}; {advice}" in str(raised.value)
        assert "what was there before is unchanged" in str(raised.value)
        assert target.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_read_only_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # root may write anywhere, so the refusal is simulated
        monkeypatch.setattr("builtins.open", failing(open, errno.EACCES))
        with pytest.raises(FileError, match="Permission denied"):
            write_atomically(tmp_path / "a.txt", "new")
        assert names(tmp_path) == []

    def test_a_file_in_the_place_of_a_parent(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        with pytest.raises(FileError, match=f"cannot write .*{tmp_path / 'a'} is a file where a folder is needed"):
            write_atomically(tmp_path / "a" / "b.txt", "new")
        assert (tmp_path / "a").read_text() == "old"

    def test_content_is_flushed_before_the_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        order = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
        monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
        write_atomically(tmp_path / "a.txt", "new")
        assert order[:2] == ["fsync", "replace"]


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        value = {"b": [1, 2.5, None, True], "a": "größe"}
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value
        assert (tmp_path / "a.json").read_text(encoding="utf-8").startswith('{\n  "b"')

    def test_a_value_json_cannot_hold_leaves_the_old_file(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", 1)
        with pytest.raises(TypeError):
            write_json(tmp_path / "a.json", {1, 2})
        assert read_json(tmp_path / "a.json") == 1

    @pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(FileError, match=r"a\.json is not (valid JSON|UTF-8 text)"):
            read_json(tmp_path / "a.json")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=r"cannot read .*a\.json: No such file"):
            read_json(tmp_path / "a.json")


class TestAtomicFolder:
    def test_it_appears_at_the_end_and_replaces_what_stood_there(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "run"
        for content in ("first", "second"):
            with atomic_folder(target) as folder:
                fill(folder, content)
                assert not target.exists() or (target / "inner" / "a.txt").read_text() == "first"
            assert (target / "inner" / "a.txt").read_text() == content
        (target / "inner" / "extra.txt").write_text("x")
        with atomic_folder(target) as folder:
            fill(folder, "third")
        assert names(target / "inner") == ["a.txt"]  # nothing of the old one stays
        assert names(tmp_path / "new") == ["run"]

    @pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt()])
    def test_an_error_in_the_block_passes_and_changes_nothing(self, tmp_path: Path, error: BaseException) -> None:
        target = tmp_path / "run"
        with atomic_folder(target) as folder:
            fill(folder, "old")

        def write_half() -> None:
            with atomic_folder(target) as half:
                fill(half, "new")
                raise error

        with pytest.raises(type(error)):
            write_half()
        assert (target / "inner" / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["run"]

    @pytest.mark.parametrize(
        ("step", "at_call"), [("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2), ("mkdir", 2)]
    )
    def test_a_full_disk_keeps_the_old_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, at_call: int
    ) -> None:
        target = tmp_path / "run"
        with atomic_folder(target) as folder:
            fill(folder, "old")
        monkeypatch.setattr(os, step, failing(getattr(os, step), errno.ENOSPC, at_call=at_call))
        with pytest.raises(FileError, match="No space left on device"), atomic_folder(target) as folder:
            fill(folder, "new")
        assert (target / "inner" / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["run"]

    def test_a_full_disk_inside_the_block(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="No space left on device"), atomic_folder(tmp_path / "run"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert names(tmp_path) == []

    def test_everything_is_flushed_before_the_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        rename = os.rename
        monkeypatch.setattr(files, "_sync_file", lambda path: order.append(path.name))
        monkeypatch.setattr(os, "rename", lambda a, b: order.append("rename") or rename(a, b))
        with atomic_folder(tmp_path / "run") as folder:
            fill(folder, "x")
            (folder / "b.txt").write_text("y")
        cut = order.index("rename")
        assert {"a.txt", "b.txt", "inner"} <= set(order[:cut])
        assert order[cut + 1 :] == [tmp_path.name]

    def test_what_the_same_process_left_behind_is_not_mixed_in(self, tmp_path: Path) -> None:
        left = tmp_path / f".writing-{os.getpid()}-run"
        left.mkdir()
        (left / "stale.txt").write_text("stale")
        with atomic_folder(tmp_path / "run") as folder:
            fill(folder, "new")
        assert names(tmp_path / "run") == ["inner"]


KILLED = """
import os, sys
from pathlib import Path
from monosema.core.files import atomic_folder
calls = []
rename, rmtree = os.rename, __import__("shutil").rmtree
def dying(a, b):
    calls.append(a)
    if len(calls) == int(sys.argv[2]):
        os._exit(9)
    rename(a, b)
os.rename = dying
with atomic_folder(sys.argv[1]) as folder:
    (folder / "a.txt").write_text("new")
"""


class TestRemoveLeftovers:
    @pytest.mark.parametrize(("killed_before_rename", "expected"), [(1, "old"), (2, "old"), (3, "new")])
    def test_a_process_killed_during_the_swap_loses_nothing(
        self, tmp_path: Path, killed_before_rename: int, expected: str
    ) -> None:
        target = tmp_path / "run"
        target.mkdir()
        (target / "a.txt").write_text("old")
        command = [sys.executable, "-c", KILLED, str(target), str(killed_before_rename)]
        source = Path(files.__file__).parents[2]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(source)}, check=False)
        assert done.returncode == 9
        assert names(tmp_path) != ["run"]  # it did die half-way
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["run"]
        assert (target / "a.txt").read_text() == expected

    def test_a_half_deleted_old_folder_is_never_put_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "run"
        with atomic_folder(target) as folder:
            fill(folder, "old")
        monkeypatch.setattr(files.shutil, "rmtree", lambda *args, **options: None)  # killed before it deletes
        with atomic_folder(target) as folder:
            fill(folder, "new")
        monkeypatch.undo()
        target.rename(tmp_path / "moved by the user")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == ["moved by the user"]

    def test_half_written_files_and_folders_go_and_others_stay(self, tmp_path: Path) -> None:
        (tmp_path / ".writing-12-a.txt").write_text("half")
        (tmp_path / ".writing-12-run").mkdir()
        fill(tmp_path / ".writing-12-run", "half")
        (tmp_path / ".writing-old-12-kept").mkdir()
        (tmp_path / "kept").mkdir()
        (tmp_path / ".hidden").write_text("mine")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [".hidden", "kept"]

    def test_nothing_there(self, tmp_path: Path) -> None:
        remove_leftovers(tmp_path)
        remove_leftovers(tmp_path / "missing")
        assert names(tmp_path) == []
