"""Targets that would cost far more than their files suggest: refused before they are decoded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image, PngImagePlugin

from archipelago.pipeline.streams.pascal import files, matfiles
from archipelago.pipeline.streams.pascal.labels import NORMAL_LABELS
from tests.unit.test_streams_cache import prepare
from tests.unit.test_streams_pascal import ALL, HIGH, WIDE, person, save_mat, stream, tree


def test_targets_of_an_image_over_max_pixels_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "data")
    high, wide = 6 * HIGH, 8 * WIDE
    name = "2008_train1"
    Image.new("RGB", (wide, high)).save(root / "JPEGImages" / f"{name}.jpg")
    for place in ("normals_distill", "sal_distill", "semseg/VOC12"):
        Image.new("L", (wide, high)).save(root / place / f"{name}.png")
    big = np.ones((high, wide), np.uint16)
    save_mat(root / "pascal-context" / "trainval" / f"{name}.mat", LabelMap=big)
    decoded = []

    def watch(read: object) -> object:
        def watched(data: bytes, high: int, wide: int, *rest: object) -> object:
            decoded.append((high, wide))
            return read(data, high, wide, *rest)  # type: ignore[operator]

        return watched

    for reader in ("png", "label_map", "parts"):
        monkeypatch.setattr(files, reader, watch(getattr(files, reader)))
    domains = prepare(stream(root, max_pixels=10_000), tmp_path, size=24)
    assert set(decoded) == {(HIGH, WIDE)}
    assert {d.name: d.quarantined for d in domains} == dict.fromkeys(ALL, 1)
    for task in ALL:
        (row,) = pq.read_table(tmp_path / f"run/quarantine-{task}.parquet").to_pylist()
        assert (
            row["file"] == f"JPEGImages/{name}.jpg" and "is over stream.max_pixels" in row["reason"]
        )


def mat(**values: object) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, values, do_compression=True)
    return file.getvalue()


def element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body.ljust(-(-len(body) // 8) * 8, b"\0")


def matrix(kind: int, sides: tuple[int, ...], *inside: bytes) -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<2i", *sides))
    return element(14, head + element(1, b"anno") + b"".join(inside))


def by_hand(*elements: bytes, packed: bool) -> bytes:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    for one in elements:
        body = zlib.compress(one)
        header += struct.pack("<II", 15, len(body)) + body if packed else one
    return header


def nested(depth: int) -> bytes:
    inner = matrix(6, (0, 0))
    for _ in range(depth):
        inner = matrix(1, (1, 1), inner)
    return inner


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (mat(LabelMap=np.zeros((4000, 4000))), "unpacks to more than"),
        (mat(LabelMap=np.zeros((HIGH, WIDE)), more=np.zeros((4000, 4000))), "unpacks to more than"),
        (mat(**{f"v{i}": np.zeros((400, 400)) for i in range(60)}), "unpacks to more than"),
        (by_hand(matrix(1, (30_000, 30_000)), packed=True), "more cells than it holds"),
        (by_hand(matrix(2, (30_000, 30_000)), packed=False), "more cells than it holds"),
        (by_hand(matrix(1, (1, 1), matrix(1, (9999, 9999))), packed=True), "more cells"),
        (by_hand(nested(60), packed=True), "nested too deeply"),
        (by_hand(b"", packed=False) + struct.pack("<II", 15, 4) + b"junk", "not a readable"),
        (b"", "not a readable"),
    ],
)
def test_a_mat_file_is_held_to_a_size_before_it_is_unpacked(
    data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = scipy.io.loadmat

    def careful(file: io.BytesIO, **options: bool) -> object:
        assert "not a readable" in reason, "parsed"
        return parse(file, **options)

    monkeypatch.setattr(scipy.io, "loadmat", careful)
    tracemalloc.start()
    try:
        for read in (files.label_map, lambda *a: files.parts(*a, 32 * HIGH * WIDE)):
            with pytest.raises(files.BadTarget, match=reason):
                read(data, HIGH, WIDE)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_sound_mat_files_pass(tmp_path: Path) -> None:
    labels = np.arange(HIGH * WIDE).reshape(HIGH, WIDE)
    for dtype in (np.uint8, np.uint16, np.int64):
        found = files.label_map(mat(LabelMap=labels.astype(dtype)), HIGH, WIDE)
        assert (found == labels.astype(dtype)).all()
    for packed in (False, True):
        file = io.BytesIO()
        scipy.io.savemat(file, {"anno": {"objects": person()}}, do_compression=packed)
        assert files.parts(file.getvalue(), HIGH, WIDE, 32 * HIGH * WIDE).max() == 4
    old = io.BytesIO()
    scipy.io.savemat(old, {"LabelMap": labels.astype(np.uint8)}, format="4")
    assert matfiles.load(old.getvalue(), 1).keys() == {"LabelMap"}


def test_normals_of_a_large_image_take_little_beside_them() -> None:
    high, wide = 1500, 2000
    labels = np.full((high, wide), next(iter(NORMAL_LABELS.values())), np.uint16)
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    tracemalloc.start()
    try:
        found = files.normals(file.getvalue(), labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found == files.to_stored(2.0 * pixels / 255.0 - 1.0)).all()
    assert peak < 40 * high * wide, "floats of all pixels at once"


def test_text_and_profiles_of_a_target_say_nothing_about_its_pixels() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("history", "x" * 3_000_000, zip=True)
    file = io.BytesIO()
    Image.new("L", (WIDE, HIGH), 7).save(file, "PNG", pnginfo=notes)
    assert (files.labels(file.getvalue(), HIGH, WIDE) == 7).all()
