"""Vectors of images and texts: one implementation from Python to HTTP, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from archipelago.actors.client import Client, ServerError
from archipelago.actors.http.app import create_app
from archipelago.actors.http.local import LocalBackend
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.learned import LearnedModel
from archipelago.pipeline.learned.candidates import Candidate
from archipelago.pipeline.model.openclip import MOST_WORDS, forget_words, open_clip
from archipelago.pipeline.records.classes import class_list
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.serving import listening, refusal
from tests.unit.tiny_run import TASKS, World
from tests.unit.tiny_serving import SERVING, test_images

LIMITS = SERVING.model_copy(update={"max_images": 8, "max_labels": 6, "max_body_mib": 1})
TEXTS = ["a cat", "seven", "a grey wall with {braces} and a long story behind it " * 3]
CLOSE = 1e-6  # float32's rounding, of vectors of length 1


@pytest.fixture(scope="module")
def model(served_run: RunFolder) -> LearnedModel:
    return LearnedModel.open(served_run.uri, device="cpu")


@pytest.fixture(scope="module")
def images(served_world: World) -> np.ndarray:
    return np.concatenate([test_images(served_world, task, 2) for task in TASKS])


@pytest.fixture(scope="module")
def url(served_run: RunFolder) -> Iterator[str]:
    backend = LocalBackend(ServedModel(served_run.uri, LIMITS, "cpu"))
    with listening(create_app(backend, LIMITS)) as url:
        yield url


@pytest.fixture(scope="module")
def client(served_run: RunFolder) -> Iterator[TestClient]:
    backend = LocalBackend(ServedModel(served_run.uri, LIMITS, "cpu"))
    with TestClient(create_app(backend, LIMITS), raise_server_exceptions=False) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def b64(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode()


def test_texts_are_embedded_as_they_are_written(model: LearnedModel) -> None:
    backbone = model.runtime.backbone
    found = model.embed_texts(TEXTS)
    wanted = backbone.encode_text(backbone.tokenize(TEXTS)).numpy()
    np.testing.assert_allclose(found, wanted, atol=CLOSE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=CLOSE)
    as_class = model.texts.get(class_list(["a cat"]), None)
    assert abs(as_class[0] - found[0]).max() > 1e-3, "a template was put around it"
    assert len(model.embed_texts([])) == 0
    with pytest.raises(UserError, match="a list of texts"):
        model.embed_texts("a cat")


def test_a_vector_does_not_depend_on_its_batch(served_run: RunFolder, images: np.ndarray) -> None:
    def fresh() -> LearnedModel:  # nothing of the other's is kept
        return LearnedModel.open(served_run.uri, device="cpu")

    texts = [f"{'very ' * i}small" for i in range(70)]  # more than one pass
    whole, other = fresh(), fresh()
    together, in_images = whole.embed_texts(texts), whole.embed(images)
    for at in (0, 3, 69):
        np.testing.assert_allclose(other.embed_texts([texts[at]])[0], together[at], atol=CLOSE)
    for at in (0, 5):
        np.testing.assert_allclose(other.embed(images[at : at + 1])[0], in_images[at], atol=CLOSE)


def test_learning_changes_no_vector(served_run: RunFolder, images: np.ndarray) -> None:
    first, last = (LearnedModel.open(served_run.uri, n, "cpu") for n in (1, len(TASKS)))
    np.testing.assert_array_equal(first.embed(images), last.embed(images))
    np.testing.assert_array_equal(first.embed_texts(TEXTS), last.embed_texts(TEXTS))


def test_a_tokenizer_keeps_few_words() -> None:
    """That of OpenAI's CLIP keeps every word that it was ever shown."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    before = tokenizer(["a cat"])
    tokenizer.cache |= {f"word {i}": "w o r d" for i in range(MOST_WORDS)}
    forget_words(tokenizer)
    assert len(tokenizer.cache) < 10
    assert (tokenizer(["a cat"]) == before).all()
    forget_words(tokenizer)
    assert len(tokenizer.cache) > 2, "few words are kept"


def test_http_says_what_python_says(url: str, model: LearnedModel, images: np.ndarray) -> None:
    with Client(url) as client:
        found = client.embed([png(image) for image in images], TEXTS)
        np.testing.assert_allclose(found.images, model.embed(images), atol=CLOSE)
        np.testing.assert_allclose(found.texts, model.embed_texts(TEXTS), atol=CLOSE)
        assert (found.backbone, found.generation) == (model.runtime.backbone.name, 1)
        assert {"total", "decode", "images", "texts"} <= set(found.milliseconds)
        one = client.embed(Image.fromarray(images[0]))
        np.testing.assert_allclose(one.images, model.embed(images[:1]), atol=CLOSE)
        assert one.texts == [] and client.embed(texts="a cat").images == []

        cosines = model.embed(images[:3]) @ model.embed_texts(TEXTS).T
        shown = [png(image) for image in images[:3]]
        np.testing.assert_allclose(client.similarity(shown, TEXTS), cosines, atol=CLOSE)
        among = np.array(client.similarity(shown))
        np.testing.assert_allclose(among, among.T, atol=CLOSE)
        np.testing.assert_allclose(np.diag(among), 1.0, atol=CLOSE)
        assert np.shape(client.similarity(texts=TEXTS)) == (3, 3) and among.max() <= 1.0
        with pytest.raises(ServerError, match=r"give images, texts or both \(422\)"):
            client.embed()


def test_forms_json_and_plain_images_say_the_same(client: TestClient, images: np.ndarray) -> None:
    body = client.post("/v1/embed", json={"images": [b64(images[0])], "texts": TEXTS}).json()
    form = client.post(
        "/v1/embed", files={"image": ("a.png", png(images[0]))}, data={"texts": json.dumps(TEXTS)}
    ).json()
    plain = client.post(
        "/v1/embed", content=png(images[0]), headers={"content-type": "image/png"}
    ).json()
    for other in (form, plain):
        np.testing.assert_allclose(other["images"], body["images"], atol=CLOSE)
    np.testing.assert_allclose(form["texts"], body["texts"], atol=CLOSE)
    said = client.post("/v1/similarity", json={"texts": TEXTS}).json()
    assert (said["rows"], said["columns"]) == ("texts", "texts")
    both = client.post("/v1/similarity", json={"images": [b64(images[0])], "texts": TEXTS}).json()
    assert (both["rows"], both["columns"]) == ("images", "texts")


def test_what_cannot_be_embedded_is_refused(client: TestClient, images: np.ndarray) -> None:
    good = b64(images[0])
    torn = base64.b64encode(png(images[0])[:-40]).decode()
    cases: list[tuple[int, dict[str, Any]]] = [
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (413, {"json": {"images": [good] * 9}}),
        (413, {"content": b"x" * (2**20 + 1), "headers": {"content-type": "image/png"}}),
        (415, {"json": {"images": [base64.b64encode(b"no image").decode()]}}),
        (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
        (422, {"json": {"images": [torn], "texts": ["a"]}}),
        (422, {"json": {"texts": ["a"] * 7}}),
        (422, {"json": {"texts": ["a", ""]}}),
        (422, {"json": {"texts": "a"}}),
        (422, {"json": {"texts": [7]}}),
        (422, {"data": {"texts": "a"}, "files": {"image": ("a", png(images[0]))}}),
        (422, {"data": {"task": "a"}, "files": {"image": ("a", png(images[0]))}}),
    ]
    for path in ("/v1/embed", "/v1/similarity"):
        for code, request in cases:
            answer = client.post(path, **request)
            assert answer.status_code == code, (str(request)[:80], answer.text[:200])
            refusal(path, code, answer.json())


def test_a_request_leaves_counts_and_no_contents(
    client: TestClient, images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="ray.serve.archipelago"):
        client.post("/v1/embed", json={"images": [b64(images[0])], "texts": ["my secret", "b"]})
    record = caplog.records[-1]
    assert (record.images, record.texts, record.generation) == (1, 2, 1)  # type: ignore[attr-defined]
    assert "secret" not in str(record.__dict__)
    before = client.get("/v2/models/archipelago/stats").json()["model_stats"][0]
    client.post("/v1/embed", json={"texts": ["a", "b"]})
    client.post("/v1/embed", json={"texts": []})
    after = client.get("/v2/models/archipelago/stats").json()["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    failed = [s["inference_stats"]["fail"]["count"] for s in (before, after)]
    assert failed[1] == failed[0] + 1


# -- Hugging Face's task ---------------------------------------------------------------------------


def test_the_hub_s_own_client_classifies(
    url: str, model: LearnedModel, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it goes to this machine alone
    task = InferenceClient(model=f"{url}/v1/zero-shot-image-classification")
    labels = ["zebra", "yak", next(iter(model.tasks[TASKS[0]].classes))]
    found = task.zero_shot_image_classification(png(images[0]), candidate_labels=labels)
    (wanted,) = model.answer(images[:1], candidates=labels)
    assert [item.label for item in found] == [label for label, _ in wanted.classes]
    scores = {item.label: item.score for item in found}
    assert scores == pytest.approx(dict(wanted.classes), abs=1e-4)
    assert sum(item.score for item in found) == pytest.approx(1.0)
    with pytest.raises(HfHubHTTPError, match="415"):
        task.zero_shot_image_classification(b"no image", candidate_labels=labels)


def test_the_template_is_what_clip_reads(
    client: TestClient, model: LearnedModel, images: np.ndarray
) -> None:
    names = ["zebra", "yak"]

    def scores(**more: str) -> dict[str, float]:
        parameters = {"candidate_labels": names, **more}
        body = {"inputs": b64(images[0]), "parameters": parameters}
        said = client.post("/v1/zero-shot-image-classification", json=body)
        assert said.status_code == 200, said.text
        return {item["label"]: item["score"] for item in said.json()}

    usual = scores()
    assert usual == scores(hypothesis_template="a photo of a {}.")
    for template in ("{}", "a blurred picture of a {}, at night"):
        asked = [Candidate(name, templates=(template,)) for name in names]
        (wanted,) = model.answer(images[:1], candidates=asked)
        found = scores(hypothesis_template=template)
        assert found == pytest.approx(dict(wanted.classes), abs=1e-4)
        assert abs(found["yak"] - usual["yak"]) > 1e-3
