"""From a request's bytes to files and wishes, within limits. Runs in a decoder's process.

`read_wish` is for `/v1/classify`; its siblings are in `captions.py`, and for `/v2` in `tensors.py`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        texts: to be embedded.
        name: what the caller calls the request (`/v2`).
        outputs: (name, whether in binary) of the tensors that come back (`/v2`).
    """

    ask: Ask
    files: list[bytes] = field(default_factory=list)
    pixels: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    name: str | None = None
    outputs: tuple[tuple[str, bool], ...] = ()


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


def check_images(images: object, limits: ServingSettings) -> None:
    """Refuse a long list before anything looks at what is in it; Problem 413."""
    if isinstance(images, list) and len(images) > limits.max_images:
        raise Problem(413, f"{len(images)} images: at most {limits.max_images} a request")


def check_count(texts: object, where: str, limits: ServingSettings) -> None:
    """The same for a list of texts; Problem 422 naming it."""
    if isinstance(texts, list) and len(texts) > limits.max_labels:
        raise Problem(422, f"{where}: {len(texts)}, at most {limits.max_labels} are allowed")


def check_texts(texts: Sequence[str], longest: int, where: str, limits: ServingSettings) -> None:
    """Each text says something, within limits; raises Problem 422 naming it."""
    check_count(list(texts), where, limits)
    for index, text in enumerate(texts):
        if not text.strip() or len(text) > longest:
            raise Problem(422, f"{where}.{index}: give 1 to {longest} characters")


def form_values(
    form: Form, fields: Sequence[str], listed: str, limits: ServingSettings
) -> dict[str, Any]:
    """What a form holds beside its files, of which there are not too many.

    Args:
        form: fields and files.
        fields: names that are known, beside that of the files.
        listed: the field that is a JSON list.
        limits: how many files.

    Raises:
        Problem: 413 or 422.
    """
    unknown = sorted((set(form.fields) | form.names) - {"image", "images", *fields})
    if unknown:
        known = f"image, {', '.join(fields)} are known"
        raise Problem(422, f"{cut(unknown[0])}: unknown field; {known}")
    if {"image", "images"} & set(form.fields):
        raise Problem(422, "image: send it as a file, not as text")
    check_images(form.files, limits)
    given: dict[str, Any] = {key: form.fields[key] for key in fields if form.fields.get(key)}
    if listed in given:
        given[listed] = read_list(given[listed], listed)
    return given


def read_list(text: str, where: str) -> Any:
    """JSON in a field that is text; raises Problem 422 naming it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Problem(422, f"{where}: not a JSON list") from None


def _form(form: Form, limits: ServingSettings) -> Wish:
    given = form_values(form, FIELDS, "labels", limits)
    if not form.files:
        raise Problem(422, "image: a file is missing")
    check_count(given.get("labels"), "labels", limits)
    return Wish(_ask(validated(ClassifyRequest, {"images": ["-"], **given})), form.files)


def _json(body: bytes | bytearray, limits: ServingSettings) -> Wish:
    values = read_json(body)
    check_images(values.get("images"), limits)
    check_count(values.get("labels"), "labels", limits)
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
    check_texts(ask.labels, LONGEST_LABEL, "labels", limits)
    return replace(ask, labels=tuple(dict.fromkeys(ask.labels)))
