"""A stand-in for the served model: the HTTP contract over real sockets, without Ray or torch.

Domains are colours: an image belongs to the domain whose colour is nearest to its mean, and to none
when all are far. Everything that was asked is kept, and the next answers can be made to fail.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image

from tests.helpers import png
from tests.serving import listening

TOKEN = "let-me-in"
COLOURS = {
    "digits": (60, 64, 116),
    "flowers": (200, 85, 125),
    "terrain": (120, 170, 100),
    "textures": (217, 143, 78),
}
ELSEWHERE = "https://mlflow.example/textures"  # a page must not lead there
CLASSES = {
    "digits": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "flowers": ["rose", "iris", "tulip", "<b>daisy</b>"],
    "terrain": ["river", "meadow", "town"],
    "textures": ["striped", "dotted", "woven", "cracked", "marbled"],
}
ABOUT = {
    "digits": "Small grey pictures of single handwritten digits.",
    "flowers": "Close-up photographs of blossoms, one kind in each.",
    "terrain": "Land seen from above: water, fields and roofs.",
    "textures": "Surfaces that fill the whole picture and repeat.",
}


@dataclass
class State:
    """What the stand-in serves and what it was asked."""

    learned: list[str] = field(default_factory=lambda: ["textures", "digits", "flowers"])
    generation: int = 3
    manifest: int = 3
    failures: list[Response] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    abstains: bool = False  # from answering what is of no learned domain

    def learn(self, name: str) -> None:
        """Publish one more domain."""
        self.learned.append(name)
        self.generation += 1
        self.manifest += 1

    def fail(self, code: int, message: str, times: int = 1, **headers: str) -> None:
        """Let the next classifications fail."""
        self.failures += [problem(code, message, headers) for _ in range(times)]


def problem(code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, code, headers)


def answer(state: State, data: bytes, asked: dict[str, Any]) -> dict[str, Any]:
    """The result for one image; raises `OSError` for what is no image."""
    mean = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float).mean((0, 1))
    far = {name: float(np.linalg.norm(mean - COLOURS[name])) for name in state.learned}
    ranked = sorted(far, key=far.__getitem__)
    task = asked["task"] or (ranked[0] if ranked and far[ranked[0]] < 40 else None)
    groups = [{"task": task, "weight": 1.0}]
    if task is None:
        groups = [{"task": n, "weight": w} for n, w in zip(ranked, (0.28, 0.12), strict=False)]
    refused = state.abstains and task is None
    labels = asked["labels"] or CLASSES[task or ranked[0]]
    scores = np.exp(-np.arange(len(labels)) * 1.3)
    scores /= scores.sum()
    classes = [
        {"label": label, "probability": float(score)}
        for label, score in zip(labels, scores, strict=True)
    ]
    return {
        "task": task,
        "task_confidence": 0.97 if task else 0.31,
        "unseen": task is None,
        "lambda": 0.4 if task is None and not refused else 0.0,
        "groups": [] if refused else groups,
        "classes": [] if refused else classes[: asked["top_k"]],
        "domains": [
            {"task": name, "probability": p}
            for name, p in zip(ranked, (0.9, 0.08, 0.02), strict=False)
        ],
        "unseen_probability": 0.03 if task else 0.88,
        "refused": refused,
        "milliseconds": {"total": 9.14, "decode": 1.2, "model": 7.7},
    }


async def read(request: Request) -> tuple[list[bytes], dict[str, Any]]:
    if request.headers["content-type"].startswith("multipart/"):
        form = await request.form()
        images = [await file.read() for file in form.getlist("image")]  # type: ignore[union-attr]
        labels, top_k = form.get("labels"), int(str(form.get("top_k", 5)))
        parsed = json.loads(str(labels)) if labels else None
        return images, {"task": form.get("task"), "labels": parsed, "top_k": top_k}
    body = await request.json()
    images = [base64.b64decode(image) for image in body["images"]]
    return images, {key: body.get(key) for key in ("task", "labels")} | {"top_k": body["top_k"]}


def application(state: State, page: Path | None = None) -> FastAPI:
    """The contract; with `page`, its files at the root, as the product serves them."""
    app = FastAPI()

    @app.middleware("http")
    async def note(request: Request, call: Any) -> Response:
        state.requests.append((request.method, request.url.path))
        return await call(request)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        now = {"generation": state.generation, "manifest": state.manifest}
        return {**now, "backbone": "clip-tiny", "history": [now]}

    @app.get("/v1/tasks")
    def tasks() -> dict[str, Any]:
        listed = [
            {
                "name": name,
                "description": ABOUT[name],
                "neighbours": ["digits"] if name == "flowers" else [],
                "classes": CLASSES[name],
                "lineage": ELSEWHERE if name == "textures" else f"/v1/tasks/{name}/lineage",
                "examples": [f"/v1/tasks/{name}/examples/{i}" for i in range(3)],
            }
            for name in state.learned
        ]
        return {"generation": state.generation, "tasks": listed}

    @app.get("/v1/tasks/{name}/examples/{index}")
    def example(name: str, index: int) -> Response:
        return Response(png(COLOURS[name], size=56, seed=index), media_type="image/png")

    @app.post("/v1/classify")
    async def classify(request: Request) -> Any:
        images, asked = await read(request)
        state.asked.append({**asked, "images": images})
        if state.failures:
            return state.failures.pop(0)
        if asked["task"] and asked["task"] not in state.learned:
            return problem(404, f"no task {asked['task']}; known: {', '.join(state.learned)}")
        try:
            results = [answer(state, data, asked) for data in images]
        except OSError:
            return problem(415, "image 1 is not a picture that can be read")
        return {"generation": state.generation, "results": results}

    @app.post("/v1/admin/{verb}")
    async def admin(verb: str, request: Request) -> Any:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return problem(401, "the admin interface needs a bearer token")
        body = await request.json()
        if verb == "forget":
            if body["task"] not in state.learned:
                return problem(404, f"no task {body['task']}")
            state.learned.remove(body["task"])
        else:
            state.manifest = body["manifest"]
        state.generation += 1
        return {"generation": state.generation, "manifest": state.manifest}

    if page:
        app.mount("/", StaticFiles(directory=page, html=True))
    return app


@contextmanager
def serving(
    state: State, page: Path | None = None, port: int = 0, below: str = ""
) -> Iterator[str]:
    """Serve on a loopback port, by default a free one; the value is the address."""
    app = application(state, page)
    if below:
        outer = FastAPI()
        outer.mount(below, app)
        app = outer
    with listening(app, port) as address:
        yield address
