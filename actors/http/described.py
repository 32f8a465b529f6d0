"""The OpenAPI document: errors in their forms, and the schemas of bodies that are read by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from archipelago.actors.http.captions import ZeroShotRequest
from archipelago.actors.http.problems import PROTOCOL
from archipelago.actors.http.tensors import InferRequest

Responses = dict[int | str, dict[str, Any]]
REF = "#/components/schemas/{model}"
WORDS = {
    400: "not understood",
    401: "the right token is missing",
    403: "not shown here",
    404: "unknown task",
    408: "the body did not arrive in time",
    413: "too large: body, pixels, memory or images",
    415: "no image",
    422: "a value is not allowed, or an image is broken",
    429: "too many requests are waiting: see Retry-After",
    503: "nobody answers: see Retry-After",
}
SHOWN = (400, 408, 413, 415, 422, 429, 503)  # of every call that shows images
BY_HAND: tuple[type[BaseModel], ...] = (InferRequest, ZeroShotRequest)


def errors(*codes: int, schema: str = "Error", **words: str) -> Responses:
    """Descriptions of errors, by default in the words that hold for all calls.

    Args:
        codes: statuses.
        schema: of the form.
        words: for statuses of a call's own, as `_404="..."`.
    """
    own = {int(code.lstrip("_")): said for code, said in words.items()}
    content = {"application/json": {"schema": {"$ref": REF.format(model=schema)}}}
    return {
        code: {"description": said, "content": content}
        for code, said in ({code: WORDS[code] for code in codes} | own).items()
    }


def body(kind: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a JSON body that is read by hand."""
    schema = kind.model_json_schema(ref_template=REF)
    schema.pop("$defs", None)
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> None:
    """Give an application's document what FastAPI does not know of it."""
    generate = app.openapi
    added = _schemas()

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= added
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _restate(operation, "ProtocolError" if path.startswith(PROTOCOL) else "Error")
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _restate(operation: Mapping[str, Any], schema: str) -> None:
    """Values that are not allowed are said in our form, not FastAPI's."""
    if "422" in operation.get("responses", {}):
        operation["responses"]["422"] = errors(422, schema=schema)[422]


def _schemas() -> dict[str, Any]:
    inner = {"code": {"type": "integer"}, "message": {"type": "string"}}
    error = {"type": "object", "required": list(inner), "properties": inner}
    found: dict[str, Any] = {
        name: {"type": "object", "required": ["error"], "properties": {"error": said}}
        for name, said in (("Error", error), ("ProtocolError", {"type": "string"}))
    }
    for kind in BY_HAND:
        found |= kind.model_json_schema(ref_template=REF).get("$defs", {})
    return found
