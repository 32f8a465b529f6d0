"""An endpoint of a run that looks: over HTTP it asks a real pool, and says what was settled."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from archipelago.actors.ray_head import free_ports
from archipelago.jobs import serve as job
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.scorer import build_scorer
from archipelago.pipeline.learned import Ask
from archipelago.pipeline.learned.consult import ConsultRequest, consult_results
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.running import wait_until
from tests.serving import call
from tests.unit.tiny_mllm import save_mllm
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, learned_run, point, test_images

pytestmark = pytest.mark.timeout(900)
PATIENT_S = 20.0


@pytest.fixture(scope="module")
def run(served_world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of identifier=mllm; the random model says something else than the signatures."""
    folder = tmp_path_factory.mktemp("consult")
    identifier = {
        "name": "mllm",
        "model": str(save_mllm(folder / "mllm")),
        "samples": 2,
        "calibration_images": 8,
    }
    scorer = build_scorer(MultimodalSettings.model_validate(identifier))
    pool = {"num_cpus": 0.25, "threads": 1, "lease_s": 2}
    run = learned_run(
        served_world,
        folder / "run",
        scorer,
        identifier=identifier,
        cluster={"identify": pool},
    )
    point(run, len(TASKS))
    return run


@pytest.fixture(scope="module")
def url(local_ray: str, run: RunFolder) -> Iterator[str]:
    port = free_ports(1)[0]
    words = [
        f"run_dir={run.uri}",
        f"serving.port={port}",
        f"serving.consult_s={PATIENT_S}",
        "serving.timeout_s=60",
        "serving.num_cpus=0.1",
        "serving.canary.floor=0.0",
    ]
    assert job.main(words) == 0
    try:
        yield f"http://127.0.0.1:{port}/v1/classify"
    finally:
        assert job.main([*words, "down=true"]) == 0


def test_the_pool_is_asked_over_http(url: str, run: RunFolder, served_world: World) -> None:
    model = ServedModel(run.uri, SERVING, "cpu")
    images = np.concatenate([test_images(served_world, task, 2) for task in TASKS])
    noise = np.random.default_rng(0).integers(0, 256, (2, *images.shape[1:]), dtype=np.uint8)
    images = np.concatenate([images, noise])
    unsure: list[ConsultRequest] = []
    _, alone, _ = model.classify(images, [Ask()] * len(images), unsure)
    rows = [request.row for request in unsure]
    assert rows == list(range(len(images))), "every image, those of no domain too"
    scorer = build_scorer(model.settings.multimodal)
    scores = scorer.score(images, unsure[0].texts, "likelihood", 0).values[:, :-1]
    told = consult_results(unsure, scores)
    _, wanted, _ = model.classify(images, [Ask(shares=shares) for shares in told])
    assert any(a.task != b.task for a, b in zip(alone, wanted, strict=True)), "it is heard"
    for a, b in zip(alone, wanted, strict=True):
        assert a.unseen_probability == b.unseen_probability, "novelty is for the statistics"

    def png(at: int) -> str:
        file = io.BytesIO()
        Image.fromarray(images[at]).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    body = {"images": [png(at) for at in range(len(images))]}
    results: list[dict] = []
    tries: list[float] = []

    def asked() -> bool:
        status, answer = call(url, body)
        assert status == 200, "whether or not the pool is up"
        results[:] = answer["results"]
        tries.append(results[0]["milliseconds"].get("consult", 0.0))
        return [result["task"] for result in results] == [answer.task for answer in wanted]

    try:
        wait_until(asked, "the pool")
    except AssertionError as error:
        raise AssertionError(f"{error}; waited for its word, ms: {tries[-10:]}") from None
    for result, answer in zip(results, wanted, strict=True):
        assert result["milliseconds"]["consult"] > 0
        assert result["unseen"] == answer.unseen
        assert result["task_confidence"] == pytest.approx(answer.task_confidence, abs=1e-3)
        domains = {domain["task"]: domain["probability"] for domain in result["domains"]}
        assert domains == pytest.approx(dict(answer.domains), abs=1e-3)
        best = result["classes"][0]
        assert (best["label"], best["probability"]) == (
            answer.classes[0][0],
            pytest.approx(answer.classes[0][1], abs=1e-3),
        )
