from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as pafs

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.store import Folder, documents


def test_write_read_replace_and_delete(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "opening a folder must create nothing"
    assert folder.list() == []
    folder.write("a/b.bin", b"one")
    folder.write("a/b.bin", b"two")
    assert folder.read("a/b.bin") == b"two"
    assert folder.exists("a") and folder.exists("a/b.bin") and not folder.exists("a/c")
    folder.delete("a/b.bin")
    folder.delete("a/b.bin")
    assert not folder.exists("a/b.bin")
    folder.delete_tree("a")
    folder.delete_tree("a")
    assert folder.list() == []
    with pytest.raises(FileNotFoundError):
        folder.read("a/b.bin")


def test_list_is_one_level_by_prefix_and_hides_dot_files(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for name in ("groups/000-a/x", "groups/001-b/x", "groups/010-c/x", "run.json", "groups/.x.tmp"):
        folder.write(name, b"")
    assert folder.list() == ["groups", "run.json"]
    assert folder.list("r") == ["run.json"]
    assert folder.list("groups/00") == ["groups/000-a", "groups/001-b"]
    assert folder.list("groups/") == ["groups/000-a", "groups/001-b", "groups/010-c"]
    assert folder.child("groups").list() == ["000-a", "001-b", "010-c"]
    assert folder.list("nothing/") == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a/"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name inside"):
        Folder(str(tmp_path)).read(name)


def test_forms_of_address(tmp_path: Path) -> None:
    plain = Folder(str(tmp_path))
    plain.write("x y", b"1")
    local = pafs.LocalFileSystem()
    for other in (
        Folder(tmp_path),
        Folder(tmp_path.as_uri()),
        Folder("", pafs.SubTreeFileSystem(str(tmp_path), local)),
        Folder(str(tmp_path.parent)).child(tmp_path.name),
    ):
        assert other.read("x y") == b"1"
        assert other.local == tmp_path
        assert other.uri == str(tmp_path)


def test_bad_addresses_are_one_line_for_the_user() -> None:
    for address, words in (("runs/a", "is relative"), ("nowhere://x/y", "nowhere://")):
        with pytest.raises(UserError, match=words) as caught:
            Folder(address)
        assert "\n" not in str(caught.value)


def test_remote_address_shows_no_credentials() -> None:
    folder = Folder("s3://key:hidden@bucket/runs/?region=eu-west-1").child("a b")
    assert folder.local is None
    assert folder.uri == "s3://key:hidden@bucket/runs/a%20b?region=eu-west-1"
    assert folder.shown("run.json") == "s3://bucket/runs/a%20b/run.json"
    assert "hidden" not in repr(folder)
    assert Folder(folder.uri)._path == folder._path == "bucket/runs/a b"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("report.json", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write("report.json", b"new and longer")
    assert folder.read("report.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_sweep_removes_only_old_temporary_files(tmp_path: Path) -> None:
    old, young, other = tmp_path / ".a.1.tmp", tmp_path / ".b.2.tmp", tmp_path / "c.tmp"
    for path in (old, young, other):
        path.write_bytes(b"")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    Folder(str(tmp_path)).sweep()
    assert not old.exists() and young.exists() and other.exists()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=JSON)
def test_json_comes_back_and_is_canonical(value: object) -> None:
    import json

    data = documents.dumps(value)
    assert json.loads(data) == value
    assert documents.dumps(json.loads(data)) == data


def test_json_takes_arrays_and_makes_nan_null() -> None:
    value = {"b": (np.float32(0.5), float("nan")), "a": np.arange(2), 3: np.int64(7)}
    assert documents.plain(value) == {"b": [0.5, None], "a": [0, 1], "3": 7}
    with pytest.raises(TypeError, match="object"):
        documents.dumps({"x": object()})


def test_store_reads_runs_without_loading_torch() -> None:
    code = "import sys, pipeline.store; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
