"""An endpoint of a run that looks: over HTTP it asks a real pool, and says what was settled."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import pytest
from PIL import Image

from jobs import serve as job
from jobs.ray_head import free_ports
from pipeline.identifiers.scorer import build_scorer
from pipeline.serving.answer import Ask
from pipeline.serving.consult import Doubt, settle
from pipeline.serving.model import ServedModel
from pipeline.settings import IdentifierSettings
from pipeline.store import RunFolder
from tests.running import wait_until
from tests.serving import call
from tests.unit.tiny_mllm import save_mllm
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, learned_run, point, test_images

pytestmark = pytest.mark.timeout(300, method="signal")
PATIENT_S = 20.0


@pytest.fixture(scope="module")
def run(served_world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of identifier=mllm; the random model says something else than the signatures."""
    folder = tmp_path_factory.mktemp("consult")
    identifier = {
        "name": "mllm", "model": str(save_mllm(folder / "mllm")), "samples": 2,
        "calibration_images": 8,
    }  # fmt: skip
    scorer = build_scorer(IdentifierSettings.model_validate(identifier))
    pool = {"num_cpus": 0.25, "threads": 1, "lease_s": 2}
    run = learned_run(
        served_world, folder / "run", scorer, identifier=identifier,
        cluster={"identify": pool},
    )  # fmt: skip
    point(run, len(TASKS))
    return run


@pytest.fixture(scope="module")
def url(local_ray: str, run: RunFolder) -> Iterator[str]:
    port = free_ports(1)[0]
    words = [
        f"run_dir={run.uri}", f"serving.port={port}", f"serving.consult_s={PATIENT_S}",
        "serving.timeout_s=60", "serving.num_cpus=0.1", "serving.canary.floor=0.0",
    ]  # fmt: skip
    assert job.main(words) == 0
    try:
        yield f"http://127.0.0.1:{port}/v1/classify"
    finally:
        assert job.main([*words, "down=true"]) == 0


def test_the_pool_is_asked_over_http(url: str, run: RunFolder, served_world: World) -> None:
    model = ServedModel(run.uri, SERVING, "cpu")
    images = test_images(served_world, TASKS[1], 6)
    doubts: list[Doubt] = []
    _, alone, _ = model.classify(images, [Ask()] * len(images), doubts)
    assert doubts, "there is something to ask"
    scorer = build_scorer(model.settings.identifier)
    rows = [doubt.row for doubt in doubts]
    scores = scorer.score(images[rows], doubts[0].texts, "likelihood", 0).values[:, :-1]
    wanted = dict(zip(rows, settle(doubts, scores), strict=True))
    assert any(alone[row].task != task for row, (task, _) in wanted.items()), "it is heard"

    def png(at: int) -> str:
        file = io.BytesIO()
        Image.fromarray(images[at]).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    body = {"images": [png(at) for at in range(len(images))]}
    told: dict = {}

    def asked() -> bool:
        status, answer = call(url, body)
        assert status == 200, "whether or not the pool is up"
        told.update(answer)
        heard = {row: answer["results"][row]["task"] for row in wanted}
        return heard == {row: task for row, (task, _) in wanted.items()}

    wait_until(asked, "the pool")
    for row, result in enumerate(told["results"]):
        assert result["milliseconds"]["consult"] > 0
        task, confidence = wanted.get(row, (alone[row].task, alone[row].task_confidence))
        assert result["task"] == task
        assert result["task_confidence"] == pytest.approx(confidence, abs=1e-3)
