"""The HTTP application over a model in this process: every answer, error and image mode."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from ray._common.formatters import JSONFormatter

from archipelago.actors.http import local
from archipelago.actors.http.admin import token_hash
from archipelago.actors.http.answers import ImageAnswer
from archipelago.actors.http.app import create_app
from archipelago.actors.http.backend import Reply
from archipelago.actors.http.local import LocalBackend
from archipelago.actors.http.problems import busy, not_ready
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.serving.pointer import history
from archipelago.pipeline.store import RunFolder
from tests.serving import refusal
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, copy_run, point, test_images

LIMITS = SERVING.model_copy(
    update={"max_body_mib": 1, "max_images": 8, "max_pixels": 250_000, "max_labels": 5}
)


@pytest.fixture(scope="module")
def world(served_world: World) -> World:
    return served_world


@pytest.fixture(scope="module")
def backend(served_run: RunFolder) -> LocalBackend:
    return LocalBackend(ServedModel(served_run.uri, SERVING, "cpu"))


@pytest.fixture(scope="module")
def client(backend: LocalBackend) -> Iterator[TestClient]:
    with TestClient(create_app(backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture(world: World, task: str = TASKS[0]) -> Image.Image:
    return Image.fromarray(test_images(world, task)[0])


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _post(client: TestClient, body: Any) -> Any:
    return client.post("/v1/classify", json=body)


def test_multipart_and_json_say_the_same(client: TestClient, world: World) -> None:
    first, second = (_file(_picture(world, task)) for task in TASKS[:2])
    files = [("image", ("a.png", first)), ("image", ("b.png", second))]
    form = client.post("/v1/classify", files=files, data={"top_k": "3"}).json()
    body = _post(client, {"images": [_b64(first), _b64(second)], "top_k": 3}).json()
    assert form["generation"] == body["generation"] == 1
    assert len(form["results"]) == 2
    for a, b in zip(form["results"], body["results"], strict=True):
        spent = a.pop("milliseconds")
        assert spent["total"] >= spent["decode"] >= 0
        b.pop("milliseconds")
        assert a == b
        assert set(a) == set(ImageAnswer.model_json_schema()["properties"]) - {"milliseconds"}
        assert len(a["classes"]) == 3 and set(a["classes"][0]) == {"label", "probability"}
        assert {domain["task"] for domain in a["domains"]} <= set(TASKS)
        assert a["domains"][0]["task"] == a["task"] and a["refused"] is False
        assert a["domains"][0]["probability"] == pytest.approx(a["task_confidence"])
        assert 0.0 < a["unseen_probability"] < 1.0
    raw = client.post("/v1/classify", content=first, headers={"content-type": "image/png"})
    assert raw.json()["results"][0]["task"] == body["results"][0]["task"]
    open_list = client.post(
        "/v1/classify",
        files={"image": ("a.png", first)},
        data={"task": TASKS[1], "labels": '["cat", "dog", "cat"]'},
    ).json()["results"][0]
    assert open_list["task"] == TASKS[1]
    assert {c["label"] for c in open_list["classes"]} == {"cat", "dog"}
    assert open_list["domains"] == [{"task": TASKS[1], "probability": 1.0}]


def test_doubtful_images_may_be_withheld(backend: LocalBackend, world: World) -> None:
    """`serving.abstain`: too new for a learned domain to answer, in words and without a class."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = [
        _b64(_file(Image.fromarray(noise))),
        *(_b64(_file(_picture(world, t))) for t in TASKS),
    ]
    strict = SERVING.model_copy(update={"abstain": 0.02})
    model = ServedModel(backend.model.run.uri, strict, "cpu")
    with TestClient(create_app(LocalBackend(model), LIMITS)) as client:
        results = _post(client, {"images": images}).json()["results"]
        assert [result["refused"] for result in results] == [True, *[False] * len(TASKS)]
        new = results[0]
        assert (new["task"], new["unseen"], new["classes"], new["groups"]) == (None, True, [], [])
        assert new["task_confidence"] == new["unseen_probability"] > 0.5
        assert sum(domain["probability"] for domain in new["domains"]) == pytest.approx(1.0)
        for more in ({"task": TASKS[0]}, {"labels": ["a storm", "static"]}):
            (asked,) = _post(client, {"images": images[:1], **more}).json()["results"]
            assert not asked["refused"] and len(asked["classes"]) >= 2, more
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
        body = {"inputs": [{**tensor, "data": noise.reshape(-1).tolist()}]}
        told = client.post("/v2/models/archipelago/infer", json=body).json()["outputs"]
    outputs = {output["name"]: output for output in told}
    assert outputs["refused"]["data"] == outputs["unseen"]["data"] == [True]
    assert outputs["label"]["shape"] == [1, 0]
    (probability,) = outputs["unseen_probability"]["data"]
    assert probability == pytest.approx(new["unseen_probability"])


def test_images_are_seen_as_a_person_sees_them(client: TestClient, world: World) -> None:
    """Animated, CMYK, 16-bit and rotated by EXIF: the same answer as the plain picture."""
    grey = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1)))
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) + 128)
    colour = Image.new("RGB", (32, 32), (255, 0, 0))
    moving = _file(colour, "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    gradient = grey.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _file(gradient.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    ink = _file(colour.convert("CMYK"), "TIFF")
    pairs = [
        (_file(grey.convert("RGB")), _file(deep)),
        (_file(colour), moving),
        (_file(gradient), turned),
        (_file(colour), ink),
    ]
    for plain, other in pairs:
        found = _post(client, {"images": [_b64(plain), _b64(other)], "task": TASKS[0]}).json()
        a, b = (result["classes"] for result in found["results"])
        assert [c["label"] for c in a] == [c["label"] for c in b]
        assert a[0]["probability"] == pytest.approx(b[0]["probability"], abs=0.02)


def _errors(world: World) -> list[tuple[int, dict[str, Any]]]:
    good = _b64(_file(_picture(world)))
    bomb = _b64(_file(Image.new("1", (600, 600))))
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    cut = _b64(_file(Image.fromarray(noise))[:-2000])
    return [
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (400, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
        (404, {"json": {"images": [good], "task": "nobody"}}),
        (413, {"content": b"x" * (2**20 + 1), "headers": {"content-type": "image/png"}}),
        (413, {"json": {"images": [bomb]}}),
        (413, {"json": {"images": [good] * 9}}),
        (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (415, {"json": {"images": [_b64(b"no image")]}}),
        (415, {"files": {"image": ("a.svg", b"<svg/>")}}),
        (422, {"json": {"images": [cut]}}),
        (422, {"json": {"images": [""]}}),
        (422, {"json": {"images": ["*"]}}),
        (422, {"json": {"images": []}}),
        (422, {"json": {"images": [good], "top_k": 0}}),
        (422, {"json": {"images": [good], "topk": 1}}),
        (422, {"json": {"images": [good], "labels": [str(i) for i in range(6)]}}),
        (422, {"json": {"images": [good], "labels": []}}),
        (422, {"json": {"images": [good], "labels": [" "]}}),
        (422, {"data": {"task": "x"}, "files": {"other": ("a", b"a")}}),
        (422, {"data": {"labels": "cat"}, "files": {"image": ("a", b"a")}}),
        (422, {"json": [1]}),
    ]


def test_every_error_is_one_line_of_one_form(client: TestClient, world: World) -> None:
    for code, request in _errors(world):
        answer = client.post("/v1/classify", **request)
        shown = {k: str(v)[:60] for k, v in request.items()}
        assert answer.status_code == code, f"{shown}: {answer.text[:200]}"
        error = answer.json()["error"]
        assert error["code"] == code and error["message"] and "\n" not in error["message"]
        assert len(error["message"]) < 300
    for method, path, code in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/classify", 405),
        ("GET", "/v1/tasks/nobody/lineage", 404),
        ("GET", f"/v1/tasks/{TASKS[0]}/examples/99", 404),
        ("GET", f"/v1/tasks/{TASKS[0]}/examples/x", 422),
        ("POST", "/v1/admin/publish", 404),
        ("GET", "/v2/models/other", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == code, path
        refusal(path, code, answer.json())


def test_a_body_is_cut_off_where_no_header_says_its_size(client: TestClient) -> None:
    for path in ("/v1/classify", "/v2/models/archipelago/infer"):
        answer = client.post(
            path,
            content=(b"x" * 2**16 for _ in range(40)),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 413, answer.text


def test_who_is_overrun_or_alone_says_when_to_come_again(backend: LocalBackend) -> None:
    class Failing(LocalBackend):
        problem: Any = busy()

        async def classify(self, images: Any, asks: Any) -> Reply:
            raise self.problem

    failing = Failing(backend.model)
    png = _file(Image.new("RGB", (40, 30)))
    with TestClient(create_app(failing, LIMITS), raise_server_exceptions=False) as client:
        for problem, code in ((busy(), 429), (not_ready(), 503), (RuntimeError("x"), 500)):
            failing.problem = problem
            answer = client.post("/v1/classify", files={"image": png})
            assert answer.status_code == answer.json()["error"]["code"] == code
            assert code == 500 or int(answer.headers["retry-after"]) >= 1


def test_models_tasks_lineage_and_examples(client: TestClient) -> None:
    models = client.get("/v1/models").json()
    assert (models["generation"], models["manifest"]) == (1, len(TASKS))
    assert models["history"][0]["generation"] == 1 and "tasks" not in models
    tasks = client.get("/v1/tasks").json()["tasks"]
    assert [task["name"] for task in tasks] == list(TASKS)
    assert tasks[0]["classes"] and tasks[0]["description"] is None
    lineage = client.get(tasks[1]["lineage"]).json()
    assert lineage["digests"]["train"] and lineage["parent"]
    picture = client.get(tasks[0]["examples"][0])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (32, 32)
    described = client.get("/openapi.json").json()
    answer = described["paths"]["/v1/classify"]["post"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("ClassifyAnswer")
    fields = described["components"]["schemas"]["ImageAnswer"]["properties"]
    assert {"domains", "unseen_probability", "refused", "lambda"} <= set(fields)


def test_the_interface_is_shown_by_files_of_ours(client: TestClient) -> None:
    page = client.get("/docs")
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(linked) == {"swagger-ui-bundle.js", "swagger-ui.css", "icon.svg"}
    for file in linked:
        assert client.get(f"/{file}").status_code == 200, file
    assert not re.search(r"https?:|//cdn", page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self' 'sha256-" in policy
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert named <= set(schemas) and {"Error", "ProtocolError", "InferTensor"} <= named
    refused = described["paths"]["/v2/models/{name}/infer"]["post"]["responses"]["422"]
    assert "ProtocolError" in json.dumps(refused)


def test_a_model_is_described_anew_only_when_something_changed(
    served_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run(served_run, tmp_path / "run")
    model, read = ServedModel(run.uri, SERVING, "cpu"), []
    monkeypatch.setattr(local, "history", lambda run: read.append(1) or history(run))
    first = local.describe(model)
    assert local.describe(model) == first and len(read) == 1
    point(run, 2)
    ahead = local.describe(model)  # published, and not yet answering here
    assert (ahead["generation"], len(ahead["history"])) == (1, 2)
    model.follow()
    now = local.describe(model)
    assert (now["generation"], now["manifest"], now["candidates"]) == (2, 2, [3, 4])
    run.models.publish(run.groups.list()[:2], again=True)
    assert local.describe(model)["candidates"] == [3, 4, 5] and len(read) == 4


def test_admin_needs_its_token(backend: LocalBackend) -> None:
    class Admin(LocalBackend):
        async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
            return {"verb": verb, **arguments}

    app = create_app(Admin(backend.model), LIMITS, token_hash("secret"))
    with TestClient(app) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            answer = client.post("/v1/admin/publish", json={"manifest": 1}, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        right = {"authorization": "Bearer secret"}
        answer = client.post("/v1/admin/rollback", json={"manifest": 2}, headers=right)
        assert answer.json() == {"verb": "rollback", "manifest": 2}
        answer = client.post("/v1/admin/forget", json={"task": "a", "erase": True}, headers=right)
        assert answer.json() == {"verb": "forget", "task": "a", "erase": True, "test": False}
        assert client.post("/v1/admin/publish", json={}, headers=right).status_code == 422


def test_the_open_inference_protocol(client: TestClient, world: World) -> None:
    assert client.get("/v2/health/ready").json() == {"ready": True}
    about = client.get("/v2/models/archipelago").json()
    assert about["inputs"][0]["shape"] == [-1, 32, 32, 3]
    pixels = test_images(world, TASKS[0], 2)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    url = "/v2/models/archipelago/infer"
    flat = client.post(
        url, json={"id": "7", "inputs": [{**tensor, "data": pixels.reshape(-1).tolist()}]}
    ).json()
    files = [_b64(_file(Image.fromarray(p))) for p in pixels]
    packed = client.post(
        url,
        json={"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": files}]},
    ).json()
    assert flat["outputs"] == packed["outputs"] and flat["id"] == "7"
    outputs = {o["name"]: o for o in flat["outputs"]}
    rows, columns = outputs["label"]["shape"]
    assert rows == 2 and len(outputs["label"]["data"]) == rows * columns
    bad = [
        {**tensor, "data": [1, 2]},
        {**tensor, "shape": [2, 9, 9, 3], "data": [0] * 486},
        {**tensor, "datatype": "FP32", "data": []},
        {**tensor, "data": [999] * pixels.size},
        {**tensor, "data": [{"a": 1}]},
        {"name": "image", "datatype": "BYTES", "shape": [3], "data": files},
    ]
    for wrong in bad:
        assert client.post(url, json={"inputs": [wrong]}).status_code == 422
    assert (
        client.post(
            url.replace("/infer", "/versions/9/infer"),
            json={"inputs": [{**tensor, "data": pixels.tolist()}]},
        ).status_code
        == 404
    )


def test_logs_name_tasks_and_never_contents(
    client: TestClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    data = _b64(_file(_picture(world)))
    with caplog.at_level("INFO", logger="ray.serve.archipelago"):
        answer = client.post(
            "/v1/classify",
            json={"images": [data], "labels": ["my secret"]},
            headers={"x-request-id": "abc"},
        )
    assert answer.headers["x-request-id"] == "abc"
    line = json.loads(JSONFormatter().format(caplog.records[-1]))  # as Serve writes it
    assert line["request"] == "abc" and line["status"] == 200 and len(line["tasks"]) == 1
    assert line["path"] == "/v1/classify" and line["milliseconds"] > 0
    assert data[:20] not in caplog.text and "secret" not in caplog.text
