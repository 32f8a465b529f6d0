"""The Open Inference Protocol, spoken by its own client over real sockets."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from archipelago.actors.http.app import create_app
from archipelago.actors.http.local import LocalBackend
from archipelago.actors.http.outputs import OUTPUTS
from archipelago.pipeline.learned import Answer, Ask
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.serving import listening, refusal
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, test_images

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
Refused = triton.InferenceServerException

MODEL = "archipelago"
INFER = f"/v2/models/{MODEL}/infer"
LIMITS = SERVING.model_copy(update={"max_images": 4, "max_body_mib": 1})
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def served(served_run: RunFolder) -> ServedModel:
    return ServedModel(served_run.uri, LIMITS, "cpu")


@pytest.fixture(scope="module")
def url(served: ServedModel) -> Iterator[str]:
    with listening(create_app(LocalBackend(served), LIMITS)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def pixels(served_world: World) -> np.ndarray:
    return np.concatenate([test_images(served_world, task, 1) for task in TASKS[:3]])


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def tensor(name: str, array: np.ndarray, binary: bool = True) -> Any:
    datatype = "BYTES" if array.dtype == np.object_ else triton_type(array)
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def triton_type(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(array.dtype))


def files_of(pixels: np.ndarray, encode: bool = False) -> np.ndarray:
    files = [png(image) for image in pixels]
    return np.array([base64.b64encode(f) if encode else f for f in files], dtype=np.object_)


def written(text: str | bytes) -> str:
    """A BYTES element: the client leaves those of JSON as they are."""
    return text if isinstance(text, str) else text.decode()


def agree(result: Any, wanted: list[Answer]) -> None:
    """All outputs of a result are those of the answers."""
    labels = [[written(text) for text in row] for row in result.as_numpy("label")]
    assert labels == [[label for label, _ in answer.classes] for answer in wanted]
    shares = [[p for _, p in answer.classes] for answer in wanted]
    np.testing.assert_allclose(result.as_numpy("probability"), shares, atol=1e-4)
    found = [written(text) for text in result.as_numpy("task")]
    assert found == [answer.task or "" for answer in wanted]
    for name in ("task_confidence", "unseen_probability"):
        stated = [getattr(answer, name) for answer in wanted]
        assert result.as_numpy(name).dtype == np.float64
        np.testing.assert_allclose(result.as_numpy(name), stated, atol=1e-4)
    for name in ("unseen", "refused"):
        assert result.as_numpy(name).dtype == np.bool_
        assert result.as_numpy(name).tolist() == [getattr(answer, name) for answer in wanted]


def test_health_metadata_and_configuration(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("other") and not client.is_model_ready(MODEL, "9")
    extensions = client.get_server_metadata()["extensions"]
    assert {"binary_tensor_data", "statistics", "model_configuration"} == set(extensions)
    about = client.get_model_metadata(MODEL)
    assert {item["name"]: (item["datatype"], item["shape"]) for item in about["inputs"]} == {
        "image": ("UINT8", [-1, 32, 32, 3]),
        "file": ("BYTES", [-1]),
    }
    assert [item["name"] for item in about["outputs"]] == list(OUTPUTS)
    assert client.get_model_metadata(MODEL, "1") == about
    config = client.get_model_config(MODEL)
    assert config["input"][1] == {
        "name": "file",
        "data_type": "TYPE_STRING",
        "dims": [-1],
        "optional": True,
    }
    assert config["max_batch_size"] == 0 and len(config["output"]) == len(OUTPUTS)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_both_inputs_are_answered_as_python_answers(
    client: Any, served: ServedModel, pixels: np.ndarray, binary: bool
) -> None:
    _, wanted, _ = served.classify(pixels, [Ask()] * 3)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    files = files_of(pixels, encode=not binary)
    for given in (tensor("image", pixels, binary), tensor("file", files, binary)):
        result = client.infer(MODEL, [given], outputs=outputs, request_id="7")
        agree(result, wanted)
        said = result.get_response()
        assert (said["id"], said["model_name"], said["model_version"]) == ("7", MODEL, "1")
    default = client.infer(MODEL, [tensor("image", pixels)])  # nothing chosen
    agree(default, wanted)
    assert "id" not in default.get_response()


def test_parameters_versions_and_chosen_outputs(client: Any, pixels: np.ndarray) -> None:
    given = [tensor("image", pixels[:2])]
    wanted = [
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("probability"),
    ]
    labels = ["zebra", "späte Rose"]
    for told in (labels, json.dumps(labels)):  # the protocol's parameters are no lists
        parameters = {"labels": told, "task": TASKS[0]}
        result = client.infer(MODEL, given, "1", wanted, parameters=parameters)
        said = result.get_response()["outputs"]
        assert [item["name"] for item in said] == ["label", "probability"]
        assert "data" in said[0] and said[1]["parameters"] == {"binary_data_size": 32}
        assert set(result.as_numpy("label").reshape(-1)) == set(labels)
        np.testing.assert_allclose(result.as_numpy("probability").sum(1), 1.0)
        texts = client.infer(MODEL, given, parameters=parameters).as_numpy("label")
        assert {text.decode() for text in texts.reshape(-1)} == set(labels), "UTF-8 in binary"
    assert client.infer(MODEL, given, parameters={"top_k": 2}).as_numpy("label").shape == (2, 2)


def test_statistics_count_what_was_asked(client: Any, url: str, pixels: np.ndarray) -> None:
    (before,) = client.get_inference_statistics(MODEL)["model_stats"]
    client.infer(MODEL, [tensor("image", pixels)])
    with pytest.raises(Refused):
        client.infer(MODEL, [tensor("file", np.array([b"no image"], dtype=np.object_))])
    (after,) = client.get_inference_statistics(MODEL, "1")["model_stats"]
    assert client.get_inference_statistics()["model_stats"] == [after]
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] == before["execution_count"] + 1
    spent = {part: after["inference_stats"][part] for part in after["inference_stats"]}
    assert spent["fail"]["count"] == before["inference_stats"]["fail"]["count"] + 1
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert spent["compute_infer"]["ns"] > 0 and spent["compute_input"]["ns"] > 0
    assert sum(spent[part]["ns"] for part in parts) <= spent["success"]["ns"]
    assert after["last_inference"] > 1e12 and after["version"] == "1"


def test_refusals_reach_the_client_in_one_line(client: Any, pixels: np.ndarray) -> None:
    def refused(*given: Any, name: str = MODEL, **more: Any) -> str:
        with pytest.raises(Refused) as caught:
            client.infer(name, list(given), **more)
        return f"{caught.value.status()} {caught.value.message()}"

    image = tensor("image", pixels)
    assert refused(image, name="other").startswith("404 model 'other' does not exist")
    assert refused(image, model_version="9") == "404 version 9 does not answer; 1 does"
    assert "404 task 'nobody'" in refused(image, parameters={"task": "nobody"})
    assert "413" in refused(tensor("image", np.concatenate([pixels] * 2)))
    torn = np.array([b"no image"], dtype=np.object_)
    assert refused(tensor("file", torn)).startswith("415 image: not an image")
    assert "inputs.0.name: 'picture'" in refused(tensor("picture", pixels))
    assert "[n, 32, 32, 3] is wanted" in refused(tensor("image", pixels[:, :9]))
    assert "'FP32'" in refused(tensor("image", pixels.astype(np.float32)))
    assert "inputs.0.datatype" in refused(tensor("file", pixels))
    assert "inputs" in refused(image, tensor("file", torn))
    other = [triton.InferRequestedOutput("logits")]
    assert "outputs.0.name: 'logits'" in refused(image, outputs=other)
    ranked = [triton.InferRequestedOutput("label", class_count=2)]
    assert "classification: this extension is not offered" in refused(image, outputs=ranked)
    assert "content encoding 'gzip'" in refused(image, request_compression_algorithm="gzip")
    with pytest.raises(Refused, match="404"):
        client.get_model_metadata("other")


def packed(pixels: np.ndarray, **change: Any) -> tuple[dict[str, str], bytes]:
    """A binary request with something changed in it."""
    data = change.pop("rest", pixels.tobytes())
    told = {"binary_data_size": change.pop("size", len(data))}
    given = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), **change}
    length = given.pop("length", None)
    text = json.dumps({"inputs": [{**given, "parameters": told}]}).encode()
    return {LENGTH: str(len(text)) if length is None else length}, text + data


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"length": "99999999"}, 400),
        ({"length": "-1"}, 400),
        ({"length": "x"}, 400),
        ({"length": "9" * 5000}, 400),
        ({"length": "0"}, 400),
        ({"length": "20"}, 400),
        ({"rest": b""}, 422),
        ({"rest": b"x" * 99}, 422),
        ({"size": 5}, 422),
        ({"size": "x"}, 422),
        ({"size": True}, 422),
        ({"size": -1}, 422),
        ({"size": [1] * 99}, 422),
        ({"shape": [1, 32, 32, 3]}, 422),
        ({"shape": [2**62, 32, 32, 3]}, 413),
        ({"shape": [0, 32, 32, 3], "rest": b""}, 422),
        ({"datatype": "BYTES", "shape": [1], "rest": b"\xff\xff\xff\xff"}, 422),
        ({"datatype": "BYTES", "shape": [1], "rest": b"\x01\x00"}, 422),
        ({"datatype": "BYTES", "shape": [2], "rest": b"\x00\x00\x00\x00"}, 422),
        ({"datatype": "BYTES", "shape": [1], "rest": b"\x00\x00\x00\x00" * 2}, 422),
        ({"datatype": "BYTES", "shape": [1], "rest": b"\x00\x00\x00\x00"}, 422),
    ],
)
def test_binary_bodies_that_lie_are_refused(
    url: str, pixels: np.ndarray, change: dict[str, Any], code: int
) -> None:
    headers, body = packed(pixels[:2], **change)
    answer = httpx2.post(url + INFER, content=body, headers=headers)
    assert answer.status_code == code, answer.text[:200]
    refusal(INFER, code, answer.json())


def test_json_is_read_whatever_it_is_called(url: str, pixels: np.ndarray) -> None:
    given = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    body = json.dumps({"inputs": [{**given, "data": pixels.reshape(-1).tolist()}]}).encode()
    for kind in (None, "application/octet-stream", "text/plain", "application/json"):
        headers = {} if kind is None else {"content-type": kind}
        answer = httpx2.post(url + INFER, content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"


def test_errors_have_the_protocols_form_wherever_they_arise(url: str, served: ServedModel) -> None:
    def check(url: str, path: str, code: int, **what: Any) -> None:
        answer = httpx2.request(what.pop("method", "POST"), url + path, **what)
        assert answer.status_code == code, answer.text
        refusal(path, code, answer.json())

    check(url, INFER, 413, content=b"x" * (2**20 + 1))
    check(url, "/v2/nothing", 404)
    check(url, INFER, 405, method="GET")
    check(url, INFER, 400, content=b"{")
    check(url, "/v1/nothing", 404)

    class Broken(LocalBackend):
        async def classify(self, *_: Any) -> Any:
            raise ZeroDivisionError

        async def describe(self) -> dict[str, Any]:
            raise ZeroDivisionError

    outer = FastAPI()  # below a prefix the path begins with that
    outer.mount("/below", create_app(Broken(served), LIMITS))
    with listening(outer) as address:
        answer = httpx2.get(f"{address}/below/v2/models/{MODEL}")
        assert answer.status_code == 500
        refusal("/v2", 500, answer.json())
