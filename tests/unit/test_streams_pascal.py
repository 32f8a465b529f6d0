"""The PASCAL-Context layout: a generated tree of a few tiny images in its formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.settings import StreamSettings
from archipelago.pipeline.streams import DenseTable, Domain, open_stream
from archipelago.pipeline.streams.pascal.labels import NORMAL_LABELS, PART_OF
from archipelago.pipeline.streams.targets import SCALE
from tests.unit.test_streams_cache import prepare

HIGH, WIDE = 24, 32
FLOOR, SKY = 158, 360  # normals count on floors, not in the sky
ALL = ["edges", "human_parts", "normals", "sal", "semseg"]


def save_png(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putdata(pixels.ravel().tolist())
    image.save(path)


def save_mat(path: Path, **values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, values)


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """A MATLAB struct array (1, n)."""
    out = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        out[0, i] = tuple(row.values())
    return out


def person(class_ind: int = 15) -> np.ndarray:
    """A person at the left: a head above a left lower arm, and something else."""
    head, arm = np.zeros((HIGH, WIDE), np.uint8), np.zeros((HIGH, WIDE), np.uint8)
    head[2:8, 4:10], arm[8:14, 4:10] = 1, 1
    named = [{"part_name": "lear", "mask": head}, {"part_name": "llarm", "mask": arm}]
    thing = {"class": "x", "class_ind": class_ind, "mask": head | arm, "parts": structs(named)}
    bare = {"class": "x", "class_ind": 15, "mask": head, "parts": np.zeros((0, 0))}
    return structs([thing, bare])


def tree(root: Path, train: int = 3, test: int = 2) -> Path:
    lists = root / "ImageSets" / "Context"
    lists.mkdir(parents=True)
    for split, count in (("train", train), ("val", test)):
        ids = [f"2008_{split}{i}" for i in range(count)]
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for i, name in enumerate(ids):
            rng = np.random.default_rng(i)
            image = Image.fromarray(rng.integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8))
            (root / "JPEGImages").mkdir(exist_ok=True)
            image.save(root / "JPEGImages" / f"{name}.jpg")
            semseg = np.zeros((HIGH, WIDE), np.uint8)
            semseg[:, :12], semseg[0] = 15, 255
            place = "VOC12" if i % 2 else "pascal-context"
            save_png(root / "semseg" / place / f"{name}.png", semseg, palette=i % 2 == 1)
            save_mat(root / "human_parts" / f"{name}.mat", anno={"objects": person()})
            labels = np.full((HIGH, WIDE), SKY, np.uint16)
            labels[12:] = FLOOR
            save_mat(root / "pascal-context" / "trainval" / f"{name}.mat", LabelMap=labels)
            colours = np.full((HIGH, WIDE, 3), (128, 255, 128), np.uint8)
            save_png(root / "normals_distill" / f"{name}.png", colours)
            salient = np.zeros((HIGH, WIDE), np.uint8)
            salient[:, :16], salient[:, 16:20] = 200, 100
            save_png(root / "sal_distill" / f"{name}.png", salient)
    return root


def stream(root: Path, **settings: Any) -> list[Domain]:
    return open_stream(StreamSettings(reader="pascal", root=str(root), **settings), 0, dense=True)


def test_the_five_tasks_as_the_benchmark_reads_them(tmp_path: Path) -> None:
    domains = prepare(stream(tree(tmp_path / "data")), tmp_path, size=24)
    assert [d.name for d in domains] == ALL
    assert all(d.counts == {"train": 3, "test": 2} and not d.quarantined for d in domains)
    assert [len(d.classes) for d in domains] == [2, 7, 0, 2, 21]
    table = DenseTable.open(domains[0].tables["train"])
    found = {name: table.targets(name, np.arange(3)) for name in ALL}  # columns 4..27 of 32
    for semseg in found["semseg"]:
        assert (semseg[0] == 255).all() and (semseg[1:, :8] == 15).all()
        assert (semseg[1:, 8:] == 0).all()
    for parts in found["human_parts"]:
        assert (parts[2:8, :6] == 1).all() and (parts[8:14, :6] == 4).all()
        assert (parts > 0).sum() == 72
    assert (found["sal"][:, :, :12] == 1).all() and (found["sal"][:, :, 12:] == 0).all()
    assert (found["normals"][:, :12] == 0).all()
    up = found["normals"][:, 12:] / SCALE
    assert np.allclose(up, (0.0, 1.0, 0.0), atol=0.02)
    assert ((found["edges"] == 1).sum(axis=1) == 1).all()  # one line across, one pixel wide
    assert found["edges"][:, 11:13].any(axis=1).all()
    png = tree(tmp_path / "other", 2, 2)
    for file in (png / "human_parts").iterdir():
        file.unlink()
        save_png(file.with_suffix(".png"), np.full((HIGH, WIDE), 5, np.uint8))
    (alone,) = prepare(stream(png, order=["human_parts"]), tmp_path, size=24)
    assert (DenseTable.open(alone.tables["test"]).targets("human_parts", np.arange(2)) == 5).all()


def test_what_cannot_be_used_is_quarantined_for_its_task(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", train=10)
    names = [f"2008_train{i}" for i in range(10)]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (WIDE, HIGH)).save(root / "JPEGImages" / f"{names[9]}.jpg", exif=exif)
    (root / "sal_distill" / f"{names[0]}.png").unlink()
    save_png(root / "sal_distill" / f"{names[1]}.png", np.zeros((8, 8), np.uint8))
    (root / "human_parts" / f"{names[2]}.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600))
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n"
    (root / "human_parts" / f"{names[3]}.mat").write_bytes(hdf5)
    save_mat(root / "human_parts" / f"{names[4]}.mat", other=1)
    save_mat(root / "pascal-context" / "trainval" / f"{names[5]}.mat", LabelMap=np.zeros((3, 3)))
    save_png(root / "semseg" / "VOC12" / f"{names[7]}.png", np.full((HIGH, WIDE), 21, np.uint8))
    (root / "JPEGImages" / f"{names[8]}.jpg").write_bytes(b"no image")
    save_mat(root / "human_parts" / f"{names[6]}.mat", anno={"objects": person(class_ind=8)})
    domains = {d.name: d for d in prepare(stream(root), tmp_path, size=24)}
    assert {n: d.quarantined for n, d in domains.items()} == {
        "edges": 3,
        "human_parts": 5,
        "normals": 3,
        "sal": 4,
        "semseg": 3,
    }
    reasons = {}
    for name in ALL:
        rows = pq.read_table(tmp_path / f"run/quarantine-{name}.parquet").to_pylist()
        reasons[name] = {row["row"]: row["reason"] for row in rows}
        assert reasons[name][8] == "not an image, or of an unknown format"
        assert "stored turned (EXIF)" in reasons[name][9]
    assert reasons["sal"][0] == "sal: no target (no file)"
    assert "sal_distill/2008_train1.png: target of 8 x 8 pixels" in reasons["sal"][1]
    assert "not a readable .mat" in reasons["human_parts"][2]
    assert "MATLAB 7.3 (HDF5) file; write it again" in reasons["human_parts"][3]
    assert "not a PASCAL-Part annotation" in reasons["human_parts"][4]
    assert "LabelMap is float64" in reasons["edges"][5] and 5 in reasons["normals"]
    assert reasons["semseg"][7] == "semseg: label 21 is outside 0..20"
    table = DenseTable.open(domains["edges"].tables["train"])
    assert (table.targets("human_parts", np.array([6])) == 0).all()  # no person: no part


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("ImageSets/Context/val.txt", r"val\.txt: missing; .*stream\.options\.test"),
        ("JPEGImages", r"JPEGImages: holds no \.jpg files"),
        ("JPEGImages/2008_val1.jpg", r"2008_val1\.jpg: missing, but listed in ImageSets"),
        ("sal_distill", r"sal_distill: holds no \.png files for task 'sal'; .*human_parts,normals"),
        ("semseg", r"semseg/VOC12: holds no \.png files for task 'semseg'"),
    ],
)
def test_a_wrong_folder_is_refused_in_one_line(tmp_path: Path, gone: str, words: str) -> None:
    root = tree(tmp_path / "data", 1, 2)
    (root / gone).rename(tmp_path / "gone")
    with pytest.raises(UserError, match=words) as caught:
        stream(root)
    assert "\n" not in str(caught.value)
    if gone == "sal_distill":
        assert [d.name for d in stream(root, order=["semseg", "edges"])] == ["semseg", "edges"]
        stages = [["semseg"], ["edges"]]
        assert [d.name for d in stream(root, stages=stages)] == ["semseg", "edges"]


def test_an_empty_and_a_doubled_list_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", 1, 1)
    file = root / "ImageSets" / "Context" / "train.txt"
    file.write_text("2008_train0\n2008_train0\n")
    with pytest.raises(UserError, match="lists 2008_train0 twice"):
        stream(root)
    file.write_text("\n")
    with pytest.raises(UserError, match="lists no image"):
        stream(root)


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", 1, 1)
    before = stream(root)[0].splits["train"].digest
    assert stream(root)[0].splits["train"].digest == before
    save_png(root / "sal_distill" / "2008_train0.png", np.ones((HIGH, WIDE), np.uint8))
    assert stream(root)[0].splits["train"].digest != before


def test_label_tables() -> None:
    numbers = list(NORMAL_LABELS.values())
    assert numbers == sorted(set(numbers)) and numbers[0] > 0 and numbers[-1] < 460
    named = {"dog": 113, "person": 284, "sofa": 368, "tv monitor": 427, "wall": 440, "floor": 158}
    assert all(NORMAL_LABELS[name] == number for name, number in named.items())
    assert {"sky", "grass", "horse"}.isdisjoint(NORMAL_LABELS) and set(PART_OF.values()) == set(
        range(1, 7)
    )
