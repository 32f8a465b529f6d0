"""Bodies that are long, deep, half or not text: one line each, and nothing that grows with them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from archipelago.actors.http.app import create_app
from archipelago.actors.http.bodies import from_base64
from archipelago.actors.http.forms import read_form
from archipelago.actors.http.local import LocalBackend
from archipelago.actors.http.problems import Problem
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.helpers import png
from tests.serving import refusal
from tests.unit.tiny_serving import SERVING

PNG = png((200, 80, 40), size=96)
GOOD = base64.b64encode(PNG).decode()
HALF = "\ud800"  # half a character: JSON can write it, UTF-8 cannot
MANY = list(range(250_000))
INFER = "/v2/models/archipelago/infer"
ZERO = "/v1/zero-shot-image-classification"


@pytest.fixture(scope="module")
def client(served_run: RunFolder) -> Iterator[TestClient]:
    class WithAdmin(LocalBackend):
        async def admin(self, verb: str, **arguments: Any) -> dict[str, Any]:
            return {"generation": 1}

    model = ServedModel(served_run.uri, SERVING, "cpu")
    from archipelago.actors.http.admin import token_hash

    app = create_app(WithAdmin(model), SERVING, token_hash("t"))
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers["authorization"] = "Bearer t"
        yield client


def refused(client: TestClient, path: str, body: Any, code: int) -> str:
    """The message of an error of the one form."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=data, headers={"content-type": "application/json"})
    assert answer.status_code == code, answer.text[:300]
    return refusal(path, code, answer.json())


def infer(**parts: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [GOOD]}
    outer = {key: parts.pop(key) for key in ("id", "outputs", "parameters") if key in parts}
    return {"inputs": [{**tensor, **parts}], **outer}


def zero(labels: Any, template: str | None = None) -> dict[str, Any]:
    parameters = {"candidate_labels": labels, "hypothesis_template": template}
    return {"inputs": GOOD, "parameters": parameters}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/classify", {"images": [GOOD], "labels": MANY}, 422),
        ("/v1/classify", {"images": [GOOD], "labels": ["a"] * 257}, 422),
        ("/v1/classify", {"images": [GOOD], "labels": [[]] * 200}, 422),
        ("/v1/classify", {"images": MANY}, 413),
        ("/v1/classify", {"images": [GOOD] * 33}, 413),
        ("/v1/classify", {"images": MANY[:32]}, 422),
        ("/v1/classify", {str(i): i for i in MANY}, 422),
        ("/v1/classify", {"images": [GOOD], "x" * 100_000: 1}, 422),
        ("/v1/classify", {"images": [GOOD], "task": "x" * 100_000}, 422),
        ("/v1/classify", MANY, 422),
        ("/v1/classify", b"[" * 500_000, 400),
        ("/v1/classify", b'{"images":' + b"[" * 900 + b"]" * 900 + b"}", 422),
        ("/v1/classify", b'{"images": [""], "top_k": 1e999}', 422),
        ("/v1/classify", b'{"images": [""], "top_k": ' + b"9" * 9000 + b"}", 400),
        ("/v1/classify", b"\xff\xfe{\0}\0", 422),
        (INFER, infer(data=MANY), 422),
        (INFER, infer(data=[{}] * 90_000), 422),
        (INFER, infer(shape=MANY), 422),
        (INFER, infer(shape=[10**300]), 413),
        (INFER, infer(outputs=[{}] * 90_000), 422),
        (INFER, infer(outputs=MANY), 422),
        (INFER, infer(parameters={"labels": MANY}), 422),
        (INFER, infer(parameters=MANY), 422),
        (INFER, infer(datatype="x" * 90_000), 422),
        (INFER, {"inputs": MANY}, 422),
        (INFER, {"inputs": [infer()["inputs"][0]] * 2}, 422),
        ("/v1/embed", {"images": MANY}, 413),
        ("/v1/embed", {"texts": MANY}, 422),
        ("/v1/embed", {"texts": ["a"] * 257}, 422),
        ("/v1/embed", {"texts": ["a" * 301]}, 422),
        ("/v1/embed", {"texts": [" "]}, 422),
        ("/v1/embed", {}, 422),
        ("/v1/similarity", {"images": [], "texts": []}, 422),
        ("/v1/similarity", {"images": [GOOD], "labels": ["a"]}, 422),
        (ZERO, zero(MANY), 422),
        (ZERO, zero([]), 422),
        (ZERO, zero(["a"] * 257), 422),
        (ZERO, {"inputs": MANY, "parameters": {"candidate_labels": ["a"]}}, 422),
        (ZERO, {"inputs": GOOD}, 422),
        (ZERO, {"inputs": GOOD, "parameters": MANY}, 422),
        (ZERO, zero(["a"], "no place for it"), 422),
        (ZERO, zero(["a"], "{} and {}"), 422),
        (ZERO, zero(["a"], "{:>999999999}"), 422),
        (ZERO, zero(["a"], "{} {0.__class__}"), 422),
        (ZERO, zero(["a"], "{}" + "x" * 999), 422),
        ("/v1/admin/publish", {"manifest": 1, **{str(i): i for i in range(900)}}, 422),
        ("/v1/admin/publish", {"manifest": MANY}, 413),
        ("/v1/admin/forget", {"task": MANY[:2000]}, 422),
    ],
)
def test_long_lists_are_refused_before_they_are_looked_at(
    client: TestClient, path: str, body: Any, code: int
) -> None:
    refused(client, path, body, code)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"images": [GOOD], "task": HALF}),
        ("/v1/classify", {"images": [GOOD], "labels": ["a", HALF]}),
        ("/v1/classify", {"images": [HALF]}),
        ("/v1/classify", {"images": [GOOD], HALF: 1}),
        ("/v1/classify", {"images": ["data:" + HALF]}),
        (INFER, infer(datatype=HALF)),
        (INFER, infer(name=HALF)),
        (INFER, infer(data=[HALF])),
        (INFER, infer(id=HALF)),
        (INFER, infer(parameters={"task": HALF})),
        (INFER, infer(parameters={"labels": [HALF]})),
        (INFER, infer(parameters={"labels": '["\\ud800"]'})),
        (INFER, infer(outputs=[{"name": HALF}])),
        ("/v1/embed", {"texts": [HALF]}),
        ("/v1/similarity", {"images": [HALF]}),
        (ZERO, zero([HALF])),
        (ZERO, zero(["a"], "{}" + HALF)),
        ("/v1/admin/forget", {"task": HALF}),
        ("/v1/admin/forget", {"task": "a", HALF: 1}),
    ],
)
def test_half_a_character_is_refused_wherever_it_stands(
    client: TestClient, path: str, body: Any
) -> None:
    refused(client, path, body, 422)


def test_what_a_message_repeats_is_cut(client: TestClient) -> None:
    for path, body in (
        ("/v1/classify", {"images": [GOOD], "task": "n" * 900}),
        (INFER, infer(parameters={"task": "n" * 900})),
    ):
        assert refused(client, path, body, 404).count("n") < 80
    for path in ("/" + "n" * 5000, "/v1/tasks/" + "n" * 5000 + "/lineage", "/a%0ab%1b%00c"):
        error = client.get(path).json()["error"]
        assert error["code"] == 404 and len(error["message"]) < 150
        assert error["message"].isprintable()


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(PNG).decode(),
        base64.encodebytes(PNG).decode().replace("\n", "\r\n"),
        "data:image/png;base64," + base64.encodebytes(PNG).decode(),
        "DATA:image/png;charset=x;BASE64," + GOOD,
        base64.urlsafe_b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        "data:image/png;base64," + GOOD.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "  " + GOOD + "\t\n",
    ],
)
def test_base64_is_read_as_people_write_it(client: TestClient, text: str) -> None:
    assert from_base64(text, "x") == PNG
    given = client.post("/v1/classify", json={"images": [text]})
    plain = client.post("/v1/classify", json={"images": [GOOD]})
    assert given.status_code == plain.status_code == 200
    assert given.json()["results"][0]["classes"] == plain.json()["results"][0]["classes"]


@pytest.mark.parametrize("text", ["*", "AB*D", "é", "A", "data:text/plain,hello", "data:,", "=A=="])
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        from_base64(text, "images.3")
    assert caught.value.code == 422 and caught.value.message.startswith("images.3: ")


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PNG
TEXT = b'Content-Disposition: form-data; name="%b"\r\n\r\n%b'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(FILE, end=b""), 400),
        (form(FILE, end=b"--B"), 400),
        (form(FILE)[:-100], 400),
        (form(FILE[:-9], end=b""), 400),
        (b"", 400),
        (form(b"X: y\r\n\r\nz"), 400),
        (form(*[TEXT % (b"task", b"x")] * 17, FILE), 413),
        (form(*[FILE] * 33), 413),
        (form(TEXT % (b"task", b"\xff"), FILE), 422),
        (form(TEXT % (b"labels", b"[" * 100_000), FILE), 422),
        (form(TEXT % (b"labels", json.dumps(MANY).encode()), FILE), 413),
        (form(TEXT % (b"labels", json.dumps(MANY[:90_000]).encode()), FILE), 422),
        (form(TEXT % (b"labels", b'["\\ud800"]'), FILE), 422),
        (form(TEXT % (b"top_k", b"1e99"), FILE), 422),
        (form(TEXT % (b"image", b"text")), 422),
        (form(TEXT % (b"task", b"x")), 422),
    ],
)
def test_forms_are_whole_or_refused(client: TestClient, body: bytes, code: int) -> None:
    kind = {"content-type": "multipart/form-data; boundary=B"}
    answer = client.post("/v1/classify", content=body, headers=kind)
    assert answer.status_code == code, answer.text[:300]
    assert len(answer.json()["error"]["message"]) < 300


def test_a_form_is_read_to_its_last_byte() -> None:
    data = b"\r\n--Bx\r\n--\r\n" * 50 + b"\r\n--"
    found = read_form(
        "multipart/form-data; boundary=B",
        form(
            b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data,
            TEXT % (b"task", "späte Rosen".encode()),
        ),
        8,
    )
    assert found.files == [data] and found.fields == {"task": "späte Rosen"}
