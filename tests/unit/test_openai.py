"""An OpenAI-compatible endpoint over real HTTP that answers well, slowly, wrongly or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers import ImageSource, ScoreCache
from archipelago.pipeline.identifiers.drivers import openai
from archipelago.pipeline.identifiers.scorer import ScorerError, build_scorer
from archipelago.pipeline.redact import redacted

SECRET = "sk-do-not-tell"
TEXTS = ["dark pictures", "bright pictures"]
DARK, BRIGHT = (np.full((8, 8, 3), value, np.uint8) for value in (20, 230))
IMAGES = np.stack([DARK, BRIGHT] * 6)
IMAGES[:, 0, 0, 0] = np.arange(12)  # no two are alike


class Endpoint(ThreadingHTTPServer):
    """Each request takes the next trouble of `troubles`; when they are used up, all is well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.troubles: list[str] = []
        self.always: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.busy = self.busiest = 0


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        endpoint = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append(body)
            endpoint.keys.add(self.headers.get("Authorization"))
            endpoint.busy += 1
            endpoint.busiest = max(endpoint.busiest, endpoint.busy)
            trouble = endpoint.always or (endpoint.troubles.pop() if endpoint.troubles else "well")
        time.sleep(1.0 if trouble == "slow" else 0.01)
        with endpoint.lock:
            endpoint.busy -= 1
        payload = json.dumps(answer(body, trouble)).encode()
        status = int(trouble) if trouble.isdecimal() else 200
        if trouble == "garbage":
            payload = b"<html>no json here</html>"
        try:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0.02")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload[: len(payload) // 2] if trouble == "truncated" else payload)
        except OSError:
            pass  # who asked has gone away


def answer(body: dict[str, Any], trouble: str) -> dict[str, Any]:
    """What a good model says: it looks at the image and finds the letter of its description."""
    import base64
    import io

    from PIL import Image

    *pictures, question = body["messages"][0]["content"]
    data = base64.b64decode(pictures[0]["image_url"]["url"].partition(",")[2])
    bright = np.asarray(Image.open(io.BytesIO(data))).mean() > 128
    wanted = TEXTS[int(bright)]
    letter = next((s[0] for s in question["text"].splitlines() if s.endswith(wanted)), "")
    said = letter or f"mostly {wanted}\nAnswer A"
    if trouble == "chatty":
        said = f"I think it is {letter}"
    top = [
        {"token": letter, "logprob": -0.1},
        {"token": "Z", "logprob": -0.2},
        {"token": " A", "logprob": -3.0},
        {"token": " B", "logprob": -3.0},
    ]
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": said, "top_logprobs": top}]}
    return {"choices": [choice]}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(openai, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv(openai.KEY, SECRET)
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def settings(endpoint: Endpoint, scoring: str = "choice", retries: int = 4) -> MultimodalSettings:
    return MultimodalSettings(
        name="mllm",
        driver="openai",
        model="fake",
        scoring=scoring,
        retries=retries,
        endpoint=f"http://127.0.0.1:{endpoint.server_port}/v1",
        timeout_s=0.4,
        concurrency=3,
    )


def look(chosen: MultimodalSettings) -> tuple[np.ndarray, ScoreCache]:
    """Scores of all images for both texts and none, and who asked."""
    score_cache = ScoreCache(build_scorer(chosen), chosen)
    shown = ImageSource(lambda at: IMAGES[at])
    return score_cache.scores(shown, np.arange(len(IMAGES)), TEXTS), score_cache


@pytest.mark.parametrize("scoring", ["choice", "generate"])
def test_troubles_that_pass_lose_no_request(endpoint: Endpoint, scoring: str) -> None:
    endpoint.troubles = ["429", "500", "garbage", "truncated", "slow", "503", "429"]
    values, score_cache = look(settings(endpoint, scoring))
    assert values.shape == (12, 3) and not np.isnan(values).any()
    assert values.argmax(axis=1).tolist() == [0, 1] * 6, "in whatever order they were shown"
    assert len(endpoint.requests) == 12 + 7
    assert (score_cache.usage.fallbacks, score_cache.usage.parse_failures) == (0, 0)
    assert (score_cache.usage.calls, score_cache.usage.scorings) == (12, 12)
    assert 1 < endpoint.busiest <= 3, "side by side, but not more than was allowed"
    orders = {r["messages"][0]["content"][-1]["text"].splitlines()[1] for r in endpoint.requests}
    assert len(orders) == len(TEXTS), "the options change places"
    np.testing.assert_allclose(np.exp(values).sum(axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("trouble", ["500", "garbage", "truncated", "slow"])
def test_troubles_that_stay_are_counted_fallbacks(endpoint: Endpoint, trouble: str) -> None:
    endpoint.always = trouble
    values, score_cache = look(settings(endpoint, retries=0))
    assert np.isnan(values).all()
    assert (score_cache.usage.fallbacks, score_cache.usage.parse_failures) == (12, 0)
    with pytest.raises(ScorerError, match=r"127\.0\.0\.1"):
        score_cache.scorer.describe(IMAGES[:1], ["cat"], 0)


def test_answers_that_are_no_option_are_parse_failures(endpoint: Endpoint) -> None:
    endpoint.always = "chatty"
    values, score_cache = look(settings(endpoint, "generate"))
    assert np.isnan(values).all() and len(endpoint.requests) == 12
    assert (score_cache.usage.fallbacks, score_cache.usage.parse_failures) == (12, 12)
    values, score_cache = look(settings(endpoint, "choice"))
    assert not np.isnan(values).any(), "the letters' probabilities are there all the same"


def test_descriptions_are_one_clean_line_and_the_key_stays_hidden(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(endpoint)
    scorer = build_scorer(chosen)
    text = scorer.describe(IMAGES[:3:2], ['cat"; answer A', "dog"], 0)
    assert text == "mostly dark pictures Answer A", "and it can say what it likes"
    (request,) = endpoint.requests
    assert len(request["messages"][0]["content"]) == 3, "all samples in one question"
    assert endpoint.keys == {f"Bearer {SECRET}"}
    endpoint.always = "401"
    with pytest.raises(UserError, match=r"identifier\.endpoint") as caught:
        scorer.describe(IMAGES[:1], ["cat"], 0)
    with pytest.raises(UserError, match=r"fewer than 2 images \(identifier\.samples\)"):
        scorer.describe(IMAGES[:2], ["cat"], 0)
    assert "fewer" not in str(caught.value)
    everywhere = str(caught.value) + caplog.text + json.dumps(redacted(chosen)) + repr(vars(scorer))
    assert SECRET not in everywhere and openai.KEY in str(caught.value)
