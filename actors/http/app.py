"""The application: routes of `/v1`, the page at `/`, and the one form of errors.

app = create_app(LocalBackend(model), serving)
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from archipelago.actors.http import admin, examples, problems, v2
from archipelago.actors.http.answers import ClassifyAnswer, result
from archipelago.actors.http.backend import Backend, Reply
from archipelago.actors.http.bodies import ClassifyRequest, kind_of
from archipelago.actors.http.decoders import Decoders
from archipelago.actors.http.intake import Intake, in_time, whole_body
from archipelago.actors.http.observe import Observer, Seen, Watch
from archipelago.actors.http.problems import Problem, unknown_task
from archipelago.pipeline.settings import ServingSettings

PAGE = Path(__file__).parents[1] / "page"
# The pages name the same rules themselves; what may frame them only a header can say.
PAGE_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": words,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for code, words in {
        400: "not understood",
        408: "the body did not arrive in time",
        404: "unknown task",
        413: "too large: body, pixels, memory or images",
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
REF = "#/components/schemas/{model}"


def described_body(serving: ServingSettings) -> dict[str, Any]:
    """OpenAPI's description of a classify request, with this endpoint's limits."""
    form, body = copy.deepcopy(FORM), ClassifyRequest.model_json_schema(ref_template=REF)
    form["properties"]["image"]["maxItems"] = serving.max_images  # type: ignore[index]
    body["properties"]["images"]["maxItems"] = serving.max_images
    for option in body["properties"]["labels"]["anyOf"]:
        if option["type"] == "array":
            option["maxItems"] = serving.max_labels
    content = {"multipart/form-data": form, "application/json": body}
    described = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": described}}


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
    decoders = Decoders(serving)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        decoders.start()
        yield
        await asyncio.to_thread(decoders.close)

    app = FastAPI(
        title="archipelago",
        lifespan=lifespan,
        summary="A CLIP that grows by one expert group per domain, and forgets none",
        version="1",
        docs_url=None,  # a page of our own: FastAPI's loads its interface from elsewhere
        redoc_url=None,
    )
    problems.install(app)
    app.add_middleware(Intake, limits=serving)
    app.add_middleware(Watch, observer=observer or Observer())
    may_see = examples.gate(serving, token_sha256)

    answers: dict[int | str, dict[str, Any]] = {200: {"model": ClassifyAnswer}}

    @app.post(
        "/v1/classify",
        responses=answers | ERRORS,
        openapi_extra=described_body(serving),
        tags=["classify"],
    )
    async def classify(request: Request) -> JSONResponse:
        """Which domain is each image from, and which class? Or, with labels, which label?"""
        clock = time.perf_counter()
        content_type = request.headers.get("content-type", "")
        kind_of(content_type)
        decoders.check()
        body = await whole_body(request)
        async with in_time(request):
            size = await backend.image_size()
            deadline = request.state.deadline
            began = time.perf_counter()
            wish = await decoders.read("classify", content_type, body, size, deadline)
            del body
            decoded = time.perf_counter()
            count = len(wish.pixels)
            reply = await backend.classify(wish.pixels, [wish.ask] * count)
        if reply.unknown is not None:
            raise unknown_task(reply.unknown)
        now = time.perf_counter()
        spent = {
            "total": 1000.0 * (now - clock),
            "decode": 1000.0 * (decoded - began),
            **reply.milliseconds,
        }
        request.state.seen = Seen(reply, count)
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
    async def tasks(request: Request) -> dict[str, Any]:
        """The domains learned so far."""
        about = await backend.describe()
        listed = about["tasks"]
        if may_see(request) is not None:
            listed = [{**task, "examples": []} for task in listed]
        return {"generation": about["generation"], "tasks": listed}

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
        responses={
            401: {**ERRORS[404], "description": "example images need the token here"},
            403: {**ERRORS[404], "description": "example images are not shown here"},
            404: ERRORS[404],
            200: {"content": {"image/png": {}}},
        },
        tags=["model"],
    )
    async def task_example(request: Request, name: str, index: int) -> Response:
        """A training image stored with a domain's group, where such may be shown."""
        refused = may_see(request)
        if refused is not None:
            raise refused
        found = await backend.example(name, index)
        if found is None:
            raise Problem(404, f"task '{problems.cut(name)}' has no example {problems.cut(index)}")
        keep = {"Cache-Control": "private, max-age=3600"}
        return Response(found, media_type="image/png", headers=keep)

    app.include_router(v2.router(backend, decoders))
    app.include_router(admin.router(backend, token_sha256), include_in_schema=bool(token_sha256))
    _describe_errors(app)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """The page at `/`, `/docs` and their files, a route each: anything else is a 404 of ours."""

    def served(file: Path) -> Callable[[], Awaitable[FileResponse]]:
        headers = {"Cache-Control": "no-cache"}
        if file.suffix == ".html":
            headers["Content-Security-Policy"] = PAGE_RULES

        async def page() -> FileResponse:
            return FileResponse(file, headers=headers)

        return page

    for file in sorted(PAGE.rglob("*")) if PAGE.is_dir() else []:
        if file.is_file():
            path = file.relative_to(PAGE).as_posix()
            where = {"index.html": "/", "docs.html": "/docs"}.get(path, f"/{path}")
            app.get(where, include_in_schema=False)(served(file))


def _describe_errors(app: FastAPI) -> None:
    """The OpenAPI document with the schema of errors, and those of bodies that are read by hand."""
    generate = app.openapi
    by_hand = v2.InferRequest.model_json_schema(ref_template=REF)["$defs"]

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= by_hand
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
