"""The application: routes of `/v1`, the page at `/`, and the one form of errors.

app = create_app(LocalBackend(model), serving)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from actors.http import admin, problems, v2
from actors.http.answers import ClassifyAnswer, result
from actors.http.backend import Backend, Reply
from actors.http.bodies import BodyLimit, ClassifyRequest, decode_images, read_wish
from actors.http.observe import Observer, Seen
from actors.http.problems import Problem
from pipeline.settings import ServingSettings

PAGE = Path(__file__).parents[1] / "page"
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": words,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for code, words in {
        400: "not understood",
        404: "unknown task",
        413: "too large: body, pixels or images",
        415: "no image",
        422: "a value is not allowed, or an image is broken",
        429: "too many requests are waiting: see Retry-After",
        503: "nobody answers: see Retry-After",
    }.items()
}
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
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": FORM},
            "application/json": {
                "schema": ClassifyRequest.model_json_schema(
                    ref_template="#/components/schemas/{model}"
                )
            },
        },
    }
}


def create_app(
    backend: Backend,
    serving: ServingSettings,
    token_sha256: str | None = None,
    observer: Observer | None = None,
) -> FastAPI:
    """The endpoint over a backend.

    Args:
        backend: who answers.
        serving: limits.
        token_sha256: hash of the admin token; without it admin does not exist.
        observer: metrics and logs.
    """
    app = FastAPI(
        title="archipelago",
        summary="A CLIP that grows by one expert group per domain, and forgets none",
        version="1",
        docs_url=None,  # a page of our own: FastAPI's loads its interface from elsewhere
        redoc_url=None,
    )
    watch = observer or Observer()
    problems.install(app)
    app.add_middleware(BodyLimit, limit=serving.max_body_mib * 2**20)
    app.middleware("http")(watch.middleware)

    answers: dict[int | str, dict[str, Any]] = {200: {"model": ClassifyAnswer}}

    @app.post("/v1/classify", responses=answers | ERRORS, openapi_extra=BODY, tags=["classify"])
    async def classify(request: Request) -> JSONResponse:
        """Which domain is each image from, and which class? Or, with labels, which label?"""
        clock = time.perf_counter()
        wish = await read_wish(request, serving)
        images = await decode_images(wish.files, await backend.image_size(), serving)
        decoded = time.perf_counter()
        reply = await backend.classify(images, [wish.ask] * len(images))
        if reply.unknown is not None:
            raise unknown_task(reply.unknown)
        now = time.perf_counter()
        spent = {
            "total": 1000.0 * (now - clock),
            "decode": 1000.0 * (decoded - clock),
            **reply.milliseconds,
        }
        request.state.seen = Seen(reply, len(images))
        return JSONResponse(
            {
                "generation": reply.generation,
                "results": [result(answer, spent) for answer in reply.answers],
            }
        )

    @app.get("/v1/models", responses={503: ERRORS[503]}, tags=["model"])
    async def models() -> dict[str, Any]:
        """The generation that answers, those before, and what waits to be promoted."""
        about = await backend.describe()
        return {key: value for key, value in about.items() if key != "tasks"}

    @app.get("/v1/tasks", responses={503: ERRORS[503]}, tags=["model"])
    async def tasks() -> dict[str, Any]:
        """The domains learned so far."""
        about = await backend.describe()
        return {"generation": about["generation"], "tasks": about["tasks"]}

    @app.get("/v1/tasks/{name}/lineage", responses={404: ERRORS[404]}, tags=["model"])
    async def task_lineage(name: str) -> dict[str, Any]:
        """Where a domain's group comes from: data, parent, neighbours, hashes."""
        found = await backend.lineage(name)
        if found is None:
            raise unknown_task(name)
        return found

    @app.get(
        "/v1/tasks/{name}/examples/{index}",
        response_class=Response,
        responses={404: ERRORS[404], 200: {"content": {"image/png": {}}}},
        tags=["model"],
    )
    async def task_example(name: str, index: int) -> Response:
        """A training image stored with a domain's group."""
        found = await backend.example(name, index)
        if found is None:
            raise Problem(404, f"task '{name}' has no example {index}")
        return Response(found, media_type="image/png", headers={"Cache-Control": "max-age=3600"})

    app.include_router(v2.router(backend, serving))
    app.include_router(admin.router(backend, token_sha256), include_in_schema=bool(token_sha256))
    _describe_errors(app)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """The page at `/`, `/docs` and their files, a route each: anything else is a 404 of ours."""

    def served(file: Path) -> Callable[[], Awaitable[FileResponse]]:
        async def page() -> FileResponse:
            return FileResponse(file, headers={"Cache-Control": "no-cache"})

        return page

    for file in sorted(PAGE.rglob("*")) if PAGE.is_dir() else []:
        if file.is_file():
            path = file.relative_to(PAGE).as_posix()
            where = {"index.html": "/", "docs.html": "/docs"}.get(path, f"/{path}")
            app.get(where, include_in_schema=False)(served(file))


def unknown_task(name: str) -> Problem:
    """404 for a domain."""
    return Problem(404, f"task '{name}' is not learned; GET /v1/tasks lists those that are")


def _describe_errors(app: FastAPI) -> None:
    """The OpenAPI document with the schema of errors."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        inner = {"code": {"type": "integer"}, "message": {"type": "string"}}
        error = {"type": "object", "required": list(inner), "properties": inner}
        schemas["Error"] = {
            "type": "object",
            "required": ["error"],
            "properties": {"error": error},
        }
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path in document["paths"].values():
            for operation in path.values():
                stated = operation.get("responses", {}).get("422")
                if stated is not None:
                    operation["responses"]["422"] = ERRORS[422]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


__all__ = ["Reply", "create_app"]
