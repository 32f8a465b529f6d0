"""Images in tracks: whole tracks stay out of the sums and calibrate, and that is what is honest."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from archipelago.pipeline.closedform import left_out_head_scores
from archipelago.pipeline.evaluation.metrics import expected_calibration_error
from archipelago.pipeline.identifier_settings import for_identifier
from archipelago.pipeline.identifiers.describer import sample_of
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.methods import archipelago, methods
from archipelago.pipeline.methods.archipelago import Archipelago
from archipelago.pipeline.records import GroupRecord, TaskRecord
from archipelago.pipeline.settings import ClusterSettings, Settings, StreamSettings
from archipelago.pipeline.store import RunFolder
from archipelago.pipeline.streams import ImageTable, open_stream, prepare, stratified_fold
from tests.unit.tiny_clip import save_local
from tests.unit.tiny_run import World, learn_stream, make_learner, open_run, run_settings
from tests.unit.tiny_serving import test_images

TASKS = ("birds", "signs")
CLASSES, TRACKS, FRAMES, TEST = 6, 6, 6, 50  # of a class: tracks, frames of each, test tracks
HELD = 2  # tracks of each class
CLOSED = [n for n, m in methods.known().items() if m.identifies() and not m.holds_out]


def _png(pattern: np.ndarray, rng: np.random.Generator) -> bytes:
    """A pattern of 4 x 4 patches with a little noise."""
    file = io.BytesIO()
    pixels = np.kron(pattern, np.ones((8, 8, 1))) + rng.integers(-3, 4, (32, 32, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write(root: Path, name: str) -> None:
    """A class has a colour; a track has patches of its own, and frames that are nearly equal."""
    rng = np.random.default_rng(sum(name.encode()))
    colours = 128 + rng.normal(0, 25, (CLASSES, 3))
    folder = root / name
    folder.mkdir(parents=True)
    for split, tracks, frames in (("train", TRACKS, FRAMES), ("test", TEST, 1)):
        image, label, track = [], [], []
        for number in range(tracks * CLASSES):
            pattern = colours[number % CLASSES] + rng.normal(0, 50, (4, 4, 3))
            image += [_png(pattern, rng) for _ in range(frames)]
            label += [number % CLASSES] * frames
            track += [number] * frames
        columns = {"image": image, "label": label, "track": track, "class": label}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    facts = {"classes": [f"{name} {i}" for i in range(CLASSES)], "templates": ["a photo of a {}."]}
    (folder / "domain.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracks")
    for name in TASKS:
        _write(folder / "stream", name)
    save_local(folder / "clip")
    return folder


def _world(root: Path, order: tuple[str, ...] = TASKS, **options: Any) -> World:
    chosen = StreamSettings(
        reader="parquet", root=str(root / "stream"), order=list(order), options=options
    )
    domains = prepare(
        open_stream(chosen, 0),
        size=32,
        run=str(root),
        cache_dir=str(root / "cache"),
        cache_gib=1.0,
        cluster=ClusterSettings(),
        max_pixels=10_000,
        use_ray=False,
    )
    return World(domains, root / "clip")


def _settings(world: World, name: str, **options: Any) -> Settings:
    return run_settings(
        world,
        method={"name": name, "options": options},
        stream={"held_out": HELD / TRACKS},
        training={"steps": 2},
    )


def _learned(world: World, path: Path, chosen: Settings) -> RunFolder:
    run = RunFolder(path)
    open_run(world, run, chosen)
    learn_stream(make_learner(world, run, chosen))
    return run


def _fold(world: World, chosen: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first domain to learn from, and those of the tracks that are held out."""
    table = ImageTable.open(world.domains[0].tables["train"])
    assert table.groups is not None
    return stratified_fold(
        table.labels, chosen.stream.held_out, chosen.seed, world.domains[0].name, table.groups
    )


def _records(run: RunFolder) -> dict[str, TaskRecord]:
    model = LearnedModel.open(run.uri)
    return dict(model.tasks)


@pytest.mark.parametrize("name", [*CLOSED, "trge"])
def test_whole_tracks_are_kept_out_and_calibrate(root: Path, tmp_path: Path, name: str) -> None:
    world = _world(root, TASKS[:1], group="track")
    chosen = _settings(world, name)
    record = _records(_learned(world, tmp_path / "run", chosen))[TASKS[0]]
    table = ImageTable.open(world.domains[0].tables["train"])
    assert table.groups is not None and record.sums is not None and record.rows is not None
    rows, held = _fold(world, chosen)
    assert len(held) == CLASSES * HELD * FRAMES
    assert record.sums.counts.tolist() == np.bincount(table.labels[rows]).tolist()
    assert sorted(record.rows.places) == held.tolist() and not record.rows.counted.any()
    assert not set(table.groups[record.rows.places]) & set(table.groups[rows])
    noted = {"groups": CLASSES * TRACKS, "held_out": CLASSES * HELD, "images": len(held)}
    assert record.facts["correlated"] == noted


def test_frames_that_calibrate_one_by_one_are_too_sure(root: Path, tmp_path: Path) -> None:
    """Against fresh tracks, whose images are what the head will see."""
    said, fresh, ece = {}, {}, {}
    for key, options in (("frames", {}), ("tracks", {"group": "track"})):
        world = _world(root, TASKS[:1], **options)
        run = _learned(world, tmp_path / key, _settings(world, "archipelago", group="off"))
        model = LearnedModel.open(run.uri)
        record = model.tasks[TASKS[0]]
        assert record.sums is not None and record.rows is not None
        method = model.state.method
        assert isinstance(method, Archipelago) and method.basis is not None
        clip = method.row_scores(record)
        log_p, mask = left_out_head_scores(
            method.head(record), record.sums, record.rows, clip, method.basis
        )
        own = record.rows.labels[mask]
        said[key] = float(log_p[np.arange(len(own)), own].mean())
        labels = ImageTable.open(world.domains[0].tables["test"]).labels
        answers = model.answer(test_images(world, TASKS[0], 999), task=TASKS[0], top_k=CLASSES)
        p = np.array(
            [[dict(a.classes)[f"{TASKS[0]} {c}"] for c in range(CLASSES)] for a in answers]
        )
        fresh[key] = float(np.log(p[np.arange(len(labels)), labels]).mean())
        ece[key] = expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == labels)
    assert said["frames"] - fresh["frames"] > 2.0, "certain of what it has nearly seen"
    assert abs(said["tracks"] - fresh["tracks"]) < 0.3, "whole tracks say what fresh ones are like"
    assert ece["tracks"] < 0.1 < 0.2 < ece["frames"]


def test_a_group_is_judged_by_whole_tracks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ones: nothing of them is in the sums, so nothing is taken out of these."""
    world, judged = _world(root, TASKS[:1], group="track"), []
    original = Archipelago._judged

    def judge(method: Archipelago, stage: Any, record: TaskRecord, rows: Any, logits: Any) -> Any:
        judged.append(rows)
        return original(method, stage, record, rows, logits)

    monkeypatch.setattr(Archipelago, "_judged", judge)
    monkeypatch.setattr(archipelago, "parted", None)
    chosen = _settings(world, "archipelago", group="on")
    facts = _records(_learned(world, tmp_path / "run", chosen))[TASKS[0]].facts
    assert judged[0].tolist() == _fold(world, chosen)[1].tolist()
    assert facts["group"]["images"] == CLASSES * HELD * FRAMES and facts["group"]["kept"]
    assert np.isfinite(facts["group"]["gain"]).all()


def test_descriptions_are_of_other_tracks(root: Path) -> None:
    world = _world(root, TASKS[:1], group="track")
    chosen = _settings(world, "archipelago")
    table = ImageTable.open(world.domains[0].tables["train"])
    held = {image.tobytes() for image in table.images(_fold(world, chosen)[1])}
    many = for_identifier(chosen.identifier, "mllm", samples=len(table))
    shown = sample_of(world.domains[0], chosen.model_copy(update={"identifier": many})).images
    assert len(shown) == len(table) - len(held)
    assert not held & {image.tobytes() for image in shown}


@pytest.mark.parametrize("name", CLOSED)
def test_one_track_a_class_calibrates_nothing(root: Path, tmp_path: Path, name: str) -> None:
    """Nothing is known of other tracks, so what is usual is taken, as for one image a class."""
    world = _world(root, group="class")
    run = _learned(world, tmp_path / "run", _settings(world, name))
    for record in _records(run).values():
        assert record.rows is not None and record.sums is not None
        assert len(record.rows) == 0 and record.sums.total == CLASSES * TRACKS * FRAMES
        assert record.facts["correlated"] == {"groups": CLASSES, "held_out": 0, "images": 0}
    for answer in LearnedModel.open(run.uri).answer(test_images(world, TASKS[0], 6), top_k=99):
        values = [p for _, p in answer.classes]
        assert np.isfinite(values).all() and sum(values) == pytest.approx(1.0)


def test_records_are_of_the_task_alone(root: Path, tmp_path: Path) -> None:
    """Whatever was learned before: the same fold, sums and rows, to the bit."""
    found = []
    for order in (TASKS, TASKS[::-1]):
        world = _world(root, order, group="track")
        run = _learned(world, tmp_path / order[0], _settings(world, "archipelago", group="on"))
        found.append(
            {t.name: t for ref in run.groups.list() for t in GroupRecord.read(run, ref).tasks}
        )
    for name in TASKS:
        one, other = (records[name] for records in found)
        assert one.card() == other.card()
        for key, array in one.identity().items():
            assert np.array_equal(array, other.identity()[key]), key
