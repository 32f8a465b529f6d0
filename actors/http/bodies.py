"""From a request's bytes to files and wishes, within limits. Runs in a decoder's process.

`read_wish` is for `/v1/classify`; `tensors.py` has its sibling for `/v2`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from archipelago.actors.http.forms import Form, read_form
from archipelago.actors.http.problems import Problem, cut, explain
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.settings import ServingSettings

LONGEST_LABEL = 200
LONGEST_TASK = 1000
FIELDS = ("task", "labels", "top_k")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.I)
_Model = TypeVar("_Model", bound=BaseModel)


def whole(text: str) -> str:
    """Text that UTF-8 can hold; ValueError for half a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid text") from None
    return text


Text = Annotated[str, AfterValidator(whole)]
Task = Annotated[Text, Field(max_length=LONGEST_TASK)]
Texts = Annotated[list[Text], Field(fail_fast=True)]


class ClassifyRequest(BaseModel):
    """Images to classify, base64-encoded files of any common format."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(fail_fast=True)] = Field(
        description="image files, base64", min_length=1
    )
    task: Task | None = Field(None, description="the domain, where it is known")
    labels: Texts | None = Field(None, description="open vocabulary", min_length=1)
    top_k: int = Field(5, description="how many classes come back", ge=1, le=1000)


@dataclass(frozen=True)
class Wish:
    """A request that was read.

    Attributes:
        ask: what is wanted of each image.
        files: encoded images, or none where there are
        pixels: uint8 (B, S, S, 3).
        name: what the caller calls the request (`/v2`).
    """

    ask: Ask
    files: list[bytes] = field(default_factory=list)
    pixels: np.ndarray | None = None
    name: str | None = None


def read_wish(content_type: str, body: bytes | bytearray, limits: ServingSettings) -> Wish:
    """Parse a classify request by its content type, one of those that `kind_of` lets pass.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    kind = kind_of(content_type)
    if kind == "multipart/form-data":
        wish = _form(read_form(content_type, body, limits.max_images), limits)
    elif kind == "application/json":
        wish = _json(body, limits)
    else:
        wish = Wish(Ask(), [bytes(body)])
    return Wish(check_ask(wish.ask, limits), wish.files)


def kind_of(content_type: str) -> str:
    """The content type without its parameters; 415 for one that is not read."""
    kind = content_type.partition(";")[0].strip().lower()
    known = ("multipart/form-data", "application/json", "application/octet-stream")
    if kind in known or kind.startswith("image/"):
        return kind
    raise Problem(
        415,
        f"content type '{cut(kind) or 'none'}': send multipart/form-data with a field image, or"
        " application/json",
    )


def read_json(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a body; raises Problem 400 or 422."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON") from None
    if not isinstance(values, dict):
        raise Problem(422, "body: a JSON object is wanted")
    return values


def validated(kind: type[_Model], values: Mapping[str, Any]) -> _Model:
    """A model from values; raises Problem 422, and never builds more errors than it shows."""
    if kind.model_config.get("extra") == "forbid":
        unknown = next((key for key in values if key not in kind.model_fields), None)
        if unknown is not None:
            known = ", ".join(kind.model_fields)
            raise Problem(422, f"{cut(unknown)}: unknown field; {known} are known")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise Problem(422, explain(found)) from None


def check_lengths(images: object, labels: object, limits: ServingSettings) -> None:
    """Refuse long lists before anything looks at what is in them; Problem 413 or 422."""
    if isinstance(images, list) and len(images) > limits.max_images:
        raise Problem(413, f"{len(images)} images: at most {limits.max_images} a request")
    if isinstance(labels, list) and len(labels) > limits.max_labels:
        raise Problem(422, f"labels: {len(labels)}, at most {limits.max_labels} are allowed")


def _form(form: Form, limits: ServingSettings) -> Wish:
    files, values = form.files, dict(form.fields)
    unknown = sorted((set(values) | form.names) - {"image", "images", *FIELDS})
    if unknown:
        known = f"image, {', '.join(FIELDS)} are known"
        raise Problem(422, f"{cut(unknown[0])}: unknown field; {known}")
    if {"image", "images"} & set(values):
        raise Problem(422, "image: send it as a file, not as text")
    if not files:
        raise Problem(422, "image: a file is missing")
    check_lengths(files, None, limits)
    given: dict[str, Any] = {key: values[key] for key in FIELDS if values.get(key)}
    if "labels" in given:
        try:
            given["labels"] = json.loads(given["labels"])
        except (ValueError, RecursionError):
            raise Problem(422, "labels: not a JSON list") from None
    check_lengths(None, given.get("labels"), limits)
    return Wish(_ask(validated(ClassifyRequest, {"images": ["-"], **given})), files)


def _json(body: bytes | bytearray, limits: ServingSettings) -> Wish:
    values = read_json(body)
    check_lengths(values.get("images"), values.get("labels"), limits)
    wish = validated(ClassifyRequest, values)
    return Wish(_ask(wish), from_base64_all(wish.images, "images"))


def _ask(wish: ClassifyRequest) -> Ask:
    return Ask(wish.task, None if wish.labels is None else tuple(wish.labels), wish.top_k)


def from_base64_all(texts: Sequence[str], where: str) -> list[bytes]:
    """Files of a list; 422 names the entry."""
    return [from_base64(text, f"{where}.{index}") for index, text in enumerate(texts)]


def from_base64(text: str, where: str) -> bytes:
    """Decode base64, also URL-safe, broken into lines, without its padding, or as a data URL.

    Raises:
        Problem: 422 naming `where`.
    """
    if text[:5].lower() == "data:":
        start = _DATA_URL.match(text)
        if start is None:
            raise Problem(422, f"{where}: a data URL that is not base64")
        text = text[start.end() :].replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
    try:
        data = text.encode("ascii").translate(_STANDARD, delete=b" \t\r\n").rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, f"{where}: not base64") from None


_STANDARD = bytes.maketrans(b"-_", b"+/")


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
    return Ask(ask.task, tuple(dict.fromkeys(ask.labels)), ask.top_k)
