"""Readers describe domains; bad input is refused in one line that names file or key."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams import Domain, RawRow, open_stream
from archipelago.pipeline.streams.registry import readers
from tests.helpers import parquet_domain, png


def stream(root: Path | str | None, reader: str = "parquet", **settings: Any) -> list[Domain]:
    root = None if root is None else str(root)
    return open_stream(StreamSettings(reader=reader, root=root, **settings), 0)


def rows(domain: Domain, split: str) -> list[RawRow]:
    return [row for chunk in domain.splits[split].chunks for row in chunk.rows()]


def facts(folder: Path, **changes: Any) -> None:
    """Change keys of domain.json; None removes one."""
    about = json.loads((folder / "domain.json").read_text()) | changes
    about = {key: value for key, value in about.items() if value is not None}
    (folder / "domain.json").write_text(json.dumps(about))


def relabel(folder: Path, labels: pa.Array, split: str = "train") -> None:
    table = pq.read_table(folder / f"{split}.parquet")
    pq.write_table(table.set_column(1, "label", labels), folder / f"{split}.parquet")


def test_order_is_alphabetical_unless_stated(tmp_path: Path) -> None:
    for name in ("zoo", "art", "map"):
        parquet_domain(tmp_path, name)
    (tmp_path / "notes").mkdir()
    assert [d.name for d in stream(tmp_path)] == ["art", "map", "zoo"]
    assert [d.name for d in stream(tmp_path, order=["zoo", "art"])] == ["zoo", "art"]


def test_parquet_rows_are_complete_and_in_order(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "many", classes=3, train=200)
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    # Several files, uneven row groups: chunk borders of every kind.
    pq.write_table(table.slice(0, 350), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(350), folder / "train-00001-of-00002.parquet", row_group_size=70)
    (domain,) = stream(tmp_path)
    split = domain.splits["train"]
    found = rows(domain, "train")
    assert split.count == 600 and len(split.chunks) > 4
    assert [row.index for row in found] == list(range(600))
    assert [row.label for row in found] == table["label"].to_pylist()
    assert [row.image for row in found] == [x["bytes"] for x in table["image"].to_pylist()]


def test_parquet_labels_may_be_class_names(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "named")
    numbers = pq.read_table(folder / "train.parquet")["label"].to_pylist()
    names = [f"named {number}" for number in numbers]
    for kind in (pa.string(), pa.dictionary(pa.int8(), pa.string())):
        relabel(folder, pa.array(names).cast(kind))
        (domain,) = stream(tmp_path)
        assert [row.label for row in rows(domain, "train")] == numbers


def test_plain_binary_images_and_other_column_names(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "plain")
    for split in ("train", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        images = [x["bytes"] for x in table["image"].to_pylist()]
        renamed = pa.table({"img": images, "fine": table["label"]})
        pq.write_table(renamed, folder / f"{split}.parquet")
    (domain,) = stream(tmp_path, options={"image": "img", "label": "fine"})
    assert rows(domain, "test")[0].image[:4] == b"\x89PNG"
    with pytest.raises(UserError, match=r"train\.parquet: no column 'image'; it has img, fine"):
        stream(tmp_path)


def test_parquet_by_uri(tmp_path: Path) -> None:
    parquet_domain(tmp_path, "far")
    assert stream(tmp_path.as_uri()) == stream(tmp_path)


def test_digest_is_of_content_not_of_place(tmp_path: Path) -> None:
    parquet_domain(tmp_path / "one", "d")
    folder = parquet_domain(tmp_path / "two", "d")
    digest = stream(tmp_path / "one")[0].splits["train"].digest
    assert len(digest) == 64
    assert stream(tmp_path / "two")[0].splits["train"].digest == digest
    facts(folder, templates=["another {}."])
    assert stream(tmp_path / "two")[0].splits["train"].digest == digest
    relabel(folder, pq.read_table(folder / "train.parquet")["label"].take(list(range(35, -1, -1))))
    assert stream(tmp_path / "two")[0].splits["train"].digest != digest


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": None}, r"d/domain\.json: classes is missing"),
        ({"templates": None}, r"d/domain\.json: templates is missing"),
        ({"classes": "abc"}, r"d/domain\.json: classes must be a list of strings"),
        ({"classes": ["a", "b", "a"]}, r"'d': classes: 'a' occurs twice \(numbers 0 and 2\)"),
        ({"classes": ["a", "b", " "]}, r"'d': classes: number 2 is blank"),
        ({"classes": ["a", "b"]}, r"train\.parquet: label 2 is outside 0\.\.1"),
        ({"classes": ["a"]}, r"train\.parquet: label 2 is outside"),
        ({"templates": []}, r"'d': templates: needs at least one"),
        ({"templates": ["a photo."]}, r"'d': templates: 'a photo\.' must hold \{\}"),
        ({"templates": ["a {} of {place}"]}, r"'d': templates: .* must hold \{\}"),
        ({"splits": {"train": 35}}, r"splits\.train states 35 rows but the files hold 36"),
        ({"splits": [1]}, r"splits must map"),
    ],
)
def test_bad_facts_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    facts(parquet_domain(tmp_path, "d"), **changes)
    with pytest.raises(UserError, match=reason) as caught:
        stream(tmp_path)
    assert "\n" not in str(caught.value)


def test_optional_facts_may_be_absent(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d")
    facts(folder, source=None, licence=None, splits=None, name=None)
    (domain,) = stream(tmp_path)
    assert (domain.name, domain.source, domain.licence) == ("d", "not stated", "not stated")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (pa.array([0, 1, -1] * 12), r"label -1 is outside 0\.\.2"),
        (pa.array(["d 0", "d 1", "cat"] * 12), r"label 'cat' is no class"),
        (pa.array([0.0, 1.0, 2.0] * 12), r"labels are double"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, labels: pa.Array, reason: str) -> None:
    relabel(parquet_domain(tmp_path, "d"), labels)
    with pytest.raises(UserError, match=rf"train\.parquet: {reason}"):
        stream(tmp_path)


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d")
    data = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"d/test\.parquet: not a readable parquet"):
        stream(tmp_path)
    (folder / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"d: no test\.parquet"):
        stream(tmp_path)
    (folder / "domain.json").write_text("{")
    with pytest.raises(UserError, match=r"d/domain\.json: not valid JSON"):
        stream(tmp_path)
    (folder / "domain.json").unlink()
    with pytest.raises(UserError, match=r"d/domain\.json: missing"):
        stream(tmp_path)


def test_empty_split_is_refused(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d")
    facts(folder, splits=None)
    pq.write_table(pq.read_table(folder / "test.parquet").slice(0, 0), folder / "test.parquet")
    with pytest.raises(UserError, match="'d': its test split has no rows"):
        stream(tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"order": ["a", "nope"]}, r"stream\.order: no domain 'nope'; known are a, b"),
        ({"order": ["a", "b", "a"]}, r"stream\.order: 'a' is listed twice"),
        ({"order": []}, r"stream\.order: is empty"),
        (
            {"reader": "carrier-pigeon"},
            r"stream\.reader=carrier-pigeon: unknown; choose one of folder, .*",
        ),
        ({"options": {"colour": 1}}, r"stream\.options\.colour: unknown option"),
        ({"options": {"image": 3}}, r"stream\.options\.image: 3 is not a str"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    for name in ("a", "b"):
        parquet_domain(tmp_path, name)
    with pytest.raises(UserError, match=reason):
        stream(tmp_path, **settings)


def test_bad_roots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stream\.root: missing"):
        stream(None)
    with pytest.raises(UserError, match=r"stream\.root: .* is not a folder"):
        stream(tmp_path / "absent")
    with pytest.raises(UserError, match=r"stream\.root: cannot open pigeon://loft"):
        stream("pigeon://loft")
    with pytest.raises(UserError, match=r"stream\.root: no domains"):
        stream(tmp_path)


def test_a_broken_domain_outside_the_order_does_no_harm(tmp_path: Path) -> None:
    parquet_domain(tmp_path, "good")
    facts(parquet_domain(tmp_path, "bad"), classes=None)
    assert [d.name for d in stream(tmp_path, order=["good"])] == ["good"]


def test_readers_register_themselves() -> None:
    assert {"folder", "hf", "parquet", "torchvision"} <= set(readers.known())
    assert readers.get("parquet").__name__ == "ParquetReader"


def image_folders(root: Path, *folders: str, count: int = 5) -> None:
    for n, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(png((n * 9, 5, 5), seed=i))
        (root / folder / ".DS_Store").write_bytes(b"x")


def test_folder_with_ready_splits(tmp_path: Path) -> None:
    image_folders(tmp_path / "pets", "train/big_cat", "train/dog", "test/big_cat", "test/dog")
    (domain,) = stream(tmp_path, "folder")
    assert domain.classes == ("big cat", "dog") and domain.templates == ("a photo of a {}.",)
    assert [row.label for row in rows(domain, "train")] == [0] * 5 + [1] * 5
    assert domain.splits["test"].count == 10
    (tmp_path / "pets/test/fox").mkdir()
    with pytest.raises(UserError, match=r"pets/test/fox: no such class in train/"):
        stream(tmp_path, "folder")


def test_folder_with_a_split_rule(tmp_path: Path) -> None:
    image_folders(tmp_path / "pets", "cat", "dog")
    about = {"classes": {"dog": "hound", "cat": "tabby"}, "templates": ["{}!"], "licence": "CC0"}
    (tmp_path / "pets/domain.json").write_text(json.dumps(about))
    settings = {"options": {"test_fraction": 0.4}}
    (domain,) = stream(tmp_path, "folder", **settings)
    assert (domain.classes, domain.licence) == (("hound", "tabby"), "CC0")
    assert [row.label for row in rows(domain, "test")] == [0, 0, 1, 1]
    images = {row.image for split in ("train", "test") for row in rows(domain, split)}
    assert len(images) == 10
    assert stream(tmp_path, "folder", **settings) == [domain]
    (tmp_path / "pets/cow").mkdir()
    with pytest.raises(UserError, match="classes and class folders differ in 'cow'"):
        stream(tmp_path, "folder")


def test_torchvision_by_name(tmp_path: Path) -> None:
    fake = {"size": 20, "image_size": [3, 9, 8], "num_classes": 3}
    sets = {"fake": {"set": "FakeData", "train": fake, "test": fake, "classes": ["a", "b_c", "d"]}}
    settings: dict[str, Any] = {"order": ["fake"], "options": {"sets": sets}}
    (domain,) = stream(tmp_path, "torchvision", **settings)
    assert domain.classes == ("a", "b c", "d")
    found = rows(domain, "train")
    assert [row.index for row in found] == list(range(20))
    assert isinstance(found[0].image, np.ndarray) and found[0].image.shape == (9, 8, 3)
    assert stream(tmp_path, "torchvision", **settings) == [domain]
    sets["fake"]["test"] = None
    (domain,) = stream(tmp_path, "torchvision", **settings)
    assert domain.splits["train"].count + domain.splits["test"].count == 20
    sets["fake"]["set"] = "NoSuchSet"
    with pytest.raises(UserError, match=r"torchvision\.datasets has no 'NoSuchSet'"):
        stream(tmp_path, "torchvision", **settings)


def test_hf_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package `datasets`"):
        stream(None, "hf", order=["mnist"])


def test_hf_load_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=refuse))
    with pytest.raises(UserError, match="cannot load ylecun/mnist, split 'train': no route to"):
        stream(None, "hf", order=["mnist"])
    with pytest.raises(UserError, match=r"sets\.pets\.path: missing"):
        stream(None, "hf", order=["pets"], options={"sets": {"pets": {}}})
