"""Messy streams through the whole command: what is learned, what is told, what is refused.

Each case comes from a public report of a data set that somebody had. Images are learned in closed
form in this process; the cases of machines, tracking and HTTP are in `tests/unit`.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from archipelago.jobs import sequence
from archipelago.pipeline.store import RunFolder
from tests.helpers import TINY, parquet_domain, png
from tests.running import IN_PROCESS, events

pytestmark = pytest.mark.timeout(300)

WORDS = (*TINY, *IN_PROCESS, "identifier=prototype", "method=gda_per_task")
COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def fill(folder: Path, number: int, count: int = 10, first: int = 0) -> None:
    """PNG files of a class."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:03d}.png").write_bytes(png(COLOURS[number % 4], 32, seed=i))


def classes(folder: Path, *names: str, count: int = 10) -> None:
    for number, name in enumerate(names):
        fill(folder / name, number, count)


def table(file: Path, labels: Sequence[int], image: pa.DataType = IMAGE, **more: Any) -> None:
    """A parquet file with an image for each label (-1 too)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = [png(COLOURS[label % 4], 32, seed=i) for i, label in enumerate(labels)]
    images = [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)]
    column = pa.array(images if image == IMAGE else data, image)
    pq.write_table(pa.table({"image": column, "label": list(labels), **more}), file)


def facts(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"classes": names, "templates": ["a photo of a {}."]}
    (folder / "domain.json").write_text(json.dumps(about))


def val_not_test(root: Path) -> None:
    classes(root / "bikes/train", "racer", "tandem")
    classes(root / "bikes/val", "racer", "tandem", count=4)


def nested(root: Path) -> None:
    fill(root / "pets/cat", 0, 4)
    fill(root / "pets/cat/batch1", 0, 6, 10)
    fill(root / "pets/dog/a/b", 1, 10)


def empty_class(root: Path) -> None:
    classes(root / "farm/train", "cow", "hen")
    classes(root / "farm/test", "cow", "hen", "plum", count=3)
    for name in ("goat", "plum"):
        (root / "farm/train" / name).mkdir()


def test_lacks_a_class(root: Path) -> None:
    classes(root / "scans/train", "0", "180", "270")
    fill(root / "scans/test/0", 0, 4)
    fill(root / "scans/test/270", 2, 4)


test_lacks_a_class.__test__ = False  # type: ignore[attr-defined]


def flat_test(root: Path) -> None:
    classes(root / "parts/train", "bolt", "nut")
    fill(root / "parts/test", 0, 4)


def junk(root: Path) -> None:
    classes(root / "garden", "rose", "tulip")
    classes(root / "__MACOSX/garden", "rose")
    fill(root / "garden/.ipynb_checkpoints", 0, 2)
    fill(root / "garden/@eaDir", 0, 2)
    for name in ("Thumbs.db", "desktop.ini"):
        (root / "garden/rose" / name).write_bytes(b"junk")
    (root / "lost+found").mkdir()


def latin1(root: Path) -> None:
    classes(root / "words", "fille")
    fill(root / "words" / b"gar\xe7on".decode("utf-8", "surrogateescape"), 1)


def two_forms(root: Path) -> None:
    name = "Café"
    fill(root / "stadt/train" / unicodedata.normalize("NFC", name), 0)
    fill(root / "stadt/train/Park", 1)
    fill(root / "stadt/test" / unicodedata.normalize("NFD", name), 0, 4)
    fill(root / "stadt/test/Park", 1, 4)


def dangling(root: Path) -> None:
    classes(root / "birds", "finch", "wren")
    for i in range(5):
        (root / "birds/finch" / f"gone{i}.png").symlink_to(root / "annex" / f"{i}.png")


def broken_files(root: Path) -> None:
    classes(root / "dogs", "pug", "chow")
    good = (root / "dogs/pug/000.png").read_bytes()
    for name, data in (("j", b""), ("k", b"<html>404</html>"), ("l", good[:90]), ("m", b"\0" * 99)):
        (root / "dogs/pug" / f"{name}.jpg").write_bytes(data)
    Image.open(io.BytesIO(good)).convert("CMYK").save(root / "dogs/pug/a_cmyk.jpg")
    Image.open(io.BytesIO(good)).save(root / "dogs/pug/b_webp.png", "WEBP")


def big_metadata(root: Path) -> None:
    classes(root / "art", "oil", "ink")
    about = PngImagePlugin.PngInfo()
    about.add_text("prompt", "x" * 3_000_000, zip=True)
    pixels = Image.fromarray(np.full((32, 32, 3), COLOURS[0], np.uint8))
    pixels.save(root / "art/oil/text.png", pnginfo=about)
    pixels.save(root / "art/oil/icc.png", icc_profile=bytes(3_000_000))


def one_shot(root: Path) -> None:
    facts(root / "one", "ant", "bee")
    table(root / "one/train.parquet", [0, 1])
    table(root / "one/test.parquet", [0, 1])


def beyond_the_context(root: Path) -> None:
    long = "a well preserved specimen of the very rare kind that was found by chance in the cellar "
    facts(root / "museum", *(f"{long * 3} number {i}" for i in range(2)))
    for split in ("train", "test"):
        table(root / f"museum/{split}.parquet", [0, 1] * 4)


def names_twice(root: Path) -> None:
    facts(root / "net", "crane", "missile", "crane", "missile")
    for split in ("train", "test"):
        table(root / f"net/{split}.parquet", [0, 1, 2, 3] * 2)


def paths_alone(root: Path) -> None:
    facts(root / "far", "ant", "bee")
    for split in ("train", "test"):
        files = [{"bytes": None, "path": f"images/{split}-{i}.png"} for i in range(8)]
        fill(root / "far/images", 0, 0)
        for i, file in enumerate(files):
            (root / "far" / str(file["path"])).write_bytes(png(COLOURS[i % 2], 32, seed=i))
        rows = {"image": pa.array(files, IMAGE), "label": [0, 1] * 4}
        pq.write_table(pa.table(rows), root / f"far/{split}.parquet")


def views(root: Path) -> None:
    facts(root / "new", "ant", "bee")
    for split in ("train", "test"):
        table(root / f"new/{split}.parquet", [0, 1] * 4, pa.binary_view())


def unlabelled(root: Path) -> None:
    facts(root / "contest", "ant", "bee")
    table(root / "contest/data/train-00000-of-00001.parquet", [0, 1] * 4)
    table(root / "contest/data/validation-00000-of-00001.parquet", [0, 1] * 4)
    table(root / "contest/data/test-00000-of-00001.parquet", [-1] * 4)


def labels_in_lists(root: Path) -> None:
    facts(root / "tagged", "ant", "bee")
    for split in ("train", "test"):
        table(root / f"tagged/{split}.parquet", [0, 1])
        found = pq.read_table(root / f"tagged/{split}.parquet")
        lists = found.set_column(1, "label", pa.array([[0], [1]]))
        pq.write_table(lists, root / f"tagged/{split}.parquet")


def one_set_cut_by_class(root: Path) -> None:
    for step in range(3):
        facts(root / f"step{step}", "glyph a", f"glyph {step}")
        for split in ("train", "test"):
            labels = [0, 1] * 6
            table(root / f"step{step}" / f"{split}.parquet", labels)


def odd_place(root: Path) -> None:
    parquet_domain(root / "Fotos März #2 (50%)/set=a, b", "amber", classes=2, size=32)


FOLDER, PARQUET = "folder", "parquet"
CASES: dict[str, tuple[str, Callable[[Path], None], Sequence[str], int, Sequence[str]]] = {
    "01 val, not test": (FOLDER, val_not_test, [], 2, ["bikes", "val/", "test/ is not"]),
    "01 val by option": (FOLDER, val_not_test, ["stream.options.test=val"], 0, []),
    "02 nested folders": (FOLDER, nested, [], 0, ["16 files lie in subfolders", "cat/batch1"]),
    "03 empty classes": (FOLDER, empty_class, [], 0, ["'goat'", "'plum'", "3 test images"]),
    "04 test lacks one": (FOLDER, test_lacks_a_class, [], 0, ["no usable test image of '180'"]),
    "05 flat test": (FOLDER, flat_test, [], 2, ["parts/test", "no class folders"]),
    "06 junk": (FOLDER, junk, [], 0, ["is skipped", "@eaDir/"]),
    "08 latin-1 name": (FOLDER, latin1, [], 2, ["gar\\xe7on", "domain.json"]),
    "09 NFC and NFD": (FOLDER, two_forms, [], 0, ["Unicode form"]),
    "10 dangling links": (FOLDER, dangling, [], 0, ["5 links lead nowhere"]),
    "11 broken files": (FOLDER, broken_files, [], 0, ["4 rows cannot be used"]),
    "12 big metadata": (FOLDER, big_metadata, [], 0, []),
    "14 one shot": (PARQUET, one_shot, [], 0, []),
    "14 one to train": (PARQUET, one_shot, ["method=trge"], 2, ["to hold out"]),
    "15 cut names": (PARQUET, beyond_the_context, [], 2, ["museum", "read the same"]),
    "16 names twice": (PARQUET, names_twice, [], 2, ["'crane'", "'missile'", "0 and 2", "1 and 3"]),
    "19 paths alone": (PARQUET, paths_alone, [], 0, []),
    "21 view types": (PARQUET, views, [], 0, []),
    "22 unlabelled": (PARQUET, unlabelled, [], 2, ["unlabelled", "options.test=validation"]),
    "22 by option": (PARQUET, unlabelled, ["stream.options.test=validation"], 0, []),
    "24 lists": (PARQUET, labels_in_lists, [], 2, ["labels are list"]),
    "26 cut by class": (PARQUET, one_set_cut_by_class, [], 0, []),
}
# Images of training and test, and rows in the quarantine, by domain.
COUNTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "02 nested folders": {"pets": (16, 4, 0)},
    "03 empty classes": {"farm": (20, 9, 0)},
    "04 test lacks one": {"scans": (30, 8, 0)},
    "06 junk": {"garden": (16, 4, 2)},
    "09 NFC and NFD": {"stadt": (20, 8, 0)},
    "10 dangling links": {"birds": (16, 4, 5)},
    "12 big metadata": {"art": (18, 4, 0)},
    "14 one shot": {"one": (2, 2, 0)},
    "19 paths alone": {"far": (8, 8, 0)},
    "21 view types": {"new": (8, 8, 0)},
    "22 by option": {"contest": (8, 8, 0)},
    "26 cut by class": {f"step{i}": (12, 12, 0) for i in range(3)},
}


def learn(reader: str, root: Path, run: Path, *words: str) -> int:
    places = [f"stream={reader}", f"stream.root={root}", f"run_dir={run}"]
    return sequence.main([*WORDS, *places, *words])


def prepared(run: Path) -> dict[str, tuple[int, int, int]]:
    found = {event["task"]: event for event in events(run, "prepared")}
    return {
        task: (event["counts"]["train"], event["counts"]["test"], event["quarantined"])
        for task, event in found.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_messy_streams(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reader, make, words, code, said = CASES[name]
    make(tmp_path / "data")
    with caplog.at_level(logging.INFO):
        assert learn(reader, tmp_path / "data", tmp_path / "run", *words) == code
    errors = capsys.readouterr().err.splitlines()
    if code:
        [line] = errors
        assert all(word in line for word in said), line
        assert not RunFolder(tmp_path / "run", read_only=True).groups.list()
        return
    assert all(word in caplog.text for word in said), caplog.text
    if name in COUNTS:
        assert prepared(tmp_path / "run") == COUNTS[name]
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["status"] == "complete"


def test_labels_of_a_test_that_lacks_a_class_are_not_shifted(tmp_path: Path) -> None:
    test_lacks_a_class(tmp_path / "data")
    assert learn(FOLDER, tmp_path / "data", tmp_path / "run") == 0
    record = json.loads((tmp_path / "run/evaluation/000.json").read_text())
    assert record["accuracy"]["mtil_given"][0] == 100.0


def test_a_broken_file_is_found_by_its_name(tmp_path: Path) -> None:
    broken_files(tmp_path / "data")
    assert learn(FOLDER, tmp_path / "data", tmp_path / "run") == 0
    rows = pq.read_table(tmp_path / "run/quarantine-dogs.parquet").to_pylist()
    assert sorted(row["file"] for row in rows) == [f"pug/{name}.jpg" for name in "jklm"]


def test_a_domain_that_grew_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    classes(root / "flowers", "lily", "rose")
    assert learn(FOLDER, root, run) == 0
    before = [ref.sha256 for ref in RunFolder.open(run).groups.list()]
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)
    fill(root / "flowers/lily", 0, 10, 50)
    for more in ("images", "class"):
        if more == "class":
            shutil.rmtree(root)
            shutil.copytree(kept, root)
            fill(root / "flowers/aster", 2)
        capsys.readouterr()
        assert learn(FOLDER, root, run) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "flowers" in line and "changed since it was learned" in line and "forget.py" in line
        assert [ref.sha256 for ref in RunFolder.open(run).groups.list()] == before
    shutil.rmtree(root)
    shutil.copytree(kept, root)
    assert learn(FOLDER, root, run) == 0


def test_a_place_with_special_characters_is_quoted_or_refused_with_a_hint_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    odd_place(tmp_path)
    place = tmp_path / "Fotos März #2 (50%)/set=a, b"
    words = [*WORDS, "stream=parquet", f"run_dir='{place}/läufe/r'"]
    assert sequence.main([*words, f"stream.root={place}"]) == 2
    hint = capsys.readouterr().err.strip().rpartition("special characters: ")[2]
    [root] = shlex.split(hint)
    assert sequence.main([*words, root]) == 0
    assert (place / "läufe/r/report.json").is_file()


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    root = tmp_path / "data"
    parquet_domain(root, "ants", classes=2, size=32)
    words = ["method=trge", "training.checkpoint_every=1", "cluster.train.threads=1"]
    assert learn(PARQUET, root, tmp_path / "whole", *words) == 0
    real, left = os.fsync, [60]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert learn(PARQUET, root, tmp_path / "run", *words) == 2
    assert "the disk is full; free some space" in capsys.readouterr().err
    assert learn(PARQUET, root, tmp_path / "run", *words) == 0
    hashes = [
        {ref.name: ref.sha256 for ref in RunFolder.open(tmp_path / name).groups.list()}
        for name in ("whole", "run")
    ]
    assert hashes[0] == hashes[1] != {}


def test_a_learning_rate_that_ends_in_no_numbers_is_never_a_finished_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    parquet_domain(root, "ants", classes=2, size=32)
    words = ["method=trge", "training.learning_rate=1e30"]
    assert learn(PARQUET, root, tmp_path / "run", *words) == 2
    assert "diverged" in capsys.readouterr().err
    assert events(tmp_path / "run", "stage-done") == []
    deep = ["method=trge", "experts.first_block=99"]
    assert learn(PARQUET, root, tmp_path / "deep", *deep) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sequence: experts.first_block=99: the ")
