from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.store import Folder, GroupRef, Manifests, sha256


def group(stage: int, content: str = "x") -> GroupRef:
    return GroupRef(stage, f"t{stage}", f"{stage:03d}-t{stage}", sha256(content.encode()))


LISTS = st.lists(
    st.lists(
        st.builds(group, st.integers(0, 3), st.sampled_from("xy")), unique_by=lambda r: r.stage
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(lists=LISTS)
def test_publishing_is_idempotent_and_versions_have_no_gaps(lists: list[list[GroupRef]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        models = Manifests(Folder(place))
        known: dict[tuple[GroupRef, ...], int] = {}
        for refs in lists:
            key = tuple(sorted(refs, key=lambda ref: ref.stage))
            expected = known.setdefault(key, len(known) + 1)
            assert models.publish(refs) == expected
            assert Manifests(Folder(place)).publish(reversed(refs)) == expected
        assert models.versions() == list(range(1, len(known) + 1))
        parent = None
        for key, version in known.items():
            manifest = models.read(version)
            assert (manifest.groups, manifest.parent) == (key, parent)
            parent = manifest.sha256
            assert parent == sha256((Path(place) / f"{version:03d}.json").read_bytes())
        latest = models.latest()
        assert (latest.version if latest else 0) == len(known)


def test_file_is_as_specified(tmp_path: Path) -> None:
    models = Manifests(Folder(str(tmp_path)))
    models.publish([group(0)])
    models.publish([group(1), group(0)])
    document = json.loads((tmp_path / "002.json").read_bytes())
    assert document == {
        "version": 2,
        "groups": [
            {"stage": s, "task": f"t{s}", "folder": f"00{s}-t{s}", "sha256": sha256(b"x")}
            for s in (0, 1)
        ],
        "parent": sha256((tmp_path / "001.json").read_bytes()),
    }


def test_an_older_list_can_become_the_newest(tmp_path: Path) -> None:
    models = Manifests(Folder(str(tmp_path)))
    models.publish([group(0)])
    models.publish([group(0), group(1)])
    assert models.publish([group(0)]) == 1
    assert models.publish([group(0)], again=True) == 3
    assert models.publish([group(0)], again=True) == 3
    assert models.publish([group(0)]) == 3
    assert models.latest().groups == (group(0),)


def test_one_group_a_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one group a stage"):
        Manifests(Folder(str(tmp_path))).publish([group(0, "x"), group(0, "y")])


@pytest.mark.parametrize("victim", [1, 2, 3])
def test_alteration_of_any_chained_manifest_is_found(tmp_path: Path, victim: int) -> None:
    models = Manifests(Folder(str(tmp_path)))
    for count in (1, 2, 3):
        models.publish([group(stage) for stage in range(count)])
    path = tmp_path / f"{victim:03d}.json"
    document = json.loads(path.read_bytes())
    document["groups"][0]["sha256"] = "0" * 64
    document["parent"] = document["parent"] and "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"00[123]\.json"):
        models.read(victim)
    with pytest.raises(IntegrityError):
        models.publish([group(stage) for stage in range(5)])


def test_gaps_renames_and_rubbish_are_found(tmp_path: Path) -> None:
    models = Manifests(Folder(str(tmp_path)))
    models.publish([])
    models.publish([group(0)])
    models.publish([group(0), group(1)])
    (tmp_path / "001.json").unlink()
    with pytest.raises(IntegrityError, match=r"001\.json is missing"):
        models.read(2)
    (tmp_path / "003.json").rename(tmp_path / "001.json")
    with pytest.raises(IntegrityError, match="says it is version 3"):
        models.read(1)
    (tmp_path / "001.json").write_bytes(b"{")
    with pytest.raises(IntegrityError, match=r"001\.json is not a manifest"):
        models.read(1)
    with pytest.raises(FileNotFoundError):
        models.read(9)
