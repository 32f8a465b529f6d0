from __future__ import annotations

import json
from pathlib import Path

import pytest

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import Folder, GroupRef, GroupStore, sha256

FILES = {"group.safetensors": b"g" * 50, "identity.safetensors": b"i" * 9, "task.json": b"{}"}


@pytest.fixture
def store(tmp_path: Path) -> GroupStore:
    return GroupStore(Folder(str(tmp_path)))


def test_layout_and_commit(store: GroupStore, tmp_path: Path) -> None:
    ref = store.write(3, "dtd", FILES)
    written = (tmp_path / "003-dtd" / "COMMIT").read_bytes()
    assert ref == GroupRef(3, "dtd", "003-dtd", sha256(written))
    commit = json.loads(written)
    assert commit == {file: sha256(data) for file, data in FILES.items()} == store.files(ref)
    assert {file: store.read(ref, file) for file in FILES} == FILES
    store.verify(ref)
    assert store.list() == [ref]


def test_commit_bytes_depend_on_content_alone(store: GroupStore, tmp_path: Path) -> None:
    store.write(0, "a", FILES)
    first = (tmp_path / "000-a" / "COMMIT").read_bytes()
    store.delete(store.list()[0])
    store.write(0, "a", dict(reversed(FILES.items())))
    assert (tmp_path / "000-a" / "COMMIT").read_bytes() == first


def test_list_is_by_stage_and_sees_commits_only(store: GroupStore, tmp_path: Path) -> None:
    for stage, name in ((10, "b"), (2, "z"), (1000, "c"), (0, "y")):
        store.write(stage, name, FILES)
    (tmp_path / "005-half").mkdir()
    (tmp_path / "005-half" / "group.safetensors").write_bytes(b"x")
    (tmp_path / "006-torn").mkdir()
    (tmp_path / "006-torn" / "COMMIT").write_bytes(b'{"group.safe')
    (tmp_path / "unrelated").mkdir()
    assert [(ref.stage, ref.name) for ref in store.list()] == [
        (0, "y"),
        (2, "z"),
        (10, "b"),
        (1000, "c"),
    ]


@pytest.mark.parametrize("name", ["Stanford Cars", "a/b", "..", "50%", "été", ".hidden", "x-1"])
def test_any_task_name_comes_back(store: GroupStore, name: str, tmp_path: Path) -> None:
    ref = store.write(1, name, FILES)
    assert store.list() == [ref] and ref.name == name
    assert len(list(tmp_path.iterdir())) == 1
    store.verify(ref)


def test_a_leftover_without_commit_is_replaced_whole(store: GroupStore, tmp_path: Path) -> None:
    leftover = tmp_path / "000-a"
    leftover.mkdir()
    (leftover / "probe.safetensors").write_bytes(b"from another attempt")
    ref = store.write(0, "a", FILES)
    assert sorted(path.name for path in leftover.iterdir()) == sorted([*FILES, "COMMIT"])
    store.verify(ref)


def test_writing_again_changes_nothing(store: GroupStore, tmp_path: Path) -> None:
    ref = store.write(0, "a", FILES)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "000-a").iterdir()}
    assert store.write(0, "a", FILES) == ref
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "000-a").iterdir()} == before


@pytest.mark.parametrize("file", sorted(FILES))
def test_other_content_is_refused_unless_asked_for(store: GroupStore, file: str) -> None:
    """Whatever the file: a group is all that a stage left, not its weights alone."""
    ref = store.write(0, "a", FILES)
    changed = {**FILES, file: b"other"}
    with pytest.raises(IntegrityError, match="000-a is committed with other content"):
        store.write(0, "a", changed)
    store.verify(ref)
    new = store.write(0, "a", changed, replace=True)
    assert store.list() == [new] and new.sha256 != ref.sha256
    with pytest.raises(IntegrityError, match="000-a is committed as another group than the one"):
        store.read(ref, "task.json")


@pytest.mark.parametrize("file", sorted(FILES))
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_tampering_is_named_and_repaired(
    store: GroupStore, tmp_path: Path, file: str, damage: str
) -> None:
    ref = store.write(0, "a", FILES)
    path = tmp_path / "000-a" / file
    if damage == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    for action in (lambda: store.verify(ref), lambda: store.read(ref, file)):
        with pytest.raises(IntegrityError, match=f"000-a/{file}"):
            action()
    store.write(0, "a", FILES)
    store.verify(ref)


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_forged_commit_does_not_pass_for_the_group(
    store: GroupStore, tmp_path: Path, file: str
) -> None:
    ref = store.write(0, "a", FILES)
    (tmp_path / "000-a" / file).write_bytes(b"forged")
    commit = json.loads((tmp_path / "000-a" / "COMMIT").read_bytes())
    commit[file] = sha256(b"forged")
    (tmp_path / "000-a" / "COMMIT").write_text(json.dumps(commit))
    with pytest.raises(IntegrityError, match="000-a is committed as another group than the one"):
        store.verify(ref)


def test_missing_groups_and_files(store: GroupStore) -> None:
    ref = store.write(0, "a", FILES)
    with pytest.raises(IntegrityError, match=r"000-a/probe\.safetensors is not part"):
        store.read(ref, "probe.safetensors")
    store.delete(ref)
    assert store.list() == []
    with pytest.raises(IntegrityError, match="000-a is missing"):
        store.verify(ref)


@pytest.mark.parametrize(
    "files",
    [
        {"task.json": b""},
        {**FILES, "COMMIT": b""},
        {**FILES, "../x": b""},
        {**FILES, ".x.tmp": b""},
        {**FILES, "": b""},
    ],
)
def test_file_names_are_checked_before_anything_is_written(
    store: GroupStore, tmp_path: Path, files: dict[str, bytes]
) -> None:
    with pytest.raises(ValueError, match="group 'a'"):
        store.write(0, "a", files)
    assert list(tmp_path.iterdir()) == []
