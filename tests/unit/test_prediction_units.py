"""Batch prediction: what an input holds, and the units of work it is cut into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.prediction import units
from archipelago.pipeline.prediction.listing import list_images
from archipelago.pipeline.prediction.reading import decode_part
from archipelago.pipeline.prediction.units import unit_rows
from tests.helpers import png
from tests.unit.tiny_prediction import fill_photos, table_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill_photos(tmp_path / "photos", np.zeros((12, 8, 8, 3), np.uint8))


# -- units ---------------------------------------------------------------------------------------


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(b"not looked at")


def _names(folder: Path, rows: int) -> dict[str, tuple[str, ...]]:
    """Paths of each unit."""
    found = {}
    for part in list_images(str(folder), rows).parts:
        for unit, images in part.read([unit.name for unit in part.units]):
            found[unit.name] = tuple(image.path for image in images)
            assert len(found[unit.name]) == unit.images
    return found


def test_a_changed_listing_changes_only_the_units_it_falls_into(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    _fill(folder / "a", 300)
    _fill(folder / "b", 100)
    before = _names(folder, 32)
    assert before == _names(folder, 32), "the same listing, the same units"
    assert len(before) > 12 and max(map(len, before.values())) <= 32
    paths = [path for unit in before.values() for path in unit]
    assert len(paths) == len(set(paths)) == 400

    (folder / "a" / "0100x.png").write_bytes(b"new")
    (folder / "b" / "0050.png").unlink()
    (folder / "a" / "0003.png").write_bytes(b"other bytes")
    os.utime(folder / "a" / "0250.png", ns=(1, 1))  # written anew, with as many bytes
    after = _names(folder, 32)
    touched = {"a/0100x.png", "b/0050.png", "a/0003.png", "a/0250.png"}
    gone = [unit for name, unit in before.items() if name not in after]
    new = [unit for name, unit in after.items() if name not in before]
    assert 4 <= len(gone) <= 8 and 4 <= len(new) <= 8, "all others keep their names"
    assert all(set(unit) & touched for unit in gone[:1] + new[:1])
    paths = [path for unit in after.values() for path in unit]
    assert len(paths) == len(set(paths)) == 400


@pytest.mark.parametrize(
    ("groups", "rows", "counts"),
    [
        (10, 32, [30, 30, 30, 10]),  # small row groups are taken together
        (50, 32, [25, 25, 25, 25]),  # a large one is cut evenly
        (100, 1024, [100]),
    ],
)
def test_a_table_is_cut_along_its_row_groups(
    tmp_path: Path, groups: int, rows: int, counts: list[int]
) -> None:
    data = [{"bytes": str(number).encode(), "path": None} for number in range(100)]
    file = table_of(data, tmp_path / "some photos.parquet", rows=groups)
    listing = list_images(str(file), rows)
    assert [unit.images for part in listing.parts for unit in part.units] == counts
    names = list(listing.names)
    assert names == sorted(names) and all(units.is_unit(name) for name in names)
    assert names[0].startswith("some_photos-000000000-")
    every = [image for part in listing.parts for _, images in part.read(names) for image in images]
    assert [image.path for image in every] == [f"some photos.parquet#{n}" for n in range(100)]
    assert [image.data for image in every] == [str(n).encode() for n in range(100)]
    last = [
        image for part in listing.parts for _, images in part.read(names[-1:]) for image in images
    ]
    assert last == every[-counts[-1] :], "others are passed over"


def test_units_are_smaller_for_larger_images() -> None:
    assert [unit_rows(size) for size in (32, 64, 224, 336, 4096)] == [1024, 1024, 445, 198, 32]


# -- what an input holds -------------------------------------------------------------------------


def test_files_and_tables_are_listed_together(photos: Path) -> None:
    table_of([png((1, 2, 3))] * 3, photos / "more.parquet", "picture")
    (photos / "a.HEIC").write_bytes(b"not decoded here, but an image")
    (photos / "gone.jpg").symlink_to("nowhere")
    listing = list_images(str(photos), 1024)
    assert listing.count == 12 + 3 + 2
    assert sorted(listing.ignored) == ["README", "notes.txt"] and listing.ignored_count == 2
    found = {}
    for part in listing.parts:
        for decoded in decode_part(part, listing.names, 8, 10_000):
            found |= dict(zip(decoded.paths, decoded.errors, strict=True))
            assert len(decoded.pixels) == decoded.errors.count("")
    bad = {path: error for path, error in found.items() if error}
    assert bad == {
        "a.HEIC": "not an image, or of an unknown format",
        "gone.jpg": "a link to a file that is not there",
    }


def test_one_file_is_an_input_too(photos: Path) -> None:
    assert list_images(str(photos / "001.png"), 1024).count == 1
    table_of([png((1, 2, 3))], photos / "img.parquet", "img")
    assert next(iter(list_images(str(photos / "img.parquet"), 1024).names)).startswith("img-")


def test_what_is_no_input_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_bytes(b"x")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    words = table_of([1, 2], tmp_path / "words.parquet", "label")
    two = tmp_path / "two.parquet"
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), two)
    for given, said in (
        (empty, r"input=.*empty: holds no images and no parquet files; it holds notes.txt"),
        (tmp_path / "nowhere", r"input: .*nowhere is not a folder"),
        (tmp_path / "nowhere.png", r"input: .*nowhere.png is not there"),
        (broken, r"broken.parquet: not a readable parquet: .*; fetch it again or move it away"),
        (words, r"words.parquet: no column 'image' \(it has label, id\)"),
        (two, r"two.parquet: no column 'image' \(several: left, right\)"),
    ):
        with pytest.raises(UserError, match=said):
            list_images(str(given), 1024)


def test_rows_may_name_files_inside_the_input_only(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "a.png").write_bytes(png((9, 9, 9)))
    (tmp_path / "secret.png").write_bytes(png((9, 9, 9)))
    paths = ["files/a.png", "../secret.png", "files/b.png", None]
    images: list[dict[str, Any]] = [{"bytes": None, "path": path} for path in paths]
    images.append({"bytes": png((9, 9, 9)), "path": "../secret.png"})
    table_of(images, folder / "t.parquet")
    (part,) = [p for p in list_images(str(folder), 64).parts if isinstance(p, units.TablePart)]
    (decoded,) = decode_part(part, [unit.name for unit in part.units], 8, 10_000)
    assert decoded.errors == [
        "",
        "no bytes, and '../secret.png' lies outside of input: embed the file",
        "no bytes, and the file 'files/b.png' is not there: embed it, or fetch it",
        "no image (null)",
        "",
    ]


def test_a_table_that_is_damaged_inside_costs_its_own_images_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = [rng.bytes(500) for _ in range(90)]
    file = tmp_path / "t.parquet"
    table = pa.table({"image": data})
    pq.write_table(table, file, row_group_size=30, compression="zstd", use_dictionary=False)
    at = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    torn = bytearray(file.read_bytes())
    torn[at : at + 400] = bytes(400)
    file.write_bytes(torn)
    listing = list_images(str(file), 30)
    read = {
        image.path: image
        for part in listing.parts
        for _, images in part.read(listing.names)
        for image in images
    }
    assert len(read) == 90
    faults = [number for number in range(90) if read[f"t.parquet#{number}"].fault]
    assert faults == list(range(30, 60))
    assert read["t.parquet#45"].fault.startswith("cannot be read: ")


def test_an_input_that_is_away_is_no_error_of_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    _fill(folder, 3)
    listing = list_images(str(folder), 8)
    (folder / "0001.png").unlink()
    (found,) = (list(images) for _, images in listing.parts[0].read(listing.names))
    assert [bool(image.fault) for image in found] == [False, True, False]
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"input: .*in is not there for a worker"):
        [list(images) for _, images in listing.parts[0].read(listing.names)]
