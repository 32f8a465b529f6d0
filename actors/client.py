"""A client of a served model. Needs httpx2 and nothing else of the product.

    from archipelago.actors.client import Client

    with Client("http://localhost:8000") as client:
        for result in client.classify(["seven.png", "rose.jpg"]):
            log.info("%s: %s", result.task, result.classes[0].label)

What changes nothing, such as classification, is asked again when the connection is lost or the
server is busy (429 and 503, after as long as the server says) or lost behind a gateway (502 and
504). What changes the model is sent only once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import httpx2

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture: TypeAlias = bytes | str | Path | Image
    """The bytes of an image file, a path to one, or a PIL image."""

AGAIN = frozenset({0, 429, 502, 503, 504})
LONGEST_WAIT_S = 30.0
LONGEST_LINE = 300


class ServerError(RuntimeError):
    """What the server refused or could not do, in one line.

    `code` is the HTTP status, or 0 when no answer arrived; `retry_after` is in seconds.
    """

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{message} ({code})" if code else message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Class:
    """A class and its probability among the candidates."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Group:
    """An expert group that took part in an answer, and its weight."""

    task: str
    weight: float


@dataclass(frozen=True, slots=True)
class Domain:
    """A learned domain and how likely an image is from it, were it from one of them."""

    task: str
    probability: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image.

    `task` is the recognised domain, None when none was; `unseen` says that frozen CLIP answered,
    fused with the groups by `lambda_`; `classes` and `domains` come likeliest first.
    `unseen_probability` is that of being from no learned domain, whatever was asked. `refused` says
    that the image looks too new for the endpoint to answer at all; there are no classes then.
    """

    task: str | None
    task_confidence: float
    unseen: bool
    lambda_: float
    groups: tuple[Group, ...]
    classes: tuple[Class, ...]
    milliseconds: Mapping[str, float]
    generation: int
    domains: tuple[Domain, ...]
    unseen_probability: float | None
    refused: bool

    @classmethod
    def parse(cls, answer: Mapping[str, Any], generation: int) -> Self:
        """From one entry of the server's `results`."""
        return cls(
            task=answer["task"],
            task_confidence=answer["task_confidence"],
            unseen=answer["unseen"],
            lambda_=answer["lambda"],
            groups=tuple(Group(one["task"], one["weight"]) for one in answer["groups"]),
            classes=tuple(Class(one["label"], one["probability"]) for one in answer["classes"]),
            milliseconds=dict(answer["milliseconds"]),
            generation=generation,
            domains=tuple(Domain(one["task"], one["probability"]) for one in answer["domains"]),
            unseen_probability=answer["unseen_probability"],
            refused=answer["refused"],
        )


@dataclass(frozen=True, slots=True)
class Task:
    """A learned domain: what it is, its classes, and where its lineage and examples are."""

    name: str
    description: str
    classes: tuple[str, ...]
    lineage: str | None
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Normalised vectors of frozen CLIP, one an image and one a text, in their order.

    Products of two are cosines. `backbone` names the CLIP: vectors of one can be compared, whatever
    was learned between them.
    """

    images: list[list[float]]
    texts: list[list[float]]
    backbone: str
    generation: int
    milliseconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Models:
    """Which version serves: `generation` only grows, `manifest` is the model version it names."""

    generation: int
    manifest: int
    backbone: str
    history: tuple[Mapping[str, Any], ...]


class Client:
    """Talks to one endpoint over kept-alive connections; safe to share between threads.

    Args:
        url: where the server is, such as `http://localhost:8000` or `https://host/prefix`.
        token: for what changes the model; classification needs none. White space around it is left
            out, as the server does.
        timeout: seconds to wait for one answer.
        retries: how often an idempotent request is asked again.
        transport: of httpx2, for proxies and certificates of its own.

    Raises:
        ValueError: a token that a header cannot carry.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._token = (token or "").strip()
        if not all(" " <= letter <= "~" for letter in self._token):
            raise ValueError("token: holds control or non-ASCII characters")
        self._http = httpx2.Client(base_url=url, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def classify(
        self,
        images: Picture | Iterable[Picture],
        task: str | None = None,
        labels: Sequence[str] | None = None,
        top_k: int = 5,
    ) -> list[Result]:
        """Classify images in one request; one result each, in their order.

        Args:
            images: one image or several, as bytes, paths or PIL images.
            task: the domain, where it is known; otherwise it is recognised image by image.
            labels: candidates of your own; otherwise the learned classes.
            top_k: how many classes to answer.

        Raises:
            ServerError: refused, or no answer after all retries.
            OSError: a path that cannot be read.
        """
        files = _files(images)
        if not files:
            return []
        form = {"top_k": str(top_k)}
        if task is not None:
            form["task"] = task
        if labels is not None:
            form["labels"] = json.dumps(list(labels))
        body = self._again("POST", "v1/classify", data=form, files=files)
        with _understood():
            return [Result.parse(answer, body["generation"]) for answer in body["results"]]

    def embed(
        self, images: Picture | Iterable[Picture] = (), texts: str | Iterable[str] = ()
    ) -> Embeddings:
        """Vectors of images and texts in one request; there must be one at least.

        Args:
            images: one image or several, as bytes, paths or PIL images.
            texts: one text or several, read as they are written.

        Raises:
            ServerError: refused, or no answer after all retries.
            OSError: a path that cannot be read.
        """
        body = self._again("POST", "v1/embed", **_shown(images, texts))
        with _understood():
            return Embeddings(
                body["images"],
                body["texts"],
                body["backbone"],
                body["generation"],
                dict(body["milliseconds"]),
            )

    def similarity(
        self, images: Picture | Iterable[Picture] = (), texts: str | Iterable[str] = ()
    ) -> list[list[float]]:
        """Cosines: a row an image and a column a text; among themselves where only images or only
        texts are given. Arguments and errors as for `embed`."""
        body = self._again("POST", "v1/similarity", **_shown(images, texts))
        with _understood():
            return [[float(value) for value in row] for row in body["similarity"]]

    def tasks(self) -> list[Task]:
        """The learned domains, in the order in which they were learned."""
        body = self._again("GET", "v1/tasks")
        with _understood():
            return [
                Task(
                    name=one["name"],
                    description=one.get("description") or "",
                    classes=tuple(one["classes"]),
                    lineage=one.get("lineage"),
                    examples=tuple(one.get("examples") or ()),
                )
                for one in body["tasks"]
            ]

    def models(self) -> Models:
        """The version that serves, and those before it."""
        body = self._again("GET", "v1/models")
        with _understood():
            return Models(
                body["generation"], body["manifest"], body["backbone"], tuple(body["history"])
            )

    def publish(self, manifest: int) -> int:
        """Serve a model version; the new generation, once every replica answers with it."""
        return self._change("publish", manifest=manifest)

    def rollback(self, manifest: int) -> int:
        """Serve an earlier model version again; the new generation, as for `publish`."""
        return self._change("rollback", manifest=manifest)

    def forget(self, task: str, erase: bool = False, test: bool = False) -> int:
        """Serve without a domain, and with `erase` delete what was stored of it; the generation.

        With `test`, domains that borrowed from it are measured on their test split, which takes
        long; the figures are in the run's journal.
        """
        return self._change("forget", task=task, erase=erase, test=test)

    def _change(self, verb: str, **body: object) -> int:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        answer = self._once("POST", f"v1/admin/{verb}", json=body, headers=headers, timeout=None)
        with _understood():
            return int(answer["generation"])

    def _again(self, method: str, path: str, **what: Any) -> Any:
        """An idempotent request; waits longer each time, as long as the server says at least."""
        for attempt in itertools.count():
            try:
                return self._once(method, path, **what)
            except ServerError as error:
                if attempt == self._retries or error.code not in AGAIN:
                    raise
                wait = 0.1 * 2**attempt * random.uniform(0.5, 1.0)
                time.sleep(min(max(wait, error.retry_after or 0.0), LONGEST_WAIT_S))

    def _once(self, method: str, path: str, **what: Any) -> Any:
        try:
            reply = self._http.request(method, path, **what)
        except httpx2.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0]
            raise ServerError(0, f"no answer from {self._http.base_url}: {reason}") from error
        if reply.is_success:
            with contextlib.suppress(ValueError):
                return reply.json()
            raise ServerError(reply.status_code, "the answer is not JSON; is this the right URL?")
        raise ServerError(reply.status_code, _said(reply), _seconds(reply))


def _files(images: Picture | Iterable[Picture]) -> list[tuple[str, tuple[str, bytes]]]:
    """One image or several as fields of a form."""
    one = isinstance(images, bytes | bytearray | str | Path) or hasattr(images, "save")
    pictures = cast("list[Picture]", [images] if one else list(cast("Iterable[Picture]", images)))
    return [("image", _file(picture)) for picture in pictures]


def _shown(images: Picture | Iterable[Picture], texts: str | Iterable[str]) -> dict[str, Any]:
    """A body with images and texts; without images it is no form."""
    files, written = _files(images), [texts] if isinstance(texts, str) else list(texts)
    if not files:
        return {"json": {"texts": written}}
    return {"files": files, "data": {"texts": json.dumps(written)}}


def _file(picture: Picture) -> tuple[str, bytes]:
    """Name and bytes of an image file, read now: a retry sends the same again."""
    if isinstance(picture, bytes | bytearray):
        return "image", bytes(picture)
    if isinstance(picture, str | Path):
        return Path(picture).name, Path(picture).read_bytes()
    file = io.BytesIO()
    mode = picture.mode if picture.mode in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"} else "RGB"
    (picture if mode == picture.mode else picture.convert(mode)).save(file, "PNG")
    return "image.png", file.getvalue()


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Answers of another shape come from another server."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        words = "the answer is not archipelago's; is this the right URL?"
        raise ServerError(200, words) from None


def _said(reply: httpx2.Response) -> str:
    """The server's own line, or the status: gateways answer in HTML."""
    try:
        said = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError, IndexError):
        said = None
    lines = said.strip().splitlines() if isinstance(said, str) else []
    return lines[0][:LONGEST_LINE] if lines else reply.reason_phrase or "refused"


def _seconds(reply: httpx2.Response) -> float | None:
    with contextlib.suppress(KeyError, ValueError):
        seconds = float(reply.headers["retry-after"])
        return seconds if 0.0 <= seconds < float("inf") else None
    return None
