"""Folders as people have them: every file is used, in the quarantine by name, or told of."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.streams import Domain, ImageTable
from tests.helpers import png
from tests.unit.test_streams_cache import prepare
from tests.unit.test_streams_readers import rows, stream


def fill(folder: Path, count: int = 5, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png((shade, 5, 5), seed=i))


def ready(root: Path, *classes: str, train: str = "train", test: str = "test") -> None:
    for n, name in enumerate(classes):
        fill(root / train / name, 5, n * 9)
        fill(root / test / name, 2, n * 9 + 3)


def only(root: Path, **settings: Any) -> Domain:
    shutil.rmtree(root / "out", ignore_errors=True)  # of `quarantine`
    (domain,) = stream(root, "folder", **settings)
    return domain


def quarantine(domain: Domain, base: Path) -> list[dict[str, Any]]:
    base = base / "out"
    prepare([domain], base)
    return pq.read_table(base / f"run/quarantine-{domain.name}.parquet").to_pylist()


def test_pictures_in_subfolders_of_a_class_count(tmp_path: Path, caplog: Any) -> None:
    fill(tmp_path / "pets/cat/batch1", 3)
    fill(tmp_path / "pets/cat/batch2/deep/er", 4, 9)
    fill(tmp_path / "pets/dog", 2, 18)
    fill(tmp_path / "pets/dog/phone", 5, 27)
    domain = only(tmp_path)
    assert domain.classes == ("cat", "dog")
    labels = [row.label for split in ("train", "test") for row in rows(domain, split)]
    assert (labels.count(0), labels.count(1)) == (7, 7)
    assert "12 files lie in subfolders" in caplog.text and "cat/batch1" in caplog.text


def test_a_class_may_have_any_name(tmp_path: Path) -> None:
    for n, name in enumerate(("_back_ground", ".hidden", "-1", "a b", "ü")):
        fill(tmp_path / "pets" / name, 3, n)
    (tmp_path / "pets/a b/.dotted.png").write_bytes(png((90, 9, 9)))
    (tmp_path / "pets/a b/_low.png").write_bytes(png((90, 9, 8)))
    domain = only(tmp_path)
    assert domain.classes == ("-1", ".hidden", "back ground", "a b", "ü")
    assert sum(domain.splits[s].count for s in ("train", "test")) == 17


def test_known_junk_is_neither_domain_nor_class_nor_image(tmp_path: Path, caplog: Any) -> None:
    fill(tmp_path / "garden/rose")
    fill(tmp_path / "garden/tulip", shade=9)
    junk = ("@eaDir", ".ipynb_checkpoints", "__MACOSX", "$RECYCLE.BIN", ".Trash-1000", "lost+found")
    for where in (tmp_path, tmp_path / "garden", tmp_path / "garden/rose"):
        for name in junk:
            fill(where / name, 2)
        (where / ".DS_Store").write_bytes(b"x")
    (tmp_path / "garden/rose/._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "garden/rose/Thumbs.db").write_bytes(b"x")
    (tmp_path / "garden/tulip/desktop.ini").write_bytes(b"x")
    domain = only(tmp_path)
    assert domain.name == "garden" and domain.classes == ("rose", "tulip")
    assert "@eaDir/" in caplog.text and "in all" in caplog.text
    found = quarantine(domain, tmp_path)
    assert [row["file"] for row in found] == ["rose/Thumbs.db", "tulip/desktop.ini"]
    assert all(row["row"] is None and "left by a system" in row["reason"] for row in found)


def test_what_lies_beside_is_told(tmp_path: Path, caplog: Any) -> None:
    ready(tmp_path / "pets", "cat", "dog")
    fill(tmp_path / "pets/val/cat", 4)
    fill(tmp_path / "pets/extra", 3)
    (tmp_path / "pets/labels.csv").write_text("x")
    (tmp_path / "pets/train/readme.txt").write_text("x")
    assert only(tmp_path).splits["train"].count == 10
    told = caplog.text
    assert "val/ is not used, its files are 4 (stream.options.test=val" in told
    assert "extra/ is not used, its files are 3" in told
    assert "labels.csv" in told and "1 file in train/ lies outside" in told and "readme.txt" in told
    fill(tmp_path / "_drafts/x")
    fill(tmp_path / ".old/x")
    assert only(tmp_path).name == "pets" and ".old, _drafts: no domains" in caplog.text


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (("train", "val"), r"train/ and val/ are there, test/ is not; .*stream\.options\.test=val"),
        (("train", "Validation"), r"set stream\.options\.test=Validation"),
        (("training", "testing"), r"stream\.options\.train=training stream\.options\.test=testing"),
        (("train",), r"train/ is there, test/ is not; add it"),
        (("test", "training"), r"train/ is not; .* set stream\.options\.train=training"),
        (("TRAIN", "dev"), r"set stream\.options\.test=dev"),
    ],
)
def test_half_a_pair_of_splits_is_no_class(
    tmp_path: Path, folders: tuple[str, ...], reason: str
) -> None:
    for folder in folders:
        for n, name in enumerate(("mountain", "road")):
            fill(tmp_path / "bikes" / folder / name, 3, n)
    with pytest.raises(UserError, match=reason):
        only(tmp_path)


def test_options_name_the_folders_of_splits(tmp_path: Path) -> None:
    ready(tmp_path / "bikes", "mountain", "road", test="val")
    domain = only(tmp_path, options={"test": "val"})
    assert domain.classes == ("mountain", "road") and domain.splits["test"].count == 4
    (tmp_path / "bikes/val").rename(tmp_path / "bikes/Test")  # as some systems write it
    assert only(tmp_path).splits["test"].digest == domain.splits["test"].digest
    with pytest.raises(UserError, match="same folder"):
        only(tmp_path, options={"test": "train"})


def test_a_train_is_a_class_among_vehicles(tmp_path: Path) -> None:
    for n, name in enumerate(("bus", "car", "train")):
        fill(tmp_path / "vehicles" / name, 3, n)
    assert only(tmp_path).classes == ("bus", "car", "train")


def test_flat_folders_are_refused_as_such(tmp_path: Path) -> None:
    ready(tmp_path / "parts", "ok", "nok")
    for name in ("ok", "nok"):
        for file in (tmp_path / "parts/test" / name).iterdir():
            file.rename(tmp_path / "parts/test" / f"{name}{file.name}")
        (tmp_path / "parts/test" / name).rmdir()
    with pytest.raises(UserError, match=r"parts/test: holds 4 files but no class folders"):
        only(tmp_path)
    fill(tmp_path / "flat/pets", 3)
    with pytest.raises(UserError, match=r"pets: holds 3 files but no class folders"):
        only(tmp_path / "flat")


def test_a_class_without_images_stays_and_is_named(tmp_path: Path, caplog: Any) -> None:
    from archipelago.pipeline.streams.coverage import check_coverage

    ready(tmp_path / "shop", "apple", "pear")
    (tmp_path / "shop/train/plum").mkdir()
    fill(tmp_path / "shop/test/plum", 4, 77)
    fill(tmp_path / "shop/train/fig", 4, 88)
    fill(tmp_path / "shop/train/kiwi", 0)
    (tmp_path / "shop/train/kiwi/notes.txt").write_text("no image")
    domain = only(tmp_path)
    assert domain.classes == ("apple", "fig", "kiwi", "pear", "plum")
    check_coverage(prepare([domain], tmp_path / "out"), 0.1, 0, holds_out=True)
    assert "no usable training image of 'kiwi', 'plum'; 4 test images" in caplog.text
    assert "no usable test image of 'fig': not measured" in caplog.text


def test_one_image_a_class_leaves_nothing_for_a_test(tmp_path: Path) -> None:
    for n in range(8):
        fill(tmp_path / f"single/sort_{n}", 1, n)
    with pytest.raises(UserError, match="one image a class leaves nothing for a test"):
        only(tmp_path)


def test_links_and_odd_files(tmp_path: Path, caplog: Any) -> None:
    fill(tmp_path / "birds/finch")
    fill(tmp_path / "birds/owl", shade=9)
    fill(tmp_path / "elsewhere", 3, 40)
    finch = tmp_path / "birds/finch"
    (finch / "linked.png").symlink_to(tmp_path / "elsewhere/0.png")
    (finch / "album").symlink_to(tmp_path / "elsewhere")
    (finch / "round").symlink_to(finch)
    for i in range(7):
        (finch / f"gone{i}.png").symlink_to(f"../../.annex/objects/{i}.png")
    os.mkfifo(finch / "pipe.png")
    domain = only(tmp_path, order=["birds"])
    assert sum(domain.splits[s].count for s in ("train", "test")) == 14
    assert "7 links" in caplog.text or "8 links" in caplog.text
    found = {row["file"]: row["reason"] for row in quarantine(domain, tmp_path)}
    assert len(found) == 9
    assert found["finch/gone3.png"] == "a link to a file that is not there"
    assert found["finch/round"] == "a link to a folder above it"
    assert found["finch/pipe.png"] == "no regular file"


def test_files_are_read_as_they_lie_whatever_they_are_called(tmp_path: Path) -> None:
    fill(tmp_path / "pets/cat")
    fill(tmp_path / "pets/dog", shade=9)
    bomb = gzip.compress(bytes(50_000_000))
    for name in ("a.gz", "b.png.gz", "c.bz2", "d.zst", "e.lz4", "f.xz"):
        (tmp_path / "pets/cat" / name).write_bytes(bomb if name == "a.gz" else b"no archive")
    domain = only(tmp_path)
    read = {row.index: row.image for split in ("train", "test") for row in rows(domain, split)}
    assert max(len(image) for image in read.values()) == len(bomb)
    found = quarantine(domain, tmp_path)
    assert sorted(Path(row["file"]).name for row in found)[0] == "a.gz" and len(found) == 6
    assert all(row["row"] is not None for row in found)


def test_a_bad_image_is_found_by_its_file(tmp_path: Path) -> None:
    ready(tmp_path / "dogs", "husky", "pug")
    (tmp_path / "dogs/train/pug/half.JPG").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (row,) = quarantine(only(tmp_path), tmp_path)
    assert (row["split"], row["file"]) == ("train", "train/pug/half.JPG")
    assert (row["row"] == 10 and "decode" in row["reason"]) or "image" in row["reason"]


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path, caplog: Any) -> None:
    for n, name in enumerate(("Bäckerei", "Café")):
        fill(tmp_path / "stadt/train" / unicodedata.normalize("NFD", name), 5, n)
        fill(tmp_path / "stadt/test" / unicodedata.normalize("NFC", name), 2, n + 50)
    domain = only(tmp_path)
    assert domain.classes == ("Bäckerei", "Café") and "Bäckerei" in caplog.text
    assert (domain.splits["train"].count, domain.splits["test"].count) == (10, 4)
    fill(tmp_path / "stadt/train/Café", 3, 99)  # composed, beside the decomposed one
    assert only(tmp_path).splits["train"].count == 13
    assert "differ in Unicode form only" in caplog.text
    about = {"classes": {unicodedata.normalize("NFD", "Café"): "coffee", "Bäckerei": "bread"}}
    (tmp_path / "stadt/domain.json").write_text(json.dumps(about))
    assert only(tmp_path).classes == ("coffee", "bread")


def raw(folder: Path, name: bytes) -> Path:
    return folder / os.fsdecode(name)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    fill(tmp_path / "places/beach")
    fill(tmp_path / "places/cafe", shade=9)
    raw(tmp_path / "places/cafe", b"caf\xe9.png").write_bytes(png((80, 1, 1)))
    raw(tmp_path / "places/cafe", b"bad\xe9.png").write_bytes(b"no image")
    domain = only(tmp_path)
    assert sum(domain.splits[s].count for s in ("train", "test")) == 12
    (row,) = quarantine(domain, tmp_path)
    assert row["file"] == r"cafe/bad\xe9.png"
    (tmp_path / "places/beach").rename(raw(tmp_path / "places", b"gar\xe7on"))
    with pytest.raises(UserError, match=r"places/gar\\xe7on: .* domain\.json: .*gar\\\\xe7on"):
        only(tmp_path)
    about = {"classes": {r"gar\xe7on": "boy", "cafe": "cafe"}}
    (tmp_path / "places/domain.json").write_text(json.dumps(about))
    assert only(tmp_path).classes == ("boy", "cafe")
    raw(tmp_path, b"d\xe9").mkdir()
    with pytest.raises(UserError, match=r"domain 'd\\\\xe9': use letters"):
        only(tmp_path)


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    ready(tmp_path / "pets", "cat", "dog")
    (tmp_path / "pets/domain.json").write_text('{"classes": {"cat": "c\\ud800t", "dog": "dog"}}')
    with pytest.raises(UserError, match=r"'pets': classes: number 0, .* is not valid Unicode"):
        only(tmp_path)


def test_labels_are_those_of_the_folders(tmp_path: Path) -> None:
    """A test split that lacks a class in the middle keeps the numbers of the others."""
    for n, name in enumerate(("0", "180", "270", "90")):
        fill(tmp_path / "turn/train" / name, 5, n)
        if name != "180":
            fill(tmp_path / "turn/test" / name, 2, n + 40)
    (prepared,) = prepare([only(tmp_path)], tmp_path / "out")
    labels = ImageTable.open(prepared.tables["test"]).labels
    assert np.bincount(labels, minlength=4).tolist() == [2, 0, 2, 2]
