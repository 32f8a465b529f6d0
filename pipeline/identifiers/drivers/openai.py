"""Any endpoint that speaks OpenAI's chat completions: vLLM, SGLang, Ray Serve LLM and others.

The key comes from the environment alone and is never stored. Requests run side by side up to
`identifier.concurrency`; what may pass (429, 5xx, a broken or slow answer) is tried again with
growing pauses. `choice` reads the letters' log probabilities, `generate` the text.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from archipelago.pipeline.errors import UserError
from archipelago.pipeline.identifier_settings import MultimodalSettings
from archipelago.pipeline.identifiers.choices import Choices
from archipelago.pipeline.identifiers.description import clean, describe_prompt, parse_letter
from archipelago.pipeline.identifiers.scorer import ScorerError, Scores, one_hot, register_driver
from archipelago.pipeline.redact import redacted

log = logging.getLogger(__name__)

KEY = "ARCHIPELAGO_OPENAI_API_KEY"
DESCRIBE_TOKENS, ANSWER_TOKENS = 96, 4
TOP = 20  # log probabilities that an endpoint gives at most
UNLIKELY = -30.0  # of a letter that is not among them
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 20.0
FINAL = frozenset({400, 401, 403, 404, 405, 413, 415, 422})  # asking again changes nothing


@register_driver("openai")
class OpenAIScorer:
    """A model behind an endpoint; see `pipeline.identifiers.scorer.Scorer`."""

    remote = True
    parallel = 1  # batches; within one, requests run side by side

    def __init__(self, settings: MultimodalSettings, threads: int = 0) -> None:
        assert settings.endpoint is not None
        self.settings = settings
        self.model = f"{settings.model}@endpoint"
        key = os.environ.get(KEY)
        self._shown = redacted({"endpoint": settings.endpoint})["endpoint"]
        self._client = httpx2.Client(
            base_url=settings.endpoint.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout_s,
            limits=httpx2.Limits(max_connections=settings.concurrency),
        )

    # -- the contract ------------------------------------------------------------------------

    def describe(self, images: np.ndarray, classes: Sequence[str], seed: int) -> str:
        """One question about all images; see `Scorer.describe`."""
        answer = self._ask(images, describe_prompt(classes), DESCRIBE_TOKENS, seed)
        text = clean(_text(answer))
        if not text:
            raise ScorerError(f"{self._shown}: an empty description")
        return text

    def score(
        self, images: np.ndarray, descriptions: Sequence[str], scoring: str, seed: int
    ) -> Scores:
        """One question about each image; see `Scorer.score`."""
        if scoring == "likelihood":
            raise UserError("identifier.scoring=likelihood: not with identifier.driver=openai")
        choices = Choices.of(images, descriptions, seed)

        def one(row: int) -> tuple[np.ndarray, bool]:
            prompt = choices.prompts[row]
            return self._one(images[row : row + 1], prompt, choices.letters, scoring, seed)

        with ThreadPoolExecutor(self.settings.concurrency, "openai") as pool:
            answers = list(pool.map(one, range(len(images))))
        places = np.array([place for place, _ in answers], np.float32)
        values = choices.by_option(places.reshape(choices.order.shape))
        return Scores(values, sum(failed for _, failed in answers))

    def _one(
        self, image: np.ndarray, prompt: str, letters: str, scoring: str, seed: int
    ) -> tuple[np.ndarray, bool]:
        """Log scores by place, NaN without an answer, and whether it was no option."""
        unanswered = np.full(len(letters), np.nan, np.float32)
        try:
            if scoring == "choice":
                answer = self._ask(image, prompt, 1, seed, logprobs=True, top_logprobs=TOP)
                places = _letter_scores(answer, letters)
                return (unanswered, True) if places is None else (places, False)
            found = parse_letter(_text(self._ask(image, prompt, ANSWER_TOKENS, seed)), letters)
            return one_hot([found], len(letters))[0], found is None
        except ScorerError as error:
            log.warning("%s; the signature answers instead", error)
            return unanswered, False

    # -- requests ----------------------------------------------------------------------------

    def _ask(
        self, images: np.ndarray, prompt: str, tokens: int, seed: int, **more: Any
    ) -> dict[str, Any]:
        """The first choice of an answer.

        Raises:
            ScorerError: none came, after all retries.
            UserError: the endpoint refuses such requests.
        """
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images
        ]
        content.append({"type": "text", "text": prompt})
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "temperature": 0.0,
            "seed": seed,
            **more,
        }
        reason = ""
        for attempt in range(self.settings.retries + 1):
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
            try:
                answer = self._client.post("chat/completions", json=body)
                if answer.status_code == 200:
                    return _first_choice(answer.json())
                status, reason = answer.status_code, f"HTTP {answer.status_code}"
                pause = max(pause, _wanted_pause(answer))
            except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
                status, reason = 0, type(error).__name__
            if status in FINAL:
                fewer = f", or show it fewer than {len(images)} images (identifier.samples)"
                hint = fewer if len(images) > 1 else ""
                raise UserError(
                    f"identifier.endpoint={self._shown}: {reason}; check the address,"
                    f" identifier.model={self.settings.model} and {KEY}{hint}"
                )
            if attempt < self.settings.retries:
                time.sleep(pause * random.uniform(0.75, 1.25))
        raise ScorerError(f"{self._shown}: {reason}, {self.settings.retries + 1} times")


def _first_choice(answer: dict[str, Any]) -> dict[str, Any]:
    """Raises LookupError or TypeError for what is no chat completion."""
    choice = answer["choices"][0]
    if not isinstance(choice["message"]["content"], str | None):
        raise TypeError("no text")
    return choice


def _text(choice: dict[str, Any]) -> str:
    return choice["message"]["content"] or ""


def _letter_scores(choice: dict[str, Any], letters: str) -> np.ndarray | None:
    """Log probability of each letter among the letters; None if there is none of them."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(entry["token"]).strip(), float(entry["logprob"])) for entry in top]
    except (LookupError, TypeError, ValueError):
        found = [(_text(choice).strip(), 0.0)]  # an endpoint without log probabilities
    scores = np.full(len(letters), UNLIKELY, np.float32)
    for token, value in found:
        index = parse_letter(token, letters)
        if index is not None:
            scores[index] = np.logaddexp(scores[index], value)
    if (scores == UNLIKELY).all():
        return None
    return scores - np.logaddexp.reduce(scores)


def _wanted_pause(answer: httpx2.Response) -> float:
    """Seconds that the endpoint asks to wait, within reason."""
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(answer.headers.get("Retry-After", 0))))
    except ValueError:
        return 0.0


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
