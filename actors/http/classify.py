"""`/v1/classify`, and the same answer in the form of Hugging Face's zero-shot task."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from archipelago.actors.http.answers import ClassifyAnswer, result
from archipelago.actors.http.bodies import ClassifyRequest, kind_of
from archipelago.actors.http.calls import Calls
from archipelago.actors.http.captions import ZeroShotRequest
from archipelago.actors.http.described import REF, SHOWN, Responses, body, errors
from archipelago.pipeline.settings import ServingSettings

TAG = "classify"
FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "task": {"type": "string"},
        "labels": {"type": "string", "description": "a JSON list of names"},
        "top_k": {"type": "integer", "minimum": 1, "maximum": 1000},
    },
}


class LabelScore(BaseModel):
    """A label and its probability among the candidates."""

    label: str
    score: float = Field(description="all of them add up to 1")


def described_body(serving: ServingSettings) -> dict[str, Any]:
    """OpenAPI's description of a classify request, with this endpoint's limits."""
    form, asked = copy.deepcopy(FORM), ClassifyRequest.model_json_schema(ref_template=REF)
    form["properties"]["image"]["maxItems"] = serving.max_images  # type: ignore[index]
    asked["properties"]["images"]["maxItems"] = serving.max_images
    for option in asked["properties"]["labels"]["anyOf"]:
        if option["type"] == "array":
            option["maxItems"] = serving.max_labels
    content = {"multipart/form-data": form, "application/json": asked}
    described = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": described}}


def router(calls: Calls, serving: ServingSettings) -> APIRouter:
    """Both routes."""
    routes = APIRouter(prefix="/v1", tags=[TAG])
    answers: Responses = {200: {"model": ClassifyAnswer}, **errors(404, *SHOWN)}
    scores: Responses = {200: {"model": list[LabelScore]}, **errors(*SHOWN)}

    @routes.post("/classify", responses=answers, openapi_extra=described_body(serving))
    async def classify(request: Request) -> JSONResponse:
        """Which domain is each image from, and which class? Or, with labels, which label?"""
        content_type = request.headers.get("content-type", "")
        kind_of(content_type)
        found = await calls.classify(request, "classify", content_type)
        results = [result(answer, found.spent) for answer in found.reply.answers]
        return JSONResponse({"generation": found.reply.generation, "results": results})

    @routes.post(
        "/zero-shot-image-classification",
        responses=scores,
        openapi_extra=body(ZeroShotRequest),
    )
    async def zero_shot(request: Request) -> JSONResponse:
        """Which of these labels does an image show? Hugging Face's task of this name.

        A label that a learned domain has is that domain's class; the template says how CLIP reads
        the others. All labels come back, the likeliest first; none where the answer is withheld.
        """
        found = await calls.classify(request, "zero-shot")
        (answer,) = found.reply.answers
        return JSONResponse([{"label": label, "score": p} for label, p in answer.classes])

    return routes
