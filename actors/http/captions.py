"""Requests with texts beside or about images: embed, similarity, zero-shot. Read in a decoder's
process, as `bodies.py` is.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from archipelago.actors.http.bodies import (
    LONGEST_LABEL,
    Text,
    Texts,
    Wish,
    check_ask,
    check_count,
    check_images,
    check_texts,
    form_values,
    from_base64,
    from_base64_all,
    kind_of,
    read_json,
    validated,
)
from archipelago.actors.http.forms import read_form
from archipelago.actors.http.problems import Problem
from archipelago.pipeline.learned.asking import Ask
from archipelago.pipeline.settings import ServingSettings

LONGEST_TEXT = 300  # characters: what a text tower of 77 tokens reads; a tokenizer's time squares
LONGEST_TEMPLATE = LONGEST_LABEL


class EmbedRequest(BaseModel):
    """Images, base64-encoded files of any common format, texts, or both."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(fail_fast=True)] = Field(
        default_factory=list, description="image files, base64"
    )
    texts: Texts = Field(default_factory=list, description="texts, read as they are written")


class ZeroShotParameters(BaseModel):
    """What an image may show."""

    model_config = ConfigDict(extra="ignore")

    candidate_labels: Texts = Field(description="names to choose from", min_length=1)
    hypothesis_template: Annotated[Text, Field(max_length=LONGEST_TEMPLATE)] | None = Field(
        None, description="how CLIP reads a name that nobody learned; {} stands for the name"
    )


class ZeroShotRequest(BaseModel):
    """One image, a base64-encoded file of any common format, and what it may show."""

    model_config = ConfigDict(extra="ignore")

    inputs: str = Field(description="an image file, base64")
    parameters: ZeroShotParameters


def read_embed(content_type: str, body: bytes | bytearray, limits: ServingSettings) -> Wish:
    """Parse a request of `/v1/embed` or `/v1/similarity` by its content type.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    kind = kind_of(content_type)
    values: dict[str, Any]
    if kind == "multipart/form-data":
        form = read_form(content_type, body, limits.max_images)
        values, files = form_values(form, ("texts",), "texts", limits), form.files
    elif kind == "application/json":
        values, files = read_json(body), []
        check_images(values.get("images"), limits)
    else:
        values, files = {}, [bytes(body)]
    check_count(values.get("texts"), "texts", limits)
    request = validated(EmbedRequest, values)
    check_texts(request.texts, LONGEST_TEXT, "texts", limits)
    files = files or from_base64_all(request.images, "images")
    if not files and not request.texts:
        raise Problem(422, "body: give images, texts or both")
    return Wish(Ask(), files, texts=tuple(request.texts))


def read_zero_shot(body: bytes | bytearray, limits: ServingSettings) -> Wish:
    """Parse a request of the Hugging Face task zero-shot-image-classification.

    Raises:
        Problem: 400, 413 or 422.
    """
    values = read_json(body)
    given = values.get("parameters")
    where = "parameters.candidate_labels"
    check_count(given.get("candidate_labels") if isinstance(given, dict) else None, where, limits)
    request = validated(ZeroShotRequest, values)
    labels, template = request.parameters.candidate_labels, request.parameters.hypothesis_template
    check_texts(labels, LONGEST_LABEL, where, limits)
    templates = None if template is None else (_checked(template),)
    ask = check_ask(Ask(None, tuple(labels), len(labels), templates), limits)
    return Wish(ask, [from_base64(request.inputs, "inputs")])


def _checked(template: str) -> str:
    """A template with one `{}` and no other field: what else `format` would read in it can cost any
    amount of memory."""
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        words = "holds {} once, for the name, and no other brace"
        raise Problem(422, f"parameters.hypothesis_template: a template {words}")
    return template
