"""The application: routes of `/v1`, the page at `/`, and the one form of errors.

app = create_app(LocalBackend(model), serving)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response

from archipelago.actors.http import admin, classify, examples, problems, v2, vectors
from archipelago.actors.http.backend import Backend, Reply
from archipelago.actors.http.calls import Calls
from archipelago.actors.http.decoders import Decoders
from archipelago.actors.http.described import describe, errors
from archipelago.actors.http.intake import Intake
from archipelago.actors.http.observe import Observer, Watch
from archipelago.actors.http.pages import add_pages
from archipelago.actors.http.problems import Problem, unknown_task
from archipelago.actors.http.statistics import Statistics
from archipelago.pipeline.settings import ServingSettings


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
        docs_url=None,  # FastAPI's own loads its interface from elsewhere: see `pages.py`
        redoc_url=None,
    )
    problems.install(app)
    statistics = Statistics()
    app.add_middleware(Intake, limits=serving)
    app.add_middleware(Watch, observer=observer or Observer(), statistics=statistics)
    may_see = examples.gate(serving, token_sha256)
    calls = Calls(backend, decoders)
    app.include_router(classify.router(calls, serving))
    app.include_router(vectors.router(calls, serving))

    @app.get("/v1/models", responses=errors(503), tags=["model"])
    async def models() -> dict[str, Any]:
        """The generation that answers, those before, and what waits to be promoted."""
        about = await backend.describe()
        return {key: value for key, value in about.items() if key != "tasks"}

    @app.get("/v1/tasks", responses=errors(503), tags=["model"])
    async def tasks(request: Request) -> dict[str, Any]:
        """The domains learned so far."""
        about = await backend.describe()
        listed = about["tasks"]
        if may_see(request) is not None:
            listed = [{**task, "examples": []} for task in listed]
        return {"generation": about["generation"], "tasks": listed}

    @app.get("/v1/tasks/{name}/lineage", responses=errors(404), tags=["model"])
    async def task_lineage(name: str) -> dict[str, Any]:
        """Where a domain's group comes from: data, parent, neighbours, hashes."""
        found = await backend.lineage(name)
        if found is None:
            raise unknown_task(name)
        return found

    @app.get(
        "/v1/tasks/{name}/examples/{index}",
        response_class=Response,
        responses={**errors(401, 403, 404), 200: {"content": {"image/png": {}}}},
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

    app.include_router(v2.router(calls, statistics))
    app.include_router(admin.router(backend, token_sha256), include_in_schema=bool(token_sha256))
    describe(app)
    add_pages(app)
    return app


__all__ = ["Reply", "create_app"]
