"""Parquet files as people have them: names in the schema, paths, views, splits without answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams import Domain, ImageTable
from tests.helpers import parquet_domain, png
from tests.unit.test_streams_cache import prepare
from tests.unit.test_streams_readers import facts, rows, stream

SPLITS = ("train", "test")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def only(root: Path, **settings: Any) -> Domain:
    (domain,) = stream(root, **settings)
    return domain


def states(folder: Path, names: list[str], splits: tuple[str, ...] = SPLITS) -> None:
    """Write class names into the schema of a domain's files, as Hugging Face does."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split in splits:
        table = pq.read_table(folder / f"{split}.parquet").replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{split}.parquet")


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (["d 1", "d 0", "d 2"], "label 0 is 'd 1' in the file's schema but 'd 0' in domain.json"),
        (["D_0", "d 2", "other"], "label 1 is 'd 2' in the file's schema but 'd 1'"),
        (["x", "d 0", "d 1", "d 2"], "label 0 is 'x' .* which lists 3 classes to 4"),
        (["x", "y", "z", "w"], "label 0 is 'x' .* which lists 3 classes to 4"),
    ],
)
def test_a_class_list_that_contradicts_the_schema_is_refused(
    tmp_path: Path, stored: list[str], reason: str
) -> None:
    states(parquet_domain(tmp_path, "d"), stored)
    with pytest.raises(UserError, match=rf"d/train\.parquet: {reason}"):
        only(tmp_path)


def test_the_splits_may_not_contradict_each_other(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d")
    states(folder, ["d 0", "d 1", "d 2"])
    states(folder, ["d 0", "d 2", "d 1"], ("test",))
    with pytest.raises(UserError, match=r"d/test\.parquet: label 1 is 'd 2'"):
        only(tmp_path)


def test_a_class_list_that_agrees_or_renames_is_taken(tmp_path: Path, caplog: Any) -> None:
    folder = parquet_domain(tmp_path, "d")
    for agrees in (["d 0", "d 1", "d 2"], ["D_0", "D-1", "d  2"], ["d 0", "d 1", "d 2", "d 3"]):
        states(folder, agrees)
        assert only(tmp_path).classes == ("d 0", "d 1", "d 2")
    assert not caplog.text
    states(folder, ["n01", "n02", "n03"])
    assert only(tmp_path).classes == ("d 0", "d 1", "d 2")
    assert "label 0 is 'n01' in the file's schema; it is called 'd 0'" in caplog.text


def test_classes_come_from_the_schema_where_nothing_states_them(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d")
    states(folder, ["one", "two", "three"])
    facts(folder, classes=None)
    assert only(tmp_path).classes == ("one", "two", "three")
    (folder / "domain.json").unlink()
    domain = only(tmp_path, options={"templates": ["a {} in the wild."]})
    assert (domain.classes, domain.templates) == (("one", "two", "three"), ("a {} in the wild.",))
    assert only(tmp_path).templates == ("a photo of a {}.",)


@pytest.mark.parametrize(
    ("binary", "text"),
    [
        (pa.binary_view(), pa.string_view()),
        (pa.large_binary(), pa.large_string()),
        (pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]), pa.string_view()),
    ],
    ids=["views", "large", "struct of views"],
)
def test_types_of_other_tools(tmp_path: Path, binary: pa.DataType, text: pa.DataType) -> None:
    folder = parquet_domain(tmp_path, "d")
    want = {split: pq.read_table(folder / f"{split}.parquet") for split in SPLITS}
    for split, table in want.items():
        images = table["image"].to_pylist()
        if not pa.types.is_struct(binary):
            images = [image["bytes"] for image in images]
        names = [f"d {label}" for label in table["label"].to_pylist()]
        table = pa.table({"image": pa.array(images, binary), "label": pa.array(names, text)})
        pq.write_table(table, folder / f"{split}.parquet")
    domain = only(tmp_path)
    for split, table in want.items():
        found = rows(domain, split)
        assert [row.image for row in found] == [i["bytes"] for i in table["image"].to_pylist()]
        assert [row.label for row in found] == table["label"].to_pylist()


def linked(root: Path, kind: pa.DataType = IMAGE) -> Path:
    """A domain whose rows name their images, by relative and absolute paths in turn."""
    folder = parquet_domain(root, "linked", classes=2, train=12, test=6)
    for split in SPLITS:
        table = pq.read_table(folder / f"{split}.parquet")
        images: list[Any] = []
        for i, image in enumerate(table["image"].to_pylist()):
            file = folder / "images" / split / f"{i:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image["bytes"])
            path = f"images/{split}/{file.name}" if i % 2 else str(file)
            images.append(path if pa.types.is_string(kind) else {"bytes": None, "path": path})
        table = pa.table({"image": pa.array(images, kind), "label": table["label"]})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    "kind", [IMAGE, pa.string(), pa.struct([("path", pa.string())])], ids=["null", "text", "path"]
)
def test_images_named_by_path_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    folder = linked(tmp_path / "data", kind)
    domain = only(tmp_path / "data")
    files = sorted((folder / "images/train").iterdir())
    assert [row.image for row in rows(domain, "train")] == [file.read_bytes() for file in files]
    (prepared,) = prepare([domain], tmp_path)
    assert prepared.counts == {"train": 24, "test": 12} and not prepared.quarantined
    files[3].write_bytes(png((1, 2, 3)))
    assert only(tmp_path / "data").splits["train"].digest != domain.splits["train"].digest


def test_paths_that_lead_nowhere_or_out_are_quarantined(tmp_path: Path) -> None:
    folder = linked(tmp_path / "data")
    (tmp_path / "secret.png").write_bytes(png((1, 2, 3)))
    odd = ["gone.png", "../../secret.png", str(tmp_path / "secret.png"), "https://x.org/a.png"]
    odd += ["images", "", "images/\0.png"]
    table = pq.read_table(folder / "train.parquet")
    images = table["image"].to_pylist()
    for i, path in enumerate(odd):
        images[i]["path"] = path
    images[len(odd)] = None
    pq.write_table(table.set_column(0, "image", pa.array(images, IMAGE)), folder / "train.parquet")
    (prepared,) = prepare([only(tmp_path / "data")], tmp_path)
    assert prepared.counts["train"] == 24 - len(odd) - 1
    found = pq.read_table(tmp_path / "run/quarantine-linked.parquet").to_pylist()
    said = [row["reason"] for row in found]
    assert "'gone.png' is not there" in said[0] and found[0]["file"] == "gone.png"
    assert all("outside of stream.root" in reason for reason in said[1:3])
    assert "is an address" in said[3] and "is not there" in said[4]
    assert said[5] == said[7] == "no image (null)" and found[7]["file"] == "train.parquet"


def test_rows_are_found_by_their_paths(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path / "data", "d", classes=3, train=200)
    table = pq.read_table(folder / "train.parquet")
    images = table["image"].to_pylist()
    for row in (5, 320, 599):
        images[row]["bytes"] = b"no image"
    images[320]["path"] = None
    pq.write_table(
        table.set_column(0, "image", pa.array(images, IMAGE)),
        folder / "train.parquet",
        row_group_size=130,
    )
    prepare([only(tmp_path / "data")], tmp_path)
    found = pq.read_table(tmp_path / "run/quarantine-d.parquet").to_pylist()
    assert [(row["row"], row["file"]) for row in found] == [
        (5, "train-5.png"),
        (320, "train.parquet"),
        (599, "train-599.png"),
    ]


def contest(root: Path, labels: pa.Array | None) -> Path:
    folder = parquet_domain(root, "contest", classes=2)
    facts(folder, splits=None)
    (folder / "data").mkdir()
    for split in SPLITS:
        (folder / f"{split}.parquet").rename(folder / f"data/{split}-00000-of-00001.parquet")
    test = folder / "data/test-00000-of-00001.parquet"
    table = pq.read_table(test)
    pq.write_table(table, folder / "data/validation-00000-of-00001.parquet")
    without = table.drop_columns(["label"])
    pq.write_table(without if labels is None else without.append_column("label", labels), test)
    return folder


@pytest.mark.parametrize(
    "labels",
    [pa.array([-1] * 12), pa.array([None] * 12, pa.int64()), pa.nulls(12), pa.array([""] * 12)],
    ids=["-1", "null numbers", "null", "empty"],
)
def test_a_test_without_answers_names_the_split_that_has_them(
    tmp_path: Path, labels: pa.Array
) -> None:
    contest(tmp_path, labels)
    with pytest.raises(
        UserError,
        match=r"test split is unlabelled \(every label is .*`validation` is there: "
        r"stream\.options\.test=validation",
    ):
        only(tmp_path)
    domain = only(tmp_path, options={"test": "validation"})
    assert domain.splits["test"].count == 12


def test_a_test_without_a_label_column_or_without_files(tmp_path: Path) -> None:
    folder = contest(tmp_path, None)
    with pytest.raises(UserError, match=r"no column 'label'; it has image; a split `validation`"):
        only(tmp_path)
    (folder / "data/test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"no test\.parquet .*stream\.options\.test=validation"):
        only(tmp_path)


def test_all_repeated_class_names_are_told_at_once(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d", classes=8)
    names = [
        "missile",
        "tench",
        "missile",
        "sunglass",
        "sunglasses",
        "sunglasses ",
        "Café",
        "Cafe\u0301",
    ]
    facts(folder, classes=names)
    with pytest.raises(UserError) as caught:
        only(tmp_path)
    assert "'missile' occurs twice (numbers 0 and 2); 'sunglasses' occurs" in str(caught.value)
    assert "(numbers 4 and 5); 'Café' occurs twice (numbers 6 and 7" in str(caught.value)


def test_labels_match_in_any_unicode_form(tmp_path: Path) -> None:
    folder = parquet_domain(tmp_path, "d", classes=2)
    facts(folder, classes=["Café", "Müll"])
    for split in SPLITS:
        table = pq.read_table(folder / f"{split}.parquet")
        names = [("Cafe\u0301", "Mu\u0308ll")[i] for i in table["label"].to_pylist()]
        pq.write_table(table.set_column(1, "label", pa.array(names)), folder / f"{split}.parquet")
    (prepared,) = prepare([only(tmp_path)], tmp_path)
    labels = ImageTable.open(prepared.tables["train"]).labels
    assert np.bincount(labels).tolist() == [12, 12] and prepared.classes == ("Café", "Müll")


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("image", pa.array([[b"x", b"y"]] * 36), "images are list<.*binary>"),
        ("label", pa.array([[0, 1]] * 36), "labels are list<.*int64>"),
        ("image", pa.array([7] * 36), "images are int64"),
        ("image", pa.array([{"data": b"x"}] * 36), "images are struct<data: binary>"),
        ("label", pa.array([True] * 36), "labels are bool"),
    ],
)
def test_columns_of_other_types_are_named(
    tmp_path: Path, column: str, values: pa.Array, reason: str
) -> None:
    folder = parquet_domain(tmp_path, "d")
    table = pq.read_table(folder / "train.parquet")
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values), folder / "train.parquet")
    with pytest.raises(UserError, match=rf"train\.parquet: {reason}"):
        only(tmp_path)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
