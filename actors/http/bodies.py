"""From a request's bytes to pixels and wishes, within limits; decoding happens in a thread."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.http.problems import Problem, explain
from pipeline.learned.asking import Ask
from pipeline.settings import ServingSettings
from pipeline.streams.decode import BadImage, NotAnImage, TooManyPixels, decode, fit

LONGEST_LABEL = 200
FIELDS = ("task", "labels", "top_k")


class ClassifyRequest(BaseModel):
    """Images to classify, base64-encoded files of any common format."""

    model_config = ConfigDict(extra="forbid")

    images: list[str] = Field(description="image files, base64", min_length=1)
    task: str | None = Field(None, description="the domain, where it is known")
    labels: list[str] | None = Field(None, description="open vocabulary", min_length=1)
    top_k: int = Field(5, description="how many classes come back", ge=1, le=1000)


@dataclass(frozen=True)
class Wish:
    """A parsed request: encoded image files and what is wanted of each."""

    files: list[bytes]
    ask: Ask


class BodyLimit:
    """ASGI middleware: no more than so many bytes of a body are ever taken in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 where the header says too much; stop reading where the body does."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"")
        if told.isdigit() and int(told) > self.limit:
            await too_large(self.limit).response()(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise too_large(self.limit)
            return message

        await self.app(scope, limited, send)


def too_large(limit: int) -> Problem:
    """413 for a body."""
    return Problem(413, f"the body is larger than {limit / 2**20:g} MiB")


async def read_wish(request: Request, limits: ServingSettings) -> Wish:
    """Parse a classify request by its content type.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            wish = await _form(request, limits)
        elif kind == "application/json":
            wish = _json(await request.body())
        elif kind.startswith("image/") or kind == "application/octet-stream":
            wish = Wish([await request.body()], Ask())
        else:
            raise Problem(
                415,
                f"content type '{kind or 'none'}': send multipart/form-data with a field image,"
                " or application/json",
            )
    except ClientDisconnect:
        raise Problem(400, "the connection ended before the body did") from None
    if len(wish.files) > limits.max_images:
        raise Problem(413, f"{len(wish.files)} images: at most {limits.max_images} a request")
    return Wish(wish.files, check_ask(wish.ask, limits))


async def _form(request: Request, limits: ServingSettings) -> Wish:
    try:
        form = await request.form(max_files=limits.max_images + 1, max_fields=16)
    except (MultiPartException, ValueError, KeyError) as error:
        raise Problem(400, f"the form cannot be read: {error}") from None
    except Exception as error:
        detail = getattr(error, "detail", None)
        if isinstance(error, Problem) or detail is None:
            raise
        code = 413 if "Too many" in str(detail) else 400
        raise Problem(code, f"the form cannot be read: {detail}") from None
    try:
        unknown = sorted(set(form) - {"image", "images", *FIELDS})
        if unknown:
            raise Problem(422, f"{unknown[0]}: unknown field; image, {', '.join(FIELDS)} are known")
        uploads = [*form.getlist("image"), *form.getlist("images")]
        if not uploads:
            raise Problem(422, "image: a file is missing")
        files = []
        for upload in uploads:
            if not isinstance(upload, UploadFile):
                raise Problem(422, "image: send it as a file, not as text")
            files.append(await upload.read())
        values: dict[str, Any] = {k: str(form[k]) for k in FIELDS if str(form.get(k) or "")}
    finally:
        await form.close()
    if "labels" in values:
        try:
            values["labels"] = json.loads(values["labels"])
        except (ValueError, RecursionError):
            raise Problem(422, "labels: not a JSON list") from None
    wish = _validated({"images": ["-"], **values})
    return Wish(files, _ask(wish))


def _json(body: bytes) -> Wish:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    wish = _validated(values)
    files = []
    for index, text in enumerate(wish.images):
        files.append(from_base64(text, f"images.{index}"))
    return Wish(files, _ask(wish))


def _validated(values: object) -> ClassifyRequest:
    try:
        return ClassifyRequest.model_validate(values)
    except ValidationError as error:
        raise Problem(422, explain(error.errors())) from None


def _ask(wish: ClassifyRequest) -> Ask:
    return Ask(wish.task, None if wish.labels is None else tuple(wish.labels), wish.top_k)


def from_base64(text: str, where: str) -> bytes:
    """Decode base64, also as a data URL; 422 names the place."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, f"{where}: not base64") from None


def check_ask(ask: Ask, limits: ServingSettings) -> Ask:
    """Labels within limits, each of them once; raises Problem 422."""
    if ask.labels is None:
        return ask
    if not ask.labels:
        raise Problem(422, "labels: the list is empty")
    if len(ask.labels) > limits.max_labels:
        raise Problem(422, f"labels: {len(ask.labels)}, at most {limits.max_labels} are allowed")
    for index, label in enumerate(ask.labels):
        if not label.strip() or len(label) > LONGEST_LABEL:
            raise Problem(422, f"labels.{index}: give 1 to {LONGEST_LABEL} characters")
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in label):
            raise Problem(422, f"labels.{index}: not valid text")
    return Ask(ask.task, tuple(dict.fromkeys(ask.labels)), ask.top_k)


async def decode_images(files: Sequence[bytes], size: int, limits: ServingSettings) -> np.ndarray:
    """Pixels (B, S, S, 3) as a person would see them.

    Raises:
        Problem: 413 too many pixels, 415 no image, 422 a broken one.
    """
    return await asyncio.to_thread(_decode_all, files, size, limits.max_pixels)


def _decode_all(files: Sequence[bytes], size: int, max_pixels: int) -> np.ndarray:
    images = []
    for index, data in enumerate(files):
        where = f"image {index + 1}: " if len(files) > 1 else "image: "
        try:
            images.append(fit(decode(data, max_pixels), size))
        except TooManyPixels:
            raise Problem(413, f"{where}more than {max_pixels} pixels") from None
        except NotAnImage as error:
            raise Problem(415, f"{where}{error}") from None
        except BadImage as error:
            raise Problem(422, f"{where}{error}") from None
    return np.stack(images)
