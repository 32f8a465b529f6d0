"""Batch prediction without Ray: units of work, what an input holds, answers, the output."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from archipelago.jobs import predict
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.prediction import units
from archipelago.pipeline.store import RunFolder
from tests.helpers import png
from tests.unit import stored_run
from tests.unit.tiny_prediction import answers, fill_photos, same, table_of

HERE = "cluster.encode.num_workers=0"
COLUMNS = ["path", "label", "probability", "domain", "unseen", "top_k", "error"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored run, its test images beside it as `images.npy`."""
    return stored_run.copy(tmp_path_factory.mktemp("stored") / "it")


@pytest.fixture(scope="module")
def model(place: Path) -> LearnedModel:
    return LearnedModel.open(place / "run")


@pytest.fixture
def photos(place: Path, tmp_path: Path) -> Path:
    return fill_photos(tmp_path / "photos", np.load(place / "images.npy"))


def asked(place: Path, given: Path, output: Path, *more: str) -> list[str]:
    return [f"run_dir={place / 'run'}", f"input={given}", f"output={output}", HERE, *more]


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        (("batch_size=5", "top_k=2", "embedding=true"), {"top_k": 2}),
        (("candidates=[boats 1,zebra,a b]",), {"candidates": ["boats 1", "zebra", "a b"]}),
        (("task=boats", "manifest=3"), {"task": "boats"}),
        (("abstain=0.5",), {"abstain": 0.5}),
        (("manifest=0", "candidates=[red,blue]"), {"candidates": ["red", "blue"]}),
    ],
)
def test_answers_are_those_of_the_learned_model(
    place: Path,
    model: LearnedModel,
    photos: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    for word in words:
        if word.startswith("manifest"):
            model = LearnedModel.open(place / "run", int(word[-1]))
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "empty.png").write_bytes(b"")
    data = [photos / path for path in ("001.png", "deep/er/000.png")]
    stored = [{"bytes": file.read_bytes(), "path": file.name} for file in data]
    stored.insert(1, {"bytes": b"no image", "path": "x"})
    table_of(stored, photos / "t.parquet")
    output = tmp_path / "out"
    assert predict.main(asked(place, photos, output, *words)) == 0
    found = answers(output)
    assert len(found) == 12 + 2 + 3
    names = COLUMNS + ["embedding"] * ("embedding=true" in words)
    assert pq.read_table(output).column_names == names
    sources = {p: photos / p for p in found if "#" not in p} | {
        "t.parquet#0": data[0],
        "t.parquet#2": data[1],
    }
    refused = 0
    for path, row in found.items():
        if path in ("broken.jpg", "empty.png", "t.parquet#1"):
            assert row["error"] and all(row[n] is None for n in names if n not in ("path", "error"))
            continue
        assert row["error"] is None
        (answer,) = model.answer([sources[path]], **options)
        same(row, answer)
        refused += answer.refused
        if "embedding" in names:
            (vector,) = model.embed([sources[path]])
            assert row["embedding"] == pytest.approx(vector.tolist(), abs=1e-6)
    assert bool(refused) == ("abstain" in options)


def test_hostile_images_are_rows_with_an_error(place: Path, tmp_path: Path, photos: Path) -> None:
    bomb = io.BytesIO()
    Image.new("L", (3000, 3000)).save(bomb, "PNG")
    (photos / "bomb.png").write_bytes(bomb.getvalue())
    (photos / "cut.png").write_bytes((photos / "001.png").read_bytes()[:60])
    output = tmp_path / "out"
    assert predict.main(asked(place, photos, output, "stream.max_pixels=1_000_000")) == 0
    bad = {path: row["error"] for path, row in answers(output).items() if row["error"]}
    assert bad.keys() == {"bomb.png", "cut.png"}
    assert bad["bomb.png"] == ("too many pixels: 3000 x 3000 is over stream.max_pixels=1000000")


# -- the output ----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Units of four images."""
    monkeypatch.setattr(units, "MOST", 4)
    monkeypatch.setattr(units, "LEAST", 4)
    yield


def stamps(output: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in output.glob("*.parquet")}


def state(output: Path) -> dict[str, Any]:
    return json.loads((output / "_prediction" / "state.json").read_text())


def test_what_is_written_is_not_done_again(
    place: Path, photos: Path, tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = asked(place, photos, output)
    assert predict.main(words) == 0
    first, rows = stamps(output), answers(output)
    assert len(first) >= 3 and len(rows) == 12
    assert (state(output)["status"], state(output)["images"]) == ("complete", 12)
    assert predict.main(words) == 0
    assert stamps(output) == first

    lost = sorted(first)[0]
    (output / lost).unlink()
    assert predict.main(words) == 0
    assert {name for name, at in stamps(output).items() if first[name] != at} == {lost}
    assert answers(output) == rows

    (photos / "new.png").write_bytes((photos / "001.png").read_bytes())
    (photos / "003.png").unlink()
    (photos / "005.png").write_bytes(b"broken since")
    assert predict.main(words) == 0
    now = answers(output)
    assert now.keys() == (rows.keys() | {"new.png"}) - {"003.png"}
    assert now["new.png"]["label"] == rows["001.png"]["label"] and now["005.png"]["error"]
    assert any(first.get(name) == at for name, at in stamps(output).items()), "some are kept"


def test_another_question_or_model_is_refused_in_one_line(
    place: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert predict.main(asked(place, photos, output, "candidates=[a,b]")) == 0
    first = stamps(output)
    capsys.readouterr()
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(png((1, 2, 3)))
    for given, words, said in (
        (photos, ["candidates=[a,c]"], "was made with candidates=[a,b], not candidates=[a,c]"),
        (photos, [], "was made with candidates=[a,b], not no candidates"),
        (photos, ["candidates=[a,b]", "embedding=true"], "embedding=false, not embedding=true"),
        (photos, ["candidates=[a,b]", "stream.max_pixels=5"], "not max_pixels=5"),
        (other, ["candidates=[a,b]"], f"not input={other}; give another output, or the same word"),
        (
            photos,
            ["candidates=[a,b]", "manifest=1"],
            "was made with manifest=4, not manifest=1; give another output, or say manifest=4",
        ),
    ):
        assert predict.main(asked(place, given, output, *words)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert stamps(output) == first
    same_answers = ["candidates=[a,b]", "batch_size=3", "manifest=4", "cluster.timeout_s=60"]
    assert predict.main(asked(place, photos, output, *same_answers)) == 0


def test_a_prediction_goes_on_with_the_model_it_began_with(
    place: Path, photos: Path, tmp_path: Path, small: None, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    assert predict.main(asked(place, photos, output, "manifest=2")) == 0
    expected = answers(output)
    (output / sorted(stamps(output))[0]).unlink()
    document = state(output)
    (output / "_prediction" / "state.json").write_text(
        json.dumps(document | {"status": "running"})  # as a kill leaves it; the run grew since
    )
    assert predict.main(asked(place, photos, output)) == 0
    assert answers(output) == expected and state(output)["made"]["model"]["manifest"] == 2
    assert "goes on with manifest=2; the newest is 4" in caplog.text


def test_folders_that_hold_something_else_are_refused(
    place: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.parquet").write_bytes(b"x")
    for output, said in (
        (full, "holds mine.parquet, which no prediction wrote"),
        (place / "run", "which no prediction wrote"),
        (photos / "out", "lie in one another"),
        (photos.parent, "lie in one another"),
        (photos, "lie in one another"),
    ):
        assert predict.main(asked(place, photos, output)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    output = tmp_path / "out"
    assert predict.main(asked(place, photos, output)) == 0
    (output / "mine.parquet").write_bytes(b"x")
    assert predict.main(asked(place, photos, output)) == 2
    assert "mine.parquet: no prediction wrote this; move it away" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_is_read(
    place: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for words, said in (
        (["task=zebras"], "task=zebras: is not learned; learned are: apples, boats"),
        (["manifest=9"], "manifest=9: the run has 1, 2, 3, 4"),
        (["manifest=0"], "candidates: must be given, candidates=[a,b]"),
        (["top_k=0"], "top_k=0: expected at least 1"),
        (["abstain=2"], "abstain=2"),
        (["training.steps=3"], "training.steps: unknown here"),
        (["cluster.encode.num_worker=1"], "num_worker"),
    ):
        assert predict.main(asked(place, photos, output, *words)) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert predict.main(["run_dir=x", "output=y"]) == 2
    assert "input: must be given" in capsys.readouterr().err
    assert predict.main([f"run_dir={tmp_path}", f"input={photos}", f"output={output}"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert not output.exists()


def test_methods_that_are_told_the_domain_must_be_told(
    place: Path, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = stored_run.copy(tmp_path / "copy")
    run = RunFolder(copy / "run")
    document = run.read()
    document["config"]["method"] |= {"name": "lora_per_task", "options": {}}
    run.folder.write_json("run.json", document)
    assert predict.main(asked(copy, photos, tmp_path / "out")) == 2
    assert "task: must be given, task=NAME: method lora_per_task" in capsys.readouterr().err
    assert predict.main(asked(copy, photos, tmp_path / "out", "task=boats", "abstain=0.1")) == 2
    assert "abstain: method lora_per_task does not say" in capsys.readouterr().err
