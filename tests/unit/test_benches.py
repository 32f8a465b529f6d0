"""Jobs that measure: they run on what learning stores, whatever the method."""

from __future__ import annotations

from pathlib import Path

import pytest

from archipelago.jobs import bench, bench_model
from archipelago.pipeline.benchmark.synthetic import grow, learned
from archipelago.pipeline.learned import Ask
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, copy_run, learned_run, point, test_images


def test_copies_of_groups_answer_under_other_names(
    served_run: RunFolder, served_world: World, tmp_path: Path
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    free = [group.name for group in learned(run) if not group.neighbours]
    manifests = grow(run, (1, len(free) + 1))
    assert [group.name for group in learned(run)] == list(TASKS)
    point(run, manifests[len(free) + 1])
    model = ServedModel(run.uri, SERVING, "cpu")
    names = [f"synthetic-{number:03d}" for number in range(len(free) + 1)]
    assert list(model.current.tasks) == names
    images = test_images(served_world, free[0])
    answers = [
        model.classify(images, [Ask(name)] * len(images))[1] for name in (names[0], names[-1])
    ]
    assert [a.classes for a in answers[0]] == [b.classes for b in answers[1]], "one group, twice"


def test_what_groups_cost_is_printed(
    served_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_model, "SIZES", (1, 3))
    monkeypatch.setattr(bench_model, "REPEATS", 1)
    before = served_run.models.versions()
    assert bench_model.main([f"run_dir={served_run.uri}"]) == 0
    said = capsys.readouterr().out
    assert "frozen" in said and "3 groups:" in said and "bound 1/(2-p) = 0.667" in said
    assert served_run.models.versions() == before, "the run itself is left alone"
    assert bench_model.main([]) == 2


@pytest.mark.parametrize("method", ["trge", "gda_per_task", "archipelago"])
def test_seconds_of_stages_add_up(method: str, served_world: World, tmp_path: Path) -> None:
    run = learned_run(served_world, tmp_path / "run", method={"name": method})
    stages = bench.stage_seconds(run)
    assert list(stages) == list(TASKS)
    for seconds in stages.values():
        assert list(seconds) == list(bench.PARTS)
        assert all(value >= 0.0 for value in seconds.values()), seconds
        assert (seconds["steps"] > 0.0) == (method != "gda_per_task")
        assert seconds["look"] > 0.0 and seconds["evaluate"] > 0.0
