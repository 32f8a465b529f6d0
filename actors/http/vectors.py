"""`/v1/embed` and `/v1/similarity`: vectors of frozen CLIP, and the cosines between them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from archipelago.actors.http.answers import rounded
from archipelago.actors.http.bodies import kind_of
from archipelago.actors.http.calls import Calls, Embedded
from archipelago.actors.http.captions import LONGEST_TEXT, EmbedRequest
from archipelago.actors.http.described import SHOWN, Responses, errors
from archipelago.pipeline.settings import ServingSettings

TAG = "embed"
FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "texts": {"type": "string", "description": "a JSON list of texts"},
    },
}


class EmbedAnswer(BaseModel):
    """Normalised vectors of frozen CLIP: their products are cosines, and learning changes none."""

    generation: int = Field(description="of the model that answered")
    backbone: str = Field(description="frozen CLIP's name: vectors of one can be compared")
    images: list[list[float]] = Field(description="one an image, in their order")
    texts: list[list[float]] = Field(description="one a text, in their order")
    milliseconds: dict[str, float]


class SimilarityAnswer(BaseModel):
    """Cosines between images and texts, or among those of the one kind that was given."""

    generation: int = Field(description="of the model that answered")
    backbone: str = Field(description="frozen CLIP's name")
    rows: str = Field(description="what a row belongs to: images or texts")
    columns: str = Field(description="what a column belongs to")
    similarity: list[list[float]] = Field(description="from -1 to 1, row by row")
    milliseconds: dict[str, float]


def described_body(serving: ServingSettings) -> dict[str, Any]:
    """OpenAPI's description of a request, with this endpoint's limits."""
    form, body = copy.deepcopy(FORM), EmbedRequest.model_json_schema()
    form["properties"]["image"]["maxItems"] = serving.max_images  # type: ignore[index]
    body["properties"]["images"]["maxItems"] = serving.max_images
    body["properties"]["texts"]["maxItems"] = serving.max_labels
    body["properties"]["texts"]["items"] |= {"minLength": 1, "maxLength": LONGEST_TEXT}
    content = {"application/json": body, "multipart/form-data": form}
    described = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": described}}


def router(calls: Calls, serving: ServingSettings) -> APIRouter:
    """Both routes."""
    routes = APIRouter(prefix="/v1", tags=[TAG])
    described = described_body(serving)
    embedded: Responses = {200: {"model": EmbedAnswer}, **errors(*SHOWN)}
    compared: Responses = {200: {"model": SimilarityAnswer}, **errors(*SHOWN)}

    @routes.post("/embed", responses=embedded, openapi_extra=described)
    async def embed(request: Request) -> JSONResponse:
        """Vectors of images and texts, to search and compare with.

        A vector belongs to frozen CLIP: it is the same before and after learning, and does not
        depend on what else is in the request.
        """
        found = await calls.embed(request, _content_type(request))
        images, texts = found.vectors.images.tolist(), found.vectors.texts.tolist()
        return _answer(found, images=images, texts=texts)

    @routes.post("/similarity", responses=compared, openapi_extra=described)
    async def similarity(request: Request) -> JSONResponse:
        """How near images are to texts; among themselves where only images or texts are given."""
        found = await calls.embed(request, _content_type(request))
        given = {"images": found.vectors.images, "texts": found.vectors.texts}
        kinds = [kind for kind, vectors in given.items() if len(vectors)]
        rows, columns = kinds[0], kinds[-1]
        cosines = np.clip(given[rows] @ given[columns].T, -1.0, 1.0)
        return _answer(found, rows=rows, columns=columns, similarity=cosines.tolist())

    return routes


def _content_type(request: Request) -> str:
    """Of a request's body; refused before the body is taken in."""
    content_type = request.headers.get("content-type", "")
    kind_of(content_type)
    return content_type


def _answer(found: Embedded, **parts: Any) -> JSONResponse:
    about = {"generation": found.vectors.generation, "backbone": found.vectors.backbone}
    return JSONResponse(about | parts | {"milliseconds": rounded(found.spent)})
