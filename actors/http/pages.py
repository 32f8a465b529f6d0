"""The page at `/` and the interface's description at `/docs`. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, Response

PAGE = Path(__file__).parents[1] / "page"
SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")  # what the package fastapi-offline brings
KEEP = {"Cache-Control": "no-cache"}


def rules(scripts: str = "", images: str = "") -> str:
    """A page's policy: its own files, what is named here, and nothing else.

    The page names the same rules itself; what may frame it only a header can say.
    """
    parts = {
        "default-src": "'none'",
        "script-src": f"'self' {scripts}",
        "style-src": "'self'",
        "img-src": f"'self' blob: {images}",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}".strip() for name, value in parts.items())


def add_pages(app: FastAPI) -> None:
    """A route for each file: anything else is a 404 of ours."""
    for file in sorted(PAGE.rglob("*")) if PAGE.is_dir() else []:
        if file.is_file():
            path = file.relative_to(PAGE).as_posix()
            where = "/" if path == "index.html" else f"/{path}"
            app.get(where, include_in_schema=False)(_served(file))
    bundle = Path(str(files("fastapi_offline"))) / "static"
    for name in SWAGGER:
        app.get(f"/{name}", include_in_schema=False)(_served(bundle / name))
    app.get("/docs", include_in_schema=False)(_docs(app))


def _served(file: Path) -> Callable[[], Awaitable[Response]]:
    headers = dict(KEEP)
    if file.suffix == ".html":
        headers["Content-Security-Policy"] = rules()

    async def page() -> Response:
        return FileResponse(file, headers=headers)

    return page


def _docs(app: FastAPI) -> Callable[[], Awaitable[Response]]:
    """Swagger UI; addresses are relative, so that it works below any prefix."""
    script, style = SWAGGER
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=f"{app.title} · HTTP interface",
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url="icon.svg",
        swagger_ui_parameters={"docExpansion": "list", "defaultModelsExpandDepth": 0},
    ).body
    html = bytes(page).decode()
    (inline,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    policy = rules(f"'sha256-{digest}'", "data:")  # its style sheet holds arrows

    async def docs() -> Response:
        return HTMLResponse(html, headers={**KEEP, "Content-Security-Policy": policy})

    return docs
