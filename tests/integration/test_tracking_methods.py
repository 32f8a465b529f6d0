"""Real sqlite: what closed forms leave, and the groups that supersede them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.settings import TrackingSettings
from archipelago.pipeline.tracking import locate, sync
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import learned_run


@pytest.mark.parametrize("method", ["gda_per_task", "archipelago"])
def test_closed_forms_and_groups_that_follow_them_are_tracked(
    served_world: World, tmp_path: Path, method: str
) -> None:
    settings = TrackingSettings()
    run = learned_run(served_world, tmp_path / "run", method={"name": method})
    write_report(run, pictures=False)
    assert sync(run, settings)
    client = MlflowClient(locate(run, settings).uri)
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`archipelago.level` = 'stage'")
    children = sorted(found, key=lambda child: child.info.run_name)
    assert [child.data.tags["archipelago.task"] for child in children] == list(TASKS)
    trained = method == "archipelago"
    assert all(("train/loss" in child.data.metrics) == trained for child in children)
    assert len(client.search_model_versions()) == len(run.models.versions())
