"""Images that cost far more than their bytes suggest: bounded, one line each, and never a 500."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from archipelago.actors.http.app import create_app
from archipelago.actors.http.local import LocalBackend
from archipelago.jobs.bench_hostile import SMALL, own_words, small_image
from archipelago.pipeline.benchmark.hostile import hostile
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_serving import SERVING

FILES = hostile()
OFF = ("qoi", "plain ppm", "run-length bmp")  # decoders in Python are off over HTTP


@pytest.fixture(scope="module")
def client(served_run: RunFolder) -> Iterator[TestClient]:
    limits = SERVING.model_copy(update={"decode_mib": 256, "decode_s": 5.0, "timeout_s": 60})
    app = create_app(LocalBackend(ServedModel(served_run.uri, limits, "cpu")), limits)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_image_gets_a_status_and_one_line(client: TestClient, name: str) -> None:
    answer = client.post("/v1/classify", content=FILES[name], headers={"content-type": "image/png"})
    assert answer.status_code in (200, 413, 415, 422), answer.text
    if name in OFF:
        assert answer.status_code == 415, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["code"] == answer.status_code and "\n" not in error["message"]
    embedded = client.post("/v1/embed", content=FILES[name], headers={"content-type": "image/png"})
    assert embedded.status_code == answer.status_code, embedded.text[:200]
    assert client.post(
        "/v1/classify", content=SMALL, headers={"content-type": "image/png"}
    ).is_success


def test_every_answer_has_the_headers_that_keep_browsers_safe(client: TestClient) -> None:
    for path in ("/", "/docs", "/v1/models", "/nowhere", "/v2/health/live"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-request-id"]


def test_words_of_the_bench_are_checked() -> None:
    assert own_words(["run_dir=/r", "requests=7"]) == ("/r", 7, 40)
    for words, said in (
        ([], "run_dir"),
        (["run_dir=/r", "x=1"], "x: unknown"),
        (["run_dir=/r", "hostile=few"], "hostile=few"),
    ):
        with pytest.raises(UserError, match=said):
            own_words(words)
    assert small_image() == SMALL
