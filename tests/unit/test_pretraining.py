"""Pretraining: what is said is true, lessons have right answers, a stopped training goes on."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from archipelago.jobs import pretrain as job
from archipelago.pipeline.config import flatten
from archipelago.pipeline.errors import IntegrityError
from archipelago.pipeline.pretraining import (
    captions,
    checkpoints,
    lessons,
    measures,
    pictures,
    prepare,
)
from archipelago.pipeline.pretraining.launch import pretrain
from archipelago.pipeline.pretraining.lessons import Known
from archipelago.pipeline.pretraining.renderers import RENDERERS, SIZE
from archipelago.pipeline.pretraining.settings import FILE, PretrainSettings, load_settings
from tests.helpers import parquet_domain
from tests.unit.tiny_corpus import tiny_pretraining

PACKAGE = Path(pictures.__file__).parent


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PretrainSettings:
    return tiny_pretraining(tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("out"))


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {k: v.float().numpy() for k, v in load_file(folder / "model.safetensors").items()}


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(
    settings: PretrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(pretrain(settings))
    prepared = Path(str(settings.out)) / "prepared"
    other = settings.model_copy(update={"out": str(tmp_path)})
    (tmp_path / "prepared").symlink_to(prepared)
    monkeypatch.setattr(prepare, "encode", None)  # what is prepared is not computed again

    kept = checkpoints.save

    def stop_after(folder: Path, state: object) -> None:
        kept(folder, state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", stop_after)
    with pytest.raises(KeyboardInterrupt):
        pretrain(other)
    monkeypatch.setattr(checkpoints, "save", kept)
    found = checkpoints.newest(tmp_path / "attempts")
    assert found is not None and found.step == 2
    resumed = weights(pretrain(other))
    assert sorted(p.name for p in (tmp_path / "attempts").iterdir()) == [
        "attempt-000",
        "attempt-001",
    ]
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)
    untrained = weights(prepared / "start")
    moved = {name for name in whole if not np.array_equal(whole[name], untrained[name])}
    assert moved and not any("vision_tower" in name for name in moved)

    newest = max((tmp_path / "attempts").glob("*/*/state.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="sha256"):
        checkpoints.restore(newest.parent)
    found = checkpoints.newest(tmp_path / "attempts")
    assert found is not None and found.step == 2  # the one before it


def test_the_job_trains_and_examines(
    settings: PretrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings.model_dump(include={"device", "steps", "batch_size", "model", "pictures"})
    out = f"out={tmp_path / 'out'}"
    words = [f"{k}={v}" for k, v in flatten(chosen).items()]
    assert job.main([out, *words, "checkpoint_every=4"]) == 0
    said = capsys.readouterr().out
    assert "held-out pictures" in said
    for name in ("amber", "birch"):
        parquet_domain(tmp_path / "data", name)
    assert job.main(["exam", out, "exam.few=2", "exam.tests=3", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "amber" in said and "birch" in said and "mean" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out=x"], "pictures.corpus: must be given"),
        (["out=x", "pictures.corpus=/nowhere"], "lacks clothing.parquet"),
        (["pictures.corpus=x"], "out: must be given"),
        (["out=x", "stepz=3"], "stepz: unknown key; did you mean steps?"),
        (["out=x", "steps=many"], "steps: input should be a valid integer"),
        (["out=x", "model.heads=5"], "must be an even multiple of model.heads"),
        (["out=x", "steps"], "write key=value"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [a.replace("out=x", f"out={tmp_path}") for a in arguments]
    assert job.main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("pretrain: ") and said.count("\n") == 1


def test_the_file_shows_every_default() -> None:
    given = yaml.safe_load(FILE.read_text())
    assert PretrainSettings.model_validate(given) == PretrainSettings()
    assert given == PretrainSettings().model_dump()
    assert load_settings(["model.layers=2"]).model.layers == 2


def test_pretraining_knows_no_stream_s_pictures() -> None:
    """No file but the examination, which comes after training, may reach a stream's readers."""
    for file in PACKAGE.glob("*.py"):
        names = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            for name in _imported(node)
            if name.startswith(("archipelago.pipeline.streams", "matplotlib", "sklearn"))
        }
        allowed = {"archipelago.pipeline.streams.decode"}
        if file.name == "exam.py":
            allowed |= {f"archipelago.pipeline.streams.{name}" for name in ("domain", "stream")}
        assert names <= allowed, file.name


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_every_kind_and_every_level_has_words() -> None:
    kinds = {*pictures.FILES.values(), *(kind for _, kind in pictures.WORDS), *RENDERERS} - {""}
    assert kinds == set(captions.KINDS)
    dice = np.random.default_rng(0)
    for name, draw in RENDERERS.items():
        pixels = draw(dice)
        assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8, name
        assert captions.kind_caption(dice, name, measures.measure(pixels)).endswith(".")


def grey(tone: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), tone, np.uint8)


def with_square(tone: int) -> np.ndarray:
    image = grey(255)
    image[24:40, 24:40] = (tone, 0, 0)
    return image


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: grey(0), {"brightness": "dark", "ground": "plain black", "colour": "none"}),
        (lambda: grey(255), {"brightness": "bright", "ground": "plain white", "contrast": "low"}),
        (
            lambda: with_square(200),
            {"layout": "centred", "sharpness": "sharp", "flatness": "flat", "grain": "clean"},
        ),
        (noise, {"ground": "busy", "layout": "even", "grain": "grainy", "flatness": "detail"}),
    ],
)
def test_what_is_measured_is_true(make: Callable[[], np.ndarray], expected: dict[str, str]) -> None:
    found = measures.measure(make())
    assert {name: found.get(name) for name in expected} == expected


def test_pictures_are_a_function_of_their_key() -> None:
    one = pictures.rendered("banner", 3, seed=5, worn=1.0)
    two = pictures.rendered("banner", 3, seed=5, worn=1.0)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, two, strict=True))
    other = pictures.rendered("banner", 3, seed=6, worn=1.0)
    assert not np.array_equal(one[0].pixels, other[0].pixels)


def test_a_choice_has_one_right_answer_at_any_place() -> None:
    crowd = [Known(kind, (), {"brightness": "dark"}) for kind in captions.KINDS]
    known = Known("sketch", (), {"brightness": "bright"})
    right = [*captions.KINDS["sketch"][0], *captions.KINDS["sketch"][1]]
    answers, none = [], 0
    for seed in range(300):
        asked, answer = lessons.choice(np.random.default_rng(seed), known, crowd, 5)
        first, *options = asked.split("\n")
        assert first == lessons.CHOICE_PROMPT and 1 <= len(options) <= 5
        chosen = dict(option.split(") ", 1) for option in options)[answer]
        fitting = [o for o in options if any(words in o for words in right)]
        if chosen == lessons.NONE_OF_THESE:
            none += 1
            assert not fitting
        else:
            assert any(words in chosen for words in right) and len(fitting) == 1
        answers.append(answer)
    assert 30 < none < 110
    assert set(answers) == set("ABCDE")
